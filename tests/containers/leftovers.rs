//! The harness itself: a containerd that is killed in the middle of everything takes all along.
use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{containers::Containerd, process::eventually};

use crate::common::node;

/// What is named in lines of this file of this process.
fn named_in(file: &str, name: &str) -> Result<Vec<String>> {
    Ok(fs::read_to_string(file)?.lines().filter(|line| line.contains(name)).map(str::to_owned).collect())
}

/// Directories of this name in any cgroup hierarchy.
fn cgroups(name: &str) -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let hierarchies =
        mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    Ok(hierarchies.map(|mount| format!("{mount}/{name}")).filter(|dir| Path::new(dir).exists()).collect())
}

#[test]
fn nothing_is_left_of_a_containerd_that_is_killed() -> Result<()> {
    let node = node()?;
    let runtime = Containerd::start(&node)?;
    let pods = [runtime.pod(&node, "one")?, runtime.host_network_pod(&node, "two")?];
    let mut processes = Vec::new();
    for pod in &pods {
        for container in pod.containers() {
            processes.extend(pod.processes_of(container)?);
        }
    }
    ensure!(processes.len() == 2, "{processes:?}");
    let dir = node.dir().to_owned();
    let name = dir.file_name().and_then(|name| name.to_str()).context("a node's directory has a name")?;
    ensure!(!cgroups(name)?.is_empty() && !named_in("/proc/self/mountinfo", name)?.is_empty(), "nothing to look for");
    drop(pods);
    drop(runtime);
    eventually("its containers to end", Duration::from_secs(5), || {
        // A zombie is nobody's burden, and for its parent to reap.
        let runs = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok();
        Ok((!processes.iter().any(runs)).then_some(()))
    })?;
    drop(node);
    ensure!(cgroups(name)?.is_empty(), "{:?}", cgroups(name)?);
    ensure!(named_in("/proc/self/mountinfo", name)?.is_empty(), "mounts are left");
    ensure!(!dir.exists(), "{} is left", dir.display());
    Ok(())
}
