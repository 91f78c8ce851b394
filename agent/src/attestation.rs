//! Proves from kernel facts which pod is at the other end of a connection.
//!
//! Every connection is attested once, when it is accepted. The proof is the [`Caller`]: it has private fields and is
//! made nowhere else.
use std::{
    collections::HashMap,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use tokio::time::timeout;

use crate::{
    cgroup::{
        CgroupId,
        mount::ResolveError,
        path::{ContainerId, Owner, Placement, PodCgroup},
        resolver::CgroupResolver,
    },
    discovery::{DiscoveryHandle, Stopped},
    namespace::Namespace,
    pod_uid::PodUid,
    pods::{Pod, Pods},
    refusal::Refusal,
    sys,
    telemetry::{RateLimiter, Verdict},
};

pub mod diag;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

use diag::{DiagError, SocketInfo};

/// TCP states (`include/net/tcp_states.h`).
pub(crate) const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
pub(crate) const CLOSE_WAIT: u8 = 8;

/// Cgroups whose pod is remembered. A pod can make cgroups without end: when the table is full it is emptied, which
/// costs each a look-up of 5 µs.
const REMEMBERED_CGROUPS: usize = 8192;

/// How long discovery may take to adopt a pod that connects before it was seen. With the 0.9 s within which a request is
/// answered it makes the second after which the least patient SDKs hang up.
const ADOPTION_TIMEOUT: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection, proven.
#[derive(Clone, Debug)]
pub struct Caller {
    pod: Arc<Pod>,
    container: Option<ContainerId>,
    cgroup: CgroupId,
    user: u32,
}

impl Caller {
    /// The pod in which the calling socket was made.
    #[must_use]
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// The container, where the cgroup names one.
    #[must_use]
    pub fn container(&self) -> Option<ContainerId> {
        self.container
    }

    /// The cgroup in which the socket was made.
    #[must_use]
    pub fn cgroup(&self) -> CgroupId {
        self.cgroup
    }

    /// The user id that owns the socket, as the initial user namespace numbers it.
    #[must_use]
    pub fn user(&self) -> u32 {
        self.user
    }
}

/// What is known about a caller that is nobody's, for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The cgroup in which the socket was made.
    pub cgroup: Option<CgroupId>,
    /// The user id that owns the socket.
    pub user: Option<u32>,
    /// The pod that the cgroup names.
    pub pod: Option<PodUid>,
    /// The container that the cgroup names.
    pub container: Option<ContainerId>,
}

impl From<&Caller> for Evidence {
    fn from(caller: &Caller) -> Self {
        Self {
            cgroup: Some(caller.cgroup),
            user: Some(caller.user),
            pod: Some(caller.pod.uid()),
            container: caller.container,
        }
    }
}

/// Why a connection has no caller.
#[derive(Debug)]
pub enum Unattested {
    /// The caller is told so.
    Refused(Refusal, Evidence),
    /// Nobody may read from the connection: by now its 4-tuple may be somebody else's.
    Drop,
}

/// Cgroups whose pod was resolved before. Ids are never used twice, so an entry is never wrong.
type KnownCgroups = HashMap<CgroupId, (Weak<Pod>, Option<ContainerId>)>;

/// The addresses of an accepted socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The caller's.
    pub peer: SocketAddr,
    /// The listener's.
    pub local: SocketAddr,
}

/// Attests callers.
pub struct Attestor {
    cgroups: CgroupResolver,
    pods: Arc<Pods>,
    discovery: DiscoveryHandle,
    serve_host_network: bool,
    known: Mutex<KnownCgroups>,
    failures: Mutex<RateLimiter<()>>,
}

impl Attestor {
    /// `serve_host_network` says whether pods in the host netns get credentials.
    #[must_use]
    pub fn new(cgroups: CgroupResolver, pods: Arc<Pods>, discovery: DiscoveryHandle, serve_host_network: bool) -> Self {
        Self {
            cgroups,
            pods,
            discovery,
            serve_host_network,
            known: Mutex::default(),
            failures: Mutex::new(RateLimiter::new(5, Duration::from_secs(10), 1)),
        }
    }

    /// The pod, if it is known.
    #[must_use]
    pub fn pod(&self, uid: PodUid) -> Option<Arc<Pod>> {
        self.pods.get(uid)
    }

    /// Attests the other end of a connection that a listener of `namespace` accepted.
    pub async fn attest(
        &self,
        namespace: &Namespace,
        accepted: impl AsFd,
        Ends { peer, local }: Ends,
    ) -> Result<Caller, Unattested> {
        // Without evidence: a socket that does not pass the check may be anybody's, and nobody is to be blamed for it.
        let nobody = |refusal| Unattested::Refused(refusal, Evidence::default());
        let info = namespace.diag.lookup(peer, local).map_err(|error| nobody(self.unanswered(&error)))?;
        let cgroup = check(&info, peer, local).map_err(nobody)?;
        let mut evidence = Evidence { cgroup: Some(cgroup), user: Some(info.uid), ..Evidence::default() };
        // After the look-up, not before: a second socket, bound to the loopback device, can take over this 4-tuple,
        // but only once the accepted socket has died. As long as that lives, the answer was about its peer. The same goes
        // for a caller that resets its connection and leaves the port to somebody else before this is reached.
        match sys::tcp_state(accepted) {
            Ok(ESTABLISHED | CLOSE_WAIT) => {}
            Ok(_) | Err(_) => return Err(Unattested::Drop),
        }
        let resolved = self.resolve(cgroup, &mut evidence).await;
        let (pod, container) = resolved.map_err(|refusal| Unattested::Refused(refusal, evidence))?;
        if namespace.is_host && !self.serve_host_network {
            return Err(Unattested::Refused(Refusal::HostNetworkPod, evidence));
        }
        Ok(Caller { pod, container, cgroup, user: info.uid })
    }

    /// The living pod that a cgroup belongs to.
    async fn resolve(
        &self,
        cgroup: CgroupId,
        evidence: &mut Evidence,
    ) -> Result<(Arc<Pod>, Option<ContainerId>), Refusal> {
        if let Some((pod, container)) = self.recall(cgroup) {
            (evidence.pod, evidence.container) = (Some(pod.uid()), container);
            return if pod.is_alive() { Ok((pod, container)) } else { Err(Refusal::PodGone) };
        }
        let located = self.cgroups.locate(cgroup).await.map_err(|error| self.not_carried_out(&error))?;
        let (path, placement) = match located {
            Ok(Some(found)) => found,
            Ok(None) => return Err(Refusal::NotAPod),
            Err(ResolveError::Gone) => return Err(Refusal::PodGone),
            Err(error) => return Err(self.not_carried_out(&error)),
        };
        let (uid, placed) = match placement {
            Placement::Above | Placement::Foreign => return Err(Refusal::NotAPod),
            Placement::Pod(PodCgroup { owner: Owner::Static, .. }) => return Err(Refusal::StaticPod),
            Placement::Pod(placed @ PodCgroup { owner: Owner::Pod(uid), .. }) => (uid, placed),
        };
        (evidence.pod, evidence.container) = (Some(uid), placed.container);
        let pod = if let Some(pod) = self.pods.get(uid) {
            pod
        } else {
            // It connected before discovery saw its cgroup: discovery is the only one who may add it.
            let adopted = self.discovery.adopt(placed.pod_path(&path).to_owned(), uid);
            match timeout(ADOPTION_TIMEOUT, adopted).await {
                Ok(Ok(Some(pod))) => pod,
                Ok(Ok(None)) => return Err(Refusal::PodGone),
                // Discovery is busy or ending: nothing is known about the pod, and another try may tell.
                Ok(Err(Stopped)) | Err(_) => return Err(Refusal::AttestationFailed),
            }
        };
        if !pod.is_alive() {
            return Err(Refusal::PodGone);
        }
        self.remember(cgroup, &pod, placed.container);
        Ok((pod, placed.container))
    }

    fn unanswered(&self, error: &DiagError) -> Refusal {
        match error {
            DiagError::NotFound => Refusal::UnknownSocket,
            DiagError::Failed(_) | DiagError::Malformed(_) => self.not_carried_out(error),
        }
    }

    /// Logs what kept an attestation from being carried out, at a limited rate: callers may be able to cause it.
    fn not_carried_out(&self, error: &dyn std::error::Error) -> Refusal {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if let Verdict::Log { suppressed } = failures.admit((), Instant::now()) {
            tracing::error!(%error, suppressed, "cannot attest a caller");
        }
        Refusal::AttestationFailed
    }

    fn recall(&self, cgroup: CgroupId) -> Option<(Arc<Pod>, Option<ContainerId>)> {
        let known = self.known();
        let (pod, container) = known.get(&cgroup)?;
        Some((pod.upgrade()?, *container))
    }

    fn remember(&self, cgroup: CgroupId, pod: &Arc<Pod>, container: Option<ContainerId>) {
        let mut known = self.known();
        if known.len() >= REMEMBERED_CGROUPS {
            known.retain(|_, (pod, _)| pod.upgrade().is_some_and(|pod| pod.is_alive()));
            if known.len() >= REMEMBERED_CGROUPS {
                known.clear();
            }
        }
        known.insert(cgroup, (Arc::downgrade(pod), container));
    }

    fn known(&self) -> MutexGuard<'_, KnownCgroups> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the answer is about the peer of the accepted socket, and says which cgroup it was made in.
fn check(info: &SocketInfo, peer: SocketAddr, local: SocketAddr) -> Result<CgroupId, Refusal> {
    // The kernel's look-up falls back to listeners, which have other addresses than were asked for. The next check refuses
    // those too: what the kernel says itself is the socket of the whole 4-tuple (`__inet_lookup_established`) or else a
    // listener, also where an sk_lookup program chose it. This one is what an answer to another question fails on.
    if (info.local, info.peer) != (peer, local) {
        return Err(Refusal::UnknownSocket);
    }
    // Half-open sockets are refused: whoever may translate addresses in this namespace could aim at one; and with 64 ns of
    // luck (initial sequence numbers follow a clock) a second socket on the 4-tuple stays half open without breaking the
    // accepted one. Who may translate could also divert somebody's connection to themselves and aim at its established
    // socket: CAP_NET_ADMIN over the host netns reads and rewrites all of its loopback in any case (SECURITY.md).
    if !matches!(info.state, ESTABLISHED | FIN_WAIT1 | FIN_WAIT2) {
        return Err(Refusal::UnknownSocket);
    }
    // A socket that waits out its time has no cgroup; neither must ever read as cgroup 0.
    info.cgroup.ok_or(Refusal::UnknownSocket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> SocketInfo {
        SocketInfo { local: client(), peer: server(), state: ESTABLISHED, cgroup: Some(CgroupId(7)), uid: 0 }
    }

    fn client() -> SocketAddr {
        "127.0.0.1:40000".parse().unwrap()
    }

    fn server() -> SocketAddr {
        "127.0.0.1:706".parse().unwrap()
    }

    #[test]
    fn a_connected_socket_with_a_cgroup_is_the_caller() {
        for state in [ESTABLISHED, FIN_WAIT1, FIN_WAIT2] {
            assert_eq!(check(&SocketInfo { state, ..info() }, client(), server()), Ok(CgroupId(7)));
        }
    }

    #[test]
    fn every_other_state_is_refused() {
        for state in (0..=13).filter(|s| ![ESTABLISHED, FIN_WAIT1, FIN_WAIT2].contains(s)) {
            let answer = check(&SocketInfo { state, ..info() }, client(), server());
            assert_eq!(answer, Err(Refusal::UnknownSocket), "{state}");
        }
    }

    #[test]
    fn an_answer_about_another_socket_is_refused() {
        let other: SocketAddr = "127.0.0.1:1".parse().unwrap();
        for info in [SocketInfo { local: other, ..info() }, SocketInfo { peer: other, ..info() }] {
            assert_eq!(check(&info, client(), server()), Err(Refusal::UnknownSocket));
        }
    }

    #[test]
    fn an_answer_without_a_cgroup_is_refused() {
        let answer = check(&SocketInfo { cgroup: None, ..info() }, client(), server());
        assert_eq!(answer, Err(Refusal::UnknownSocket));
    }
}
