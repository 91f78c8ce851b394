//! The network namespaces that have listeners, and which pods use each.
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    net::TcpListener,
    sync::Arc,
};

use tokio::sync::mpsc;

use super::{
    Listener,
    processes::{NetnsId, open_netns},
};
use crate::{
    metrics::Metrics,
    namespace::Namespace,
    netns::{NetnsSockets, NetnsWorker, OpenError, Opening},
    steering::{Steering, SteeringError},
};

/// The agent runs in the host netns.
const HOST_NETNS: &str = "/proc/self/ns/net";

/// Listeners for the serving thread, with their namespace.
#[derive(Debug)]
pub struct NewListeners {
    /// Where they are.
    pub namespace: Arc<Namespace>,
    /// On 127.0.0.1.
    pub v4: TcpListener,
    /// On `[::1]`.
    pub v6: Option<TcpListener>,
}

/// Why a namespace is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The namespace's file cannot be read.
    #[error("cannot read which network namespace it is: {0}")]
    Identify(#[source] io::Error),
    /// The sockets could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The kernel does not steer to them.
    #[error(transparent)]
    Steer(#[from] SteeringError),
}

struct Served {
    namespace: Arc<Namespace>,
    listener: Listener,
    /// Pods, by the path of their cgroup.
    users: HashSet<String>,
}

/// All namespaces that are served.
pub struct Namespaces {
    host: NetnsId,
    worker: NetnsWorker,
    steering: Arc<Steering>,
    server: mpsc::UnboundedSender<NewListeners>,
    metrics: Arc<Metrics>,
    served: HashMap<NetnsId, Served>,
    /// Those whose sockets are being opened before a pod has joined.
    begun: HashMap<NetnsId, Opening>,
}

impl Namespaces {
    /// Serves none yet.
    pub fn new(
        worker: NetnsWorker,
        steering: Arc<Steering>,
        server: mpsc::UnboundedSender<NewListeners>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ServeError> {
        let host = File::open(HOST_NETNS).and_then(|file| NetnsId::of(&file)).map_err(ServeError::Identify)?;
        Ok(Self { host, worker, steering, server, metrics, served: HashMap::new(), begun: HashMap::new() })
    }

    /// The host netns is served from start to end: pods of the host network come and go without a trace in it.
    pub(super) async fn serve_host(&mut self) -> Result<(), ServeError> {
        let host = File::open(HOST_NETNS).map_err(ServeError::Identify)?;
        let served = self.serve(self.host, self.worker.open(host), true).await?;
        self.served.insert(self.host, served);
        self.count();
        Ok(())
    }

    /// Whether the host netns has its listener.
    pub(super) fn serves_host(&self) -> bool {
        self.served.contains_key(&self.host)
    }

    pub(super) fn is_host(&self, netns: NetnsId) -> bool {
        netns == self.host
    }

    /// Serves the namespace of a process for a pod. Tells which one it is, by what the file says when it is opened; `None`
    /// when the process has ended. `expected` is what was seen of it before.
    pub(super) async fn join(
        &mut self,
        expected: NetnsId,
        task: u32,
        pod: &str,
    ) -> Result<Option<NetnsId>, ServeError> {
        let (id, sockets) = if let Some(begun) = self.begun.remove(&expected) {
            (expected, begun)
        } else {
            let Ok(netns) = open_netns(task) else { return Ok(None) };
            let id = NetnsId::of(&netns).map_err(ServeError::Identify)?;
            if self.is_host(id) {
                return Ok(Some(id));
            }
            if let Some(served) = self.served.get_mut(&id) {
                served.users.insert(pod.to_owned());
                return Ok(Some(id));
            }
            (id, self.worker.open(netns))
        };
        let mut served = self.serve(id, sockets, false).await?;
        served.users.insert(pod.to_owned());
        self.served.insert(id, served);
        self.count();
        Ok(Some(id))
    }

    /// Has the sockets of a process's namespace opened, if it has none, for the pod that will [`join`](Self::join) it: on the
    /// other thread, while this one goes on looking.
    pub(super) fn begin(&mut self, expected: NetnsId, task: u32) {
        if self.is_host(expected) || self.served.contains_key(&expected) || self.begun.contains_key(&expected) {
            return;
        }
        // A process that is gone, or has gone elsewhere since, is seen when its pod joins.
        let Ok(netns) = open_netns(task) else { return };
        if NetnsId::of(&netns).is_ok_and(|id| id == expected) {
            let opening = self.worker.open(netns);
            self.begun.insert(expected, opening);
        }
    }

    /// Closes what was begun and nobody joined.
    pub(super) fn drop_begun(&mut self) {
        self.begun.clear();
    }

    /// The listener of a namespace that is served.
    pub(super) fn listener(&self, netns: NetnsId) -> Option<Listener> {
        self.served.get(&netns).map(|served| served.listener)
    }

    /// That of the host netns.
    pub(super) fn host_listener(&self) -> Option<Listener> {
        self.listener(self.host)
    }

    async fn serve(&self, netns: NetnsId, sockets: Opening, is_host: bool) -> Result<Served, ServeError> {
        let sockets = sockets.sockets().await?;
        self.steering.insert(&sockets)?;
        let NetnsSockets { v4, v6, diag, cookie } = sockets;
        tracing::debug!(netns_cookie = cookie, port = ?v4.local_addr().map(|a| a.port()), ipv6 = v6.is_some(), "listening");
        let port = v4.local_addr().map_or(0, |address| address.port());
        let listener = Listener { netns: netns.inode(), cookie, port, ipv6: v6.is_some() };
        let namespace = Arc::new(Namespace::new(cookie, is_host, diag));
        // The serving thread ends last; if it has ended, so does the process.
        let _ = self.server.send(NewListeners { namespace: Arc::clone(&namespace), v4, v6 });
        Ok(Served { namespace, listener, users: HashSet::new() })
    }

    /// A pod does not use a namespace any more; without users it is closed.
    pub(super) fn leave(&mut self, netns: NetnsId, pod: &str) {
        let Some(served) = self.served.get_mut(&netns) else { return };
        served.users.remove(pod);
        if served.users.is_empty() && netns != self.host {
            self.close(netns);
        }
    }

    /// A listener died under the agent (a pod that may kill sockets did it): what is left is closed, and the users are
    /// returned, for which the namespace is to be opened anew.
    pub(super) fn lost(&mut self, serial: u64) -> Option<(NetnsId, HashSet<String>)> {
        let id = *self.served.iter().find(|(_, served)| served.namespace.serial == serial)?.0;
        let users = self.close(id);
        Some((id, users))
    }

    fn close(&mut self, netns: NetnsId) -> HashSet<String> {
        let Some(served) = self.served.remove(&netns) else { return HashSet::new() };
        self.steering.remove(served.namespace.cookie);
        served.namespace.closed.cancel();
        self.count();
        served.users
    }

    fn count(&self) {
        self.metrics.namespaces.set(i64::try_from(self.served.len()).unwrap_or(i64::MAX));
    }
}
