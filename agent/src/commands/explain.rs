//! `explain`: why a pod has, or has no, credentials. The agent tells what it knows; the rest is seen from here, with the
//! rights of whoever runs the command in the agent's container: the agent itself never reads environments.
use std::{fs, path::Path};

use serde::Serialize;

use super::{
    AT_ONCE, CommandError,
    checks::{self, Check},
    good,
};
use crate::{
    admin::client,
    operator::{Explanation, PodName},
    pod_uid::PodUid,
};

mod processes;
mod remedies;
mod steps;

pub(super) use steps::steering;

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Explained {
    /// Which pod.
    pub(super) pod: PodName,
    /// Whether no step is a problem.
    pub(super) good: bool,
    /// In the order of a request's way.
    pub(super) steps: Vec<Check>,
}

/// Walks the way of the pod that has this UID, name or process.
pub(super) fn run(run_dir: &Path, question: &str) -> Result<Explained, CommandError> {
    // The environments that are read hold secrets: no core file of this process, whatever becomes of it.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let asked = match question.parse::<u32>() {
        Ok(pid) => uid_of_process(pid)?.to_string(),
        Err(_) => question.to_owned(),
    };
    let body = good(client::ask(run_dir, "/explain", Some(&serde_json::to_string(&asked)?), AT_ONCE)?)?;
    let explanation: Explanation = serde_json::from_str(&body)?;
    let (pod, steps) = match (&explanation.pod, explanation.candidates.as_slice()) {
        (Some(facts), _) => {
            let cgroup = facts.status.place.as_ref().map(|place| explanation.node.kubepods.join(&place.cgroup));
            let processes = match &cgroup {
                Some(cgroup) => processes::of_cgroup(cgroup)
                    .map_err(|error| format!("the pod's processes cannot be listed in {}: {error}", cgroup.display())),
                None => Ok(Vec::new()),
            };
            let steps = steps::all(&explanation, facts, processes.as_deref().map_err(Clone::clone));
            (facts.status.pod.clone(), steps)
        }
        (None, []) => match asked.parse::<PodUid>() {
            Ok(uid) => (PodName { uid: uid.to_string(), ..PodName::default() }, unknown(&explanation)),
            // A name is known from a token only.
            Err(_) => return Err(CommandError::NoSuchName(asked)),
        },
        (None, several) => {
            return Err(CommandError::Ambiguous(
                several.iter().map(|pod| pod.uid.clone()).collect::<Vec<_>>().join(", "),
            ));
        }
    };
    Ok(Explained { pod, good: checks::all_good(&steps), steps })
}

/// A pod that the agent has never seen.
fn unknown(explanation: &Explanation) -> Vec<Check> {
    let kubepods = explanation.node.kubepods.display();
    let pod = Check::problem(
        "pod",
        format!("the agent knows no such pod: there is no cgroup of it below {kubepods}"),
        "see that the pod runs on this node; if it does, the agent is attached to the wrong cgroup (--kubepods-cgroup)",
    );
    let volume = explanation.unknown_pods_token.as_ref().map(steps::volume);
    [pod].into_iter().chain(volume).collect()
}

/// The pod of a process, by the first segment of its cgroup's path that names one: a pod can name cgroups below its own.
fn uid_of_process(pid: u32) -> Result<PodUid, CommandError> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|error| CommandError::NoProcess { pid, error })?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    path.split('/').find_map(uid_of_cgroup).ok_or(CommandError::NotInAPod(pid))
}

fn uid_of_cgroup(name: &str) -> Option<PodUid> {
    match name.strip_suffix(".slice") {
        Some(slice) => PodUid::from_systemd(slice.rsplit_once("-pod")?.1).ok(),
        None => name.strip_prefix("pod")?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_its_cgroups_pod_whichever_driver_named_it() {
        let uid = "6a4d7b1e-0c7b-4b43-9f0e-1d6f3b1f2a77";
        for name in [
            "pod6a4d7b1e-0c7b-4b43-9f0e-1d6f3b1f2a77",
            "kubepods-pod6a4d7b1e_0c7b_4b43_9f0e_1d6f3b1f2a77.slice",
            "kubelet-kubepods-burstable-pod6a4d7b1e_0c7b_4b43_9f0e_1d6f3b1f2a77.slice",
        ] {
            assert_eq!(uid_of_cgroup(name).map(|uid| uid.to_string()).as_deref(), Some(uid), "{name}");
        }
        for name in ["kubepods.slice", "kubepods-burstable.slice", "podium", "init.scope"] {
            assert_eq!(uid_of_cgroup(name), None, "{name}");
        }
    }
}
