//! `helm uninstall` leaves nothing, in the cluster and on the node.
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    cgroup::{mount_point, v1_mounts},
    client::Answer,
    cluster::APP,
    process::{QUICK, eventually, must, run},
};

use crate::world::{READER, RELEASE, SHOP, SYSTEM, World};

/// For the kubelet to end the pod and to clear up after it.
const CLEARS: Duration = Duration::from_mins(1);

/// Files of this machine's directory as the node's processes see it.
fn on_the_node(world: &World, directory: &str) -> Result<BTreeSet<PathBuf>> {
    let root = format!("/proc/{}/root{directory}", world.cluster.runtime().init()?);
    fs::read_dir(&root).with_context(|| root.clone())?.map(|entry| Ok(entry?.path())).collect()
}

/// All cgroups below one.
fn below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        below(&entry.path(), found);
        found.push(entry.path());
    }
}

/// The agent's processes on this node.
fn agents(world: &World) -> Vec<u32> {
    let mut cgroups = Vec::new();
    below(world.node.kubepods().cgroup().dir(), &mut cgroups);
    let processes = cgroups.iter().filter_map(|cgroup| fs::read_to_string(cgroup.join("cgroup.procs")).ok());
    let ids: Vec<u32> =
        processes.flat_map(|text| text.lines().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect();
    let is_agent =
        |id: &u32| fs::read_link(format!("/proc/{id}/exe")).is_ok_and(|exe| exe.ends_with("pod-identity-agent"));
    ids.into_iter().filter(is_agent).collect()
}

/// Programs, maps and links that a process holds: what bpftool calls them, and their ids.
fn bpf_objects(process: u32) -> Result<BTreeSet<(&'static str, String)>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{process}/fdinfo"))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        for (member, kind) in [("prog_id:", "prog"), ("map_id:", "map"), ("link_id:", "link")] {
            found.extend(text.lines().filter_map(|line| Some((kind, line.strip_prefix(member)?.trim().to_owned()))));
        }
    }
    Ok(found)
}

fn exists((kind, id): &(&str, String)) -> Result<bool> {
    Ok(run(Command::new("bpftool").args([kind, "show", "id", id]), QUICK)?.status.success())
}

/// What is set up in the node's network namespace, and who listens there.
fn network(world: &World) -> Result<[String; 4]> {
    let ask = |program: &str, args: &[&str]| must(world.node.netns().command(program).args(args));
    Ok([
        ask("ss", &["-H", "-l", "-t", "-n"])?,
        ask("ip", &["-brief", "address", "show", "dev", "lo"])?,
        ask("ip", &["route", "show", "table", "local", "169.254.0.0/16"])?,
        ask("nft", &["list", "ruleset"])?,
    ])
}

/// Who listens in a pod, and what it is answered at the target address.
fn in_the_pod(world: &World) -> Result<(String, Answer)> {
    let listens = "/bin/busybox netstat -l -t -n | /bin/busybox grep LISTEN || true";
    let listens = world.cluster.shell(SHOP, READER, listens)?.must()?;
    let asked = world.cluster.shell(SHOP, READER, "/tests/pod-client --connect-within-ms 0")?;
    Ok((listens, serde_json::from_str(asked.text.trim()).with_context(|| format!("{asked:?}"))?))
}

#[test]
fn nothing_is_left() -> Result<()> {
    let world = World::new()?;
    world.cluster.idle_pod(SHOP, READER, APP)?;
    let (pods, network_before) = (on_the_node(&world, "/var/lib/kubelet/pods")?, network(&world)?);
    world.helm("install", &[])?;
    world.cluster.shell(SHOP, READER, "/tests/sdk-client")?.must()?;

    // What there is to be left.
    let agents_before = agents(&world);
    let [agent] = agents_before[..] else { anyhow::bail!("one agent: {agents_before:?}") };
    let objects = bpf_objects(agent)?;
    for kind in ["prog", "map", "link"] {
        ensure!(objects.iter().any(|(found, _)| *found == kind), "the agent holds no {kind}: {objects:?}");
    }
    let uid = world.pods_of_the_release()?[0]["metadata"]["uid"].as_str().context("a UID")?.to_owned();
    let (listens, answer) = in_the_pod(&world)?;
    ensure!(
        listens.contains("127.0.0.1:706") && answer.status == Some(400),
        "no agent in the pod: {listens}{answer:?}"
    );
    ensure!(on_the_node(&world, "/var/lib/kubelet/pods")?.len() == pods.len() + 1, "one pod more");

    world.cluster.helm(&["uninstall", RELEASE, "--namespace", SYSTEM, "--wait"])?.must()?;
    eventually("the kubelet to clear up", CLEARS, || {
        let gone = agents(&world).is_empty() && on_the_node(&world, "/var/lib/kubelet/pods")? == pods;
        Ok((gone && cgroups_of(&world, &uid)?.is_empty()).then_some(()))
    })?;
    let left: Vec<_> = objects.iter().filter(|object| exists(object).unwrap_or(true)).collect();
    ensure!(left.is_empty(), "programs, maps or links are left: {left:?}");
    let attached = must(Command::new("bpftool").args(["cgroup", "tree"]).arg(world.node.top_cgroup().dir()))?;
    ensure!(!attached.contains("connect") && !attached.contains("getpeername"), "{attached}");
    ensure!(network(&world)? == network_before, "{:?} was {network_before:?}", network(&world)?);
    let (listens, answer) = in_the_pod(&world)?;
    ensure!(listens.is_empty() && answer.status.is_none(), "something is left in the pod: {listens}{answer:?}");
    println!("in the pod nobody listens; at the target address: {:?}", answer.error);
    for place in ["/run", "/var/lib"] {
        let files = on_the_node(&world, place)?;
        ensure!(!files.iter().any(|file| file.to_string_lossy().contains("pod-identity")), "{files:?}");
    }
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", world.cluster.runtime().init()?))?;
    ensure!(!mounts.contains(&uid), "mounts of the agent's pod are left: {mounts}");
    nothing_in_the_cluster(&world)
}

/// The cgroups of a pod, in any hierarchy.
fn cgroups_of(world: &World, uid: &str) -> Result<Vec<PathBuf>> {
    let top = world.node.top_cgroup().dir().strip_prefix(mount_point()?)?.to_owned();
    let mut found = Vec::new();
    for hierarchy in v1_mounts().iter().map(PathBuf::as_path).chain([mount_point()?]) {
        below(&hierarchy.join(&top), &mut found);
    }
    Ok(found.into_iter().filter(|cgroup| cgroup.to_string_lossy().contains(uid)).collect())
}

fn nothing_in_the_cluster(world: &World) -> Result<()> {
    let kinds = "daemonsets,controllerrevisions,pods,services,configmaps,secrets,serviceaccounts";
    // The account's token goes after the account.
    let left = eventually("the controllers to clear up", CLEARS, || {
        let names = world.cluster.kubectl(&["get", kinds, "--all-namespaces", "--output=name"])?;
        Ok(names.lines().all(|name| !name.contains(RELEASE)).then_some(()))
    });
    left.with_context(|| world.cluster.kubectl(&["get", kinds, "--all-namespaces"]).unwrap_or_default())
}
