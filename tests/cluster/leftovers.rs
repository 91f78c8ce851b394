//! The harness itself: a cluster that ends in the middle of everything leaves the machine as it was.
use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    cgroup::{mount_point, v1_mounts},
    cluster::APP,
};

use crate::world::{READER, SHOP, World};

/// What a kubelet would set, or make, outside of what is a test's own.
const SETTINGS: [&str; 4] = ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"];
const PLACES: [&str; 6] = [
    "/var/lib/kubelet",
    "/var/log/pods",
    "/var/log/containers",
    "/usr/libexec/kubernetes",
    "/var/lib/cni/networks/node",
    "/etc/kubernetes",
];

/// The kernel's settings, and which of the places there are.
fn machine() -> Result<(Vec<String>, Vec<&'static str>)> {
    let settings = SETTINGS.iter().map(|name| fs::read_to_string(format!("/proc/sys/{name}")));
    Ok((settings.collect::<Result<_, _>>()?, PLACES.into_iter().filter(|place| Path::new(place).exists()).collect()))
}

/// Directories of this name in any hierarchy of cgroups.
fn cgroups(name: &str) -> Result<Vec<String>> {
    let hierarchies = v1_mounts().into_iter().chain([mount_point()?.to_owned()]);
    Ok(hierarchies
        .map(|mount| mount.join(name))
        .filter(|dir| dir.exists())
        .map(|dir| dir.display().to_string())
        .collect())
}

/// Processes whose command line has this name in it: all parts of a cluster are told where their files are.
fn processes(name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        // Whoever ends meanwhile is none of them.
        let words = fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&words).replace('\0', " ");
        if line.contains(name) {
            found.push(line);
        }
    }
    Ok(found)
}

#[test]
fn nothing_is_left_of_a_cluster() -> Result<()> {
    let before = machine()?;
    let world = World::with_agent()?;
    world.cluster.idle_pod(SHOP, READER, APP)?;
    let dir = world.node.dir().to_owned();
    let name = dir.file_name().and_then(|name| name.to_str()).context("a node's directory has a name")?;
    ensure!(cgroups(name)?.len() == 1 + v1_mounts().len() && processes(name)?.len() > 5, "nothing to look for");
    drop(world);
    ensure!(cgroups(name)?.is_empty(), "{:?}", cgroups(name)?);
    ensure!(processes(name)?.is_empty(), "{:?}", processes(name)?);
    ensure!(!fs::read_to_string("/proc/self/mountinfo")?.contains(name), "mounts are left");
    ensure!(!dir.exists() && !Path::new("/run/netns").join(name).exists(), "files are left");
    ensure!(machine()? == before, "{:?} was {before:?}", machine()?);
    Ok(())
}
