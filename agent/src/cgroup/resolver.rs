//! Resolves cgroup ids on a thread of its own, for one that may not.
//!
//! The kernel's look-up needs `CAP_DAC_READ_SEARCH`, which opens every file of the node. The serving thread reads what
//! pods send, so it asks here instead: once for each cgroup that connects, the answers are remembered.
use std::sync::{Arc, mpsc};

use tokio::sync::oneshot;

use super::{
    CgroupId,
    kubepods::{Kubepods, Located},
};
use crate::confinement::{Confinement, ConfinementError, Role};

struct Job {
    id: CgroupId,
    answer: oneshot::Sender<Located>,
}

/// A handle to the thread. It ends when the handle is dropped.
#[derive(Debug)]
pub struct CgroupResolver(mpsc::Sender<Job>);

/// The thread has ended.
#[derive(Debug, thiserror::Error)]
#[error("the thread that resolves cgroup ids has ended")]
pub struct ResolverGone;

impl CgroupResolver {
    /// One without a thread, which resolves nothing.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn without_thread() -> Self {
        Self(mpsc::channel().0)
    }

    /// Starts the thread.
    pub fn start(kubepods: Arc<Kubepods>, confinement: Confinement) -> Result<Self, ConfinementError> {
        let (sender, jobs) = mpsc::channel::<Job>();
        confinement.spawn(Role::Cgroups, move || {
            for job in jobs {
                // Whoever asked may have gone with its connection.
                let _ = job.answer.send(kubepods.locate(job.id));
            }
        })?;
        Ok(Self(sender))
    }

    /// As [`Kubepods::locate`]. Takes microseconds; waiting jobs are as many as connections being attested.
    pub async fn locate(&self, id: CgroupId) -> Result<Located, ResolverGone> {
        let (answer, located) = oneshot::channel();
        self.0.send(Job { id, answer }).map_err(|_| ResolverGone)?;
        located.await.map_err(|_| ResolverGone)
    }
}
