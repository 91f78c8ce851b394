//! The node's pods: what the kubelet has against what is below the kubepods cgroup.
use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use procfs::process::{MountInfo, MountOptFields, Process};

use crate::{
    cgroup::{
        kubepods::Kubepods,
        path::{Owner, Placement},
    },
    commands::checks::{Check, Verdict},
    kubelet::TokenFiles,
    pod_uid::PodUid,
};

/// Pods named in one line.
const NAMED: usize = 5;

pub(super) fn all(kubelet_root: &Path, kubepods: Option<&Kubepods>) -> Vec<Check> {
    let seen = kubepods.map(Seen::of);
    vec![
        propagation(kubelet_root),
        below_the_root(kubelet_root, seen.as_ref()),
        host_pid(seen.as_ref()),
        host_network(seen.as_ref()),
    ]
}

/// What is below the kubepods cgroup.
#[derive(Debug, Default)]
struct Seen {
    pods: HashSet<PodUid>,
    processes: usize,
    /// Processes that this PID namespace does not have.
    hidden: usize,
}

impl Seen {
    fn of(kubepods: &Kubepods) -> Self {
        let mut seen = Self::default();
        let root = kubepods.directory();
        let mut pending = vec![PathBuf::new()];
        while let Some(path) = pending.pop() {
            let Some(text) = path.to_str() else { continue };
            let placement = kubepods.driver().place(text);
            if let Placement::Pod(pod) = &placement {
                if let Owner::Pod(uid) = pod.owner {
                    seen.pods.insert(uid);
                }
                seen.count(&root.join(&path));
            }
            // A container's own cgroups, further below, are its business.
            if path.components().count() < 3 && placement != Placement::Foreign {
                pending.extend(children(&root.join(&path)).into_iter().map(|name| path.join(name)));
            }
        }
        seen
    }

    fn count(&mut self, cgroup: &Path) {
        let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines() {
            if pid == "0" { self.hidden += 1 } else { self.processes += 1 }
        }
    }
}

fn children(cgroup: &Path) -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().filter_map(Result::ok);
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.file_name()).collect()
}

/// A token volume is a mount that comes after the agent: without propagation the agent sees an empty directory, and is told
/// nothing.
fn propagation(kubelet_root: &Path) -> Check {
    const STEP: &str = "propagation";
    let pods = match kubelet_root.join("pods").canonicalize() {
        Ok(pods) => pods,
        Err(error) => {
            let finding = format!("{}: {error}", kubelet_root.join("pods").display());
            let remedy = "mount the kubelet's directory into the container, or name it with --kubelet-root; without it \
                          credentials are fetched only when pods ask";
            return Check::new(Verdict::Warn, STEP, finding, remedy);
        }
    };
    let mounts = Process::myself().and_then(|process| process.mountinfo()).map(|mounts| mounts.0).unwrap_or_default();
    let on = mounts.iter().filter(|mount| pods.starts_with(&mount.mount_point));
    let Some(mount) = on.max_by_key(|mount| mount.mount_point.as_os_str().len()) else {
        return Check::not_known(STEP, "the mount table cannot be read", "mount /proc");
    };
    let place = mount.mount_point.display();
    if receives(mount) || same_namespace("mnt") == Some(true) {
        Check::ok(STEP, format!("the kubelet's later mounts appear on {place}"))
    } else {
        let finding =
            format!("mounts that the kubelet makes later do not appear on {place}: tokens of new pods stay unseen");
        Check::new(Verdict::Fail, STEP, finding, "mount it with mountPropagation: HostToContainer")
    }
}

fn receives(mount: &MountInfo) -> bool {
    let receives = |option: &MountOptFields| matches!(option, MountOptFields::Master(_) | MountOptFields::Shared(_));
    mount.opt_fields.iter().any(receives)
}

/// Whether this process and the first one that it can see are in the same namespace of this kind.
fn same_namespace(kind: &str) -> Option<bool> {
    let of = |process: &str| fs::metadata(format!("/proc/{process}/ns/{kind}")).map(|file| (file.dev(), file.ino()));
    Some(of("self").ok()? == of("1").ok()?)
}

fn below_the_root(kubelet_root: &Path, seen: Option<&Seen>) -> Check {
    const STEP: &str = "pods";
    let Some(seen) = seen else {
        return Check::not_known(STEP, "without a kubepods cgroup there is nothing to compare", "");
    };
    let files = match TokenFiles::open(kubelet_root) {
        Ok(files) => files,
        Err(error) => return Check::not_known(STEP, error.to_string(), ""),
    };
    // The kubelet's directories outlive their pods, the tokens in them do not.
    let live = |uid: &PodUid| matches!(files.read(*uid), Ok(Some(_)));
    let with_token: Vec<PodUid> = files.pods().unwrap_or_default().into_iter().filter(live).collect();
    let mut outside: Vec<String> =
        with_token.iter().filter(|uid| !seen.pods.contains(uid)).map(ToString::to_string).collect();
    if outside.is_empty() {
        let finding =
            format!("{} pods have cgroups; all {} with an EKS token are among them", seen.pods.len(), with_token.len());
        return Check::ok(STEP, finding);
    }
    outside.sort_unstable();
    let count = outside.len();
    outside.truncate(NAMED);
    let finding = format!(
        "{count} of {} pods with an EKS token have no cgroup below the kubepods cgroup, so they are not served: {}{}",
        with_token.len(),
        outside.join(", "),
        if count > NAMED { ", …" } else { "" }
    );
    Check::new(
        Verdict::Fail,
        STEP,
        finding,
        "name the cgroup that holds all pods with --kubepods-cgroup (the kubelet's --cgroup-root)",
    )
}

fn host_pid(seen: Option<&Seen>) -> Check {
    const STEP: &str = "host_pid";
    match seen {
        Some(seen) if seen.hidden > 0 => {
            let finding =
                format!("{} processes of pods are in a PID namespace that cannot be seen from here", seen.hidden);
            Check::new(Verdict::Fail, STEP, finding, "set hostPID: true")
        }
        Some(seen) if seen.processes > 0 => {
            Check::ok(STEP, format!("{} processes of pods can be seen", seen.processes))
        }
        _ => Check::not_known(STEP, "no pod has a process to look for", ""),
    }
}

fn host_network(seen: Option<&Seen>) -> Check {
    const STEP: &str = "host_network";
    // Without the host's PID namespace process 1 is the container's own.
    if seen.is_some_and(|seen| seen.hidden > 0) {
        return Check::not_known(STEP, "process 1 is not the node's", "set hostPID: true");
    }
    match same_namespace("net") {
        Some(true) => Check::ok(STEP, "this is the node's network namespace, as process 1 has it"),
        Some(false) => Check::new(
            Verdict::Warn,
            STEP,
            "this is not the network namespace of process 1: an agent that runs here takes its own for the node's, and \
             does not serve pods of the host network",
            "set hostNetwork: true",
        ),
        None => Check::not_known(
            STEP,
            "the network namespace of process 1 cannot be seen",
            "run this as root, with hostPID",
        ),
    }
}
