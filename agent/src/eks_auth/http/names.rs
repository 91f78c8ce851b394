//! Names of servers, resolved on threads of their own.
//!
//! The C library's resolver blocks, opens files and sockets of many kinds, and reads what anybody on the network may have
//! answered: it gets threads that may do that and have no capability. They are started once, as the main thread's own
//! restrictions would be theirs later on.
use std::{
    io,
    net::{IpAddr, ToSocketAddrs as _},
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use aws_smithy_runtime_api::client::dns::{DnsFuture, ResolveDns, ResolveDnsError};
use tokio::sync::oneshot;

use crate::confinement::{Confinement, ConfinementError, Role};

/// A question whose packet is lost is asked again after 5 s, and holds up nobody else. More would not help: EKS Auth has one
/// name, and what its servers do not answer one they do not answer the next.
const THREADS: usize = 4;

struct Question {
    name: String,
    answer: oneshot::Sender<io::Result<Vec<IpAddr>>>,
}

/// A handle to the threads. They end with the last handle.
#[derive(Clone, Debug)]
pub struct Names(mpsc::Sender<Question>);

impl Names {
    /// Starts the threads.
    pub fn start(confinement: Confinement) -> Result<Self, ConfinementError> {
        let (sender, questions) = mpsc::channel();
        let questions = Arc::new(Mutex::new(questions));
        for _ in 0..THREADS {
            let questions = Arc::clone(&questions);
            confinement.spawn(Role::Lookup, move || resolve(&questions))?;
        }
        Ok(Self(sender))
    }

    /// For tests, which are not confined.
    #[cfg(test)]
    pub(in crate::eks_auth) fn unconfined() -> Self {
        use crate::confinement::Seccomp;
        Self::start(Confinement { seccomp: Seccomp::Off, ..Confinement::default() }).unwrap()
    }
}

/// Answers questions for as long as there are any.
fn resolve(questions: &Mutex<mpsc::Receiver<Question>>) {
    loop {
        // Held while it waits: the others wait for the lock instead.
        let question = questions.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Question { name, answer }) = question else { return };
        // While name servers did not answer others, this one's caller may have given up.
        if !answer.is_closed() {
            let addresses = (name.as_str(), 0).to_socket_addrs();
            let _ = answer.send(addresses.map(|found| found.map(|address| address.ip()).collect()));
        }
    }
}

impl ResolveDns for Names {
    fn resolve_dns<'a>(&'a self, name: &'a str) -> DnsFuture<'a> {
        let (answer, addresses) = oneshot::channel();
        let asked = self.0.send(Question { name: name.to_owned(), answer });
        DnsFuture::new(async move {
            asked.map_err(|_| ResolveDnsError::new("the threads that resolve names have ended"))?;
            let addresses =
                addresses.await.map_err(|_| ResolveDnsError::new("the threads that resolve names have ended"))?;
            addresses.map_err(ResolveDnsError::new)
        })
    }
}
