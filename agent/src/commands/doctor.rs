//! `doctor`: whether this node, and this container on it, let the agent work. Runs beside an agent or without one, and
//! changes nothing.
use std::{
    ops::RangeInclusive,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use super::{
    AT_ONCE,
    checks::{self, Check, Verdict},
};
use crate::{
    admin::client,
    cgroup::kubepods::Kubepods,
    confinement::{Confinement, Seccomp},
    eks_auth::{EksAuth, EksAuthSettings, Names},
    operator::{Explanation, Status},
    sys,
};

mod aws;
mod kernel;
mod pods;

/// Where to look: the agent's flags, and where they are not given, what the running agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Where {
    /// Directory of the admin socket.
    pub run_dir: PathBuf,
    /// The kubelet's root.
    pub kubelet_root: Option<PathBuf>,
    /// The kubepods cgroup, if it is not found by itself.
    pub kubepods_cgroup: Option<PathBuf>,
    /// Ports of which the first free one is listened on.
    pub listener_ports: RangeInclusive<u16>,
    /// Name of the cluster.
    pub cluster_name: Option<String>,
    /// Address of EKS Auth.
    pub endpoint: Option<String>,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Examination {
    /// Whether nothing failed.
    pub(super) good: bool,
    /// From the kernel upwards.
    pub(super) checks: Vec<Check>,
}

/// Looks at everything.
pub(super) fn run(place: &Where) -> Examination {
    let agent = Agent::ask(place);
    let mut checks = vec![agent.check(), kernel::version(), kernel::capabilities(&place.listener_ports)];
    checks.extend([kernel::sockets(), kernel::cgroup_mount()]);
    let kubepods = match place.kubepods_cgroup.as_deref().or(agent.kubepods()) {
        Some(directory) => Kubepods::given(directory),
        None => Kubepods::find(),
    };
    checks.push(kernel::kubepods(&kubepods));
    checks.extend(agent.steering());
    let kubelet_root = place.kubelet_root.clone().or_else(|| agent.kubelet_root()).unwrap_or_else(default_kubelet_root);
    checks.extend(pods::all(&kubelet_root, kubepods.as_ref().ok()));
    checks.extend(aws::all(place, &agent));
    Examination { good: checks::all_good(&checks), checks }
}

fn default_kubelet_root() -> PathBuf {
    "/var/lib/kubelet".into()
}

/// The running agent's own word, if one answers.
struct Agent {
    explanation: Result<Explanation, String>,
    status: Option<Status>,
}

impl Agent {
    fn ask(place: &Where) -> Self {
        let ask = |path, body| match client::ask(&place.run_dir, path, body, AT_ONCE) {
            Ok(answer) if answer.status == 200 => Ok(answer.body),
            Ok(answer) => Err(answer.body.trim_end().to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let explanation = ask("/explain", Some("\"\""));
        let explanation = explanation.and_then(|body| serde_json::from_str(&body).map_err(|error| error.to_string()));
        let status = ask("/status", None).ok().and_then(|body| serde_json::from_str(&body).ok());
        Self { explanation, status }
    }

    fn check(&self) -> Check {
        const STEP: &str = "agent";
        match (&self.explanation, &self.status) {
            (Ok(_), Some(status)) => {
                let version = &status.version;
                Check::ok(STEP, format!("version {version} runs and knows {} pods", status.pods.len()))
            }
            (Err(error), _) => Check::new(
                Verdict::Warn,
                STEP,
                error.clone(),
                "start it, or read on: what can be told without it follows",
            ),
            (Ok(_), None) => Check::new(Verdict::Warn, STEP, "the agent does not tell its pods", "see its log"),
        }
    }

    fn node(&self) -> Option<&crate::operator::NodeFacts> {
        self.explanation.as_ref().ok().map(|explanation| &explanation.node)
    }

    fn kubepods(&self) -> Option<&std::path::Path> {
        self.node().map(|node| node.kubepods.as_path())
    }

    fn kubelet_root(&self) -> Option<PathBuf> {
        self.node().map(|node| node.kubelet_root.clone())
    }

    fn steering(&self) -> Option<Check> {
        let explanation = self.explanation.as_ref().ok()?;
        let check = super::explain::steering(explanation);
        let verdict = if check.verdict == Verdict::Problem { Verdict::Fail } else { check.verdict };
        Some(Check { verdict, ..check })
    }
}
