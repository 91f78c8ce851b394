//! How other threads ask discovery.
use std::sync::Arc;

use agent_ebpf::Miss;
use tokio::sync::{mpsc, oneshot};

use crate::{pod_uid::PodUid, pods::Pod};

/// Asks discovery from other threads.
#[derive(Clone, Debug)]
pub struct DiscoveryHandle(mpsc::UnboundedSender<Command>);

/// What discovery is asked or told.
#[derive(Debug)]
pub(super) enum Command {
    Adopt { path: String, uid: PodUid, answer: oneshot::Sender<Option<Arc<Pod>>> },
    ListenerFailed { cookie: u64 },
    Missed(Miss),
}

impl DiscoveryHandle {
    /// A handle, and the end that [`Discovery::run`](super::Discovery::run) takes.
    #[must_use]
    pub fn new() -> (Self, Commands) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), Commands(receiver))
    }

    /// A pod whose cgroup (a path below the kubepods root) discovery has not seen yet; `None` when it is not there.
    pub async fn adopt(&self, path: String, uid: PodUid) -> Option<Arc<Pod>> {
        let (answer, pod) = oneshot::channel();
        self.0.send(Command::Adopt { path, uid, answer }).ok()?;
        pod.await.ok()?
    }

    /// A listener does not accept any more.
    pub fn listener_failed(&self, cookie: u64) {
        let _ = self.0.send(Command::ListenerFailed { cookie });
    }

    /// A connection found no listener.
    pub fn missed(&self, miss: Miss) {
        let _ = self.0.send(Command::Missed(miss));
    }
}

/// Where handles' questions arrive.
#[derive(Debug)]
pub struct Commands(pub(super) mpsc::UnboundedReceiver<Command>);
