//! What the agent knows of a pod's way to its credentials. What a command can find out by itself is not asked here.
use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{Operator, PodName, PodStatus, Selection, is_selected, name_of, status_of};
use crate::{
    audit::{Audit, Batch, Cursor},
    discovery::{DiscoveryHandle, Listener, Survey},
    pod_uid::PodUid,
    pods::Pod,
    steering::Disturbance,
    vouching::{KubeletTokens, TokenFile},
};

/// Discovery answers between two of its own steps; the longest is to open listeners.
const SURVEYED_WITHIN: Duration = Duration::from_secs(2);

/// Looks at what disturbs the programs for pods of a cgroup.
pub type Inspect = Box<dyn Fn(Option<&Path>) -> Vec<Disturbance> + Send + Sync>;

/// What an operator is shown beside the pods.
pub struct NodeView {
    /// The configuration, as far as it matters to a pod.
    pub facts: NodeFacts,
    /// Where pods and listeners are.
    pub discovery: DiscoveryHandle,
    /// What was granted and refused.
    pub audit: Arc<Audit>,
    /// The kubelet's tokens, if they can be read.
    pub tokens: Option<KubeletTokens>,
    /// What disturbs the programs for pods of this cgroup.
    pub disturbances: Inspect,
}

impl fmt::Debug for NodeView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeView").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl NodeView {
    pub(super) async fn survey(&self) -> Survey {
        timeout(SURVEYED_WITHIN, self.discovery.survey()).await.ok().and_then(Result::ok).unwrap_or_default()
    }
}

/// How the agent is configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// The cluster that EKS Auth is asked for.
    pub cluster_name: String,
    /// Address of EKS Auth, if not the region's.
    pub endpoint: Option<String>,
    /// Target addresses that are steered.
    pub steered: Vec<IpAddr>,
    /// Port of the target addresses.
    pub target_port: u16,
    /// Whether pods of the host network are served.
    pub serves_host_network: bool,
    /// Directory of the kubepods cgroup, as the agent sees it.
    pub kubepods: PathBuf,
    /// The kubelet's root, as the agent sees it.
    pub kubelet_root: PathBuf,
}

/// What the agent knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// Of itself.
    pub node: NodeFacts,
    /// Its listener in the host netns.
    pub host_listener: Option<Listener>,
    /// What disturbs the programs.
    pub disturbances: Vec<Disturbance>,
    /// Pods that the question may mean: one, or none, or several of a name.
    pub candidates: Vec<PodName>,
    /// Of the pod, if it is one.
    pub pod: Option<PodFacts>,
    /// What the kubelet has for the UID that was asked about, when no such pod is known.
    pub unknown_pods_token: Option<TokenFile>,
}

/// What the agent knows of a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodFacts {
    /// As `status` shows it.
    pub status: PodStatus,
    /// Its token.
    pub token: TokenFile,
}

impl Operator {
    /// Everything about the pod that `question` names: a UID, `NAMESPACE/NAME`, or a name alone.
    pub async fn explain(&self, question: &str) -> Explanation {
        let named: Vec<Arc<Pod>> = self.pods.all().into_iter().filter(|pod| is_meant(pod, question)).collect();
        let survey = self.node.survey().await;
        let [pod] = named.as_slice() else {
            let unknown = question.parse::<PodUid>().ok().filter(|_| named.is_empty());
            return Explanation {
                node: self.node.facts.clone(),
                host_listener: survey.host,
                disturbances: (self.node.disturbances)(None),
                candidates: named.iter().map(|pod| name_of(pod)).collect(),
                pod: None,
                unknown_pods_token: unknown.map(|uid| self.token(uid)),
            };
        };
        let place = survey.place(pod.uid()).cloned();
        let cgroup = place.as_ref().map(|place| self.node.facts.kubepods.join(&place.cgroup));
        let status = status_of(pod, place);
        Explanation {
            node: self.node.facts.clone(),
            host_listener: survey.host,
            disturbances: (self.node.disturbances)(cgroup.as_deref()),
            candidates: vec![status.pod.clone()],
            pod: Some(PodFacts { status, token: self.token(pod.uid()) }),
            unknown_pods_token: None,
        }
    }

    /// What was granted and refused from `cursor` on.
    #[must_use]
    pub fn audit(&self, cursor: Cursor) -> Batch {
        self.node.audit.read(cursor)
    }

    fn token(&self, uid: PodUid) -> TokenFile {
        self.node.tokens.as_ref().map_or(TokenFile::NoKubelet, |tokens| tokens.look(uid))
    }
}

fn is_meant(pod: &Pod, question: &str) -> bool {
    let named = || pod.credentials().subject().and_then(|subject| subject.pod_name.as_deref());
    is_selected(pod, &Selection::Pod(question.to_owned())) || named() == Some(question)
}
