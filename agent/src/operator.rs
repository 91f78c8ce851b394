//! What an operator sees of the pods' credentials, and may do about them. No secret passes here.
use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

use crate::{
    credentials::{self, Flushed, State, Subject},
    discovery::Place,
    pod_uid::PodUid,
    pods::{Pod, Pods},
    refusal::Refusal,
};

mod explanation;
#[cfg(test)]
mod tests;

pub use explanation::{Explanation, Inspect, NodeFacts, NodeView, PodFacts};

/// An operator who flushes is told after this time what has become of it so far; fetches go on.
const FLUSHED_WITHIN: Duration = Duration::from_secs(20);

/// Which pods are meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// One, by its UID or as `NAMESPACE/NAME`.
    Pod(String),
    /// All of a service account, as `NAMESPACE/NAME`.
    ServiceAccount(String),
    /// All of this node.
    All,
}

/// The node's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// By namespace and name; those that no token has named yet come last, by UID.
    pub pods: Vec<PodStatus>,
}

/// A pod's name, as far as its token has told it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodName {
    /// Namespace.
    pub namespace: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// Service account.
    pub service_account: Option<String>,
    /// UID.
    pub uid: String,
}

/// A pod's credentials. Instants are RFC 3339, UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Whose they are.
    #[serde(flatten)]
    pub pod: PodName,
    /// What there is.
    pub state: PodState,
    /// What is served.
    pub credentials: Option<Served>,
    /// When the pod last asked; none if it never did.
    pub last_request: Option<String>,
    /// Why the last fetch or renewal failed.
    pub last_failure: Option<Failure>,
    /// What one of the pod's callers was refused for last.
    pub last_refusal: Option<RefusedAt>,
    /// Where it is; none if it ended just now.
    #[serde(flatten)]
    pub place: Option<Place>,
}

/// A refusal and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedAt {
    /// When.
    pub at: String,
    /// What for.
    #[serde(flatten)]
    pub failure: Failure,
}

/// What a pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodState {
    /// Nothing; the pod's next request fetches.
    Empty,
    /// Valid credentials.
    Available,
    /// Nothing, and the last fetch failed.
    Unavailable,
    /// The pod has ended.
    Ended,
}

/// What is served to a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Names the credentials in CloudTrail.
    pub access_key_id: String,
    /// The association they come from.
    pub association_id: String,
    /// When they were fetched.
    pub issued_at: String,
    /// When they expire.
    pub expires_at: String,
    /// When they are renewed; none if the pod did not ask for so long that its next request fetches.
    pub renew_at: Option<String>,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its name in metrics and logs.
    pub reason: String,
    /// EKS Auth's name for it, where it has one (`ResourceNotFoundException`); else the reason again.
    pub code: String,
    /// What the pod is told.
    pub message: String,
}

/// What a flush did for one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushedPod {
    /// Which.
    #[serde(flatten)]
    pub pod: PodName,
    /// How it ended.
    pub outcome: FlushOutcome,
    /// When the new credentials expire.
    pub expires_at: Option<String>,
    /// Why there are none.
    pub failure: Option<Failure>,
}

/// How a flush ended for one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlushOutcome {
    /// New credentials are served.
    Renewed,
    /// EKS Auth refuses the pod; what was served is given up.
    Refused,
    /// EKS Auth could not be asked; what is valid is served until it expires.
    Kept,
    /// Nothing was served; the pod's next request fetches.
    Nothing,
    /// The pod has ended.
    Ended,
    /// It is still under way.
    Pending,
}

/// An operator's view of the pods.
#[derive(Clone)]
pub struct Operator {
    pods: Arc<Pods>,
    node: Arc<NodeView>,
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator").finish_non_exhaustive()
    }
}

impl Operator {
    /// Sees these.
    #[must_use]
    pub fn new(pods: Arc<Pods>, node: NodeView) -> Self {
        Self { pods, node: Arc::new(node) }
    }

    /// All pods now.
    pub async fn status(&self) -> Status {
        let places: HashMap<PodUid, Place> = self.node.survey().await.pods.into_iter().collect();
        let status = |pod: &Arc<Pod>| status_of(pod, places.get(&pod.uid()).cloned());
        let mut pods: Vec<PodStatus> = self.pods.all().iter().map(status).collect();
        pods.sort_by_cached_key(|status| (status.pod.namespace.is_none(), status.pod.clone()));
        Status { version: env!("CARGO_PKG_VERSION").to_owned(), pods }
    }

    /// Has credentials fetched anew for the selected pods; empty if there is none. Takes 20 s at most.
    pub async fn flush(&self, selection: &Selection) -> Vec<FlushedPod> {
        let until = Instant::now() + FLUSHED_WITHIN;
        let mut tasks = JoinSet::new();
        for pod in self.pods.all().into_iter().filter(|pod| is_selected(pod, selection)) {
            // A task for each, which goes on when this operator hangs up.
            tasks.spawn(async move {
                let outcome = timeout_at(until, pod.credentials().flush()).await.ok();
                flushed_pod(name_of(&pod), outcome)
            });
        }
        let mut flushed = tasks.join_all().await;
        flushed.sort_by(|one, other| one.pod.cmp(&other.pod));
        tracing::info!(?selection, pods = flushed.len(), "an operator had credentials fetched anew");
        flushed
    }
}

fn is_selected(pod: &Pod, selection: &Selection) -> bool {
    let subject = pod.credentials().subject();
    let named = |name: &dyn Fn(&Subject) -> Option<String>, text: &str| subject.and_then(name).as_deref() == Some(text);
    match selection {
        Selection::All => true,
        Selection::Pod(text) => match text.parse::<PodUid>() {
            Ok(uid) => pod.uid() == uid,
            Err(_) => named(&|s| s.pod_name.as_ref().map(|name| format!("{}/{name}", s.namespace)), text),
        },
        Selection::ServiceAccount(text) => named(&|s| Some(format!("{}/{}", s.namespace, s.service_account)), text),
    }
}

fn name_of(pod: &Pod) -> PodName {
    let uid = pod.uid().to_string();
    let Some(Subject { namespace, pod_name, service_account }) = pod.credentials().subject() else {
        return PodName { uid, ..PodName::default() };
    };
    PodName {
        namespace: Some(namespace.to_string()),
        name: pod_name.as_ref().map(ToString::to_string),
        service_account: Some(service_account.to_string()),
        uid,
    }
}

fn status_of(pod: &Pod, place: Option<Place>) -> PodStatus {
    let (state, credentials, last_failure) = match &*pod.credentials().state() {
        State::Empty => (PodState::Empty, None, None),
        State::Ended => (PodState::Ended, None, None),
        State::Unavailable(refusal) => (PodState::Unavailable, None, Some(failure(refusal))),
        State::Available { issued, renew_at, renewal_failed, .. } => {
            let served = Served {
                access_key_id: issued.access_key_id.clone(),
                association_id: issued.association_id.clone(),
                issued_at: credentials::written(issued.issued_at).unwrap_or_default(),
                expires_at: credentials::written(issued.expires_at).unwrap_or_default(),
                renew_at: credentials::written(*renew_at),
            };
            (PodState::Available, Some(served), renewal_failed.as_ref().map(failure))
        }
    };
    let last_request = pod.credentials().last_use().and_then(credentials::written);
    let last_refusal = pod.last_refusal().map(|(at, refusal)| RefusedAt {
        at: credentials::written(at).unwrap_or_default(),
        failure: failure(&refusal),
    });
    PodStatus { pod: name_of(pod), state, credentials, last_request, last_failure, last_refusal, place }
}

fn flushed_pod(pod: PodName, flushed: Option<Flushed>) -> FlushedPod {
    let (outcome, expires_at, failure) = match flushed {
        None => (FlushOutcome::Pending, None, None),
        Some(Flushed::Renewed(issued)) => (FlushOutcome::Renewed, credentials::written(issued.expires_at), None),
        Some(Flushed::Refused(refusal)) => (FlushOutcome::Refused, None, Some(failure(&refusal))),
        Some(Flushed::Kept(refusal)) => (FlushOutcome::Kept, None, Some(failure(&refusal))),
        Some(Flushed::TokenUnreadable) => {
            let reason = "token_unreadable".to_owned();
            let message = "the pod's token file cannot be read".to_owned();
            (FlushOutcome::Kept, None, Some(Failure { code: reason.clone(), reason, message }))
        }
        Some(Flushed::Nothing) => (FlushOutcome::Nothing, None, None),
        Some(Flushed::Ended) => (FlushOutcome::Ended, None, None),
    };
    FlushedPod { pod, outcome, expires_at, failure }
}

fn failure(refusal: &Refusal) -> Failure {
    Failure { reason: refusal.reason().to_owned(), code: refusal.code().to_owned(), message: refusal.message() }
}
