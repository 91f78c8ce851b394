//! How other threads ask discovery.
use std::sync::Arc;

use agent_ebpf::Miss;
use tokio::sync::{mpsc, oneshot};

use super::Survey;
use crate::{pod_uid::PodUid, pods::Pod};

/// Misses that wait to be looked at. The programs send at most ten a second for each namespace, and pods can make
/// namespaces: what is beyond is dropped.
const WAITING_MISSES: usize = 256;

/// Asks discovery from other threads.
#[derive(Clone, Debug)]
pub struct DiscoveryHandle {
    commands: mpsc::UnboundedSender<Command>,
    misses: mpsc::Sender<Miss>,
}

/// Discovery has ended, and the agent with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

/// What discovery is asked or told.
#[derive(Debug)]
pub(super) enum Command {
    Adopt { path: String, uid: PodUid, answer: oneshot::Sender<Option<Arc<Pod>>> },
    ListenerFailed { serial: u64 },
    Survey { answer: oneshot::Sender<Survey> },
}

impl DiscoveryHandle {
    /// A handle, and the end that [`Discovery::run`](super::Discovery::run) takes.
    #[must_use]
    pub fn new() -> (Self, Commands) {
        let (commands, asked) = mpsc::unbounded_channel();
        let (misses, told) = mpsc::channel(WAITING_MISSES);
        (Self { commands, misses }, Commands { commands: asked, misses: told })
    }

    /// A pod whose cgroup (a path below the kubepods root) discovery has not seen yet; `None` when it is not there.
    pub async fn adopt(&self, path: String, uid: PodUid) -> Result<Option<Arc<Pod>>, Stopped> {
        let (answer, pod) = oneshot::channel();
        self.commands.send(Command::Adopt { path, uid, answer }).map_err(|_| Stopped)?;
        pod.await.map_err(|_| Stopped)
    }

    /// What is known and served now, for an operator.
    pub async fn survey(&self) -> Result<Survey, Stopped> {
        let (answer, survey) = oneshot::channel();
        self.commands.send(Command::Survey { answer }).map_err(|_| Stopped)?;
        survey.await.map_err(|_| Stopped)
    }

    /// A listener of a namespace (its serial number) does not accept any more.
    pub fn listener_failed(&self, serial: u64) {
        let _ = self.commands.send(Command::ListenerFailed { serial });
    }

    /// A connection found no listener. Dropped when too many are waiting: the next miss, or the rescan, tells again.
    pub fn missed(&self, miss: Miss) {
        let _ = self.misses.try_send(miss);
    }
}

/// Where handles' questions arrive.
#[derive(Debug)]
pub struct Commands {
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) misses: mpsc::Receiver<Miss>,
}
