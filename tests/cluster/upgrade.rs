//! An upgrade under load. With `maxSurge: 1`, the chart's own strategy, a `DaemonSet` starts a node's next agent, waits
//! for its readiness, and ends the one before. This Kubernetes is older than that (1.20; it came in 1.21), so helm does
//! it here in two upgrades: a second `DaemonSet` of the chart beside the first, then the first is taken away. For
//! kubelet, kernel and agents it is the same.
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use pod_identity_tests::{cluster::APP, load::Report};

use crate::world::{READER, RELEASE, SHOP, SYSTEM, World};

/// A round of load. The other client's begin in the middle of it, so that some client asks at any time.
const ROUND: Duration = Duration::from_secs(2);

/// Requests per second of each of the two.
const RATE: u32 = 50;

/// Fetches credentials in the pod until it is told to end.
fn load(world: &World, connections: &str, ends: &AtomicBool) -> Result<Report> {
    let command = format!(
        "/tests/load --token \"$(/bin/busybox cat $AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE)\" --clients 4 --rate {RATE} \
         --connections {connections} --for-ms {}",
        ROUND.as_millis()
    );
    let mut all = Report::default();
    while !ends.load(Ordering::Relaxed) {
        let printed = world.cluster.shell(SHOP, READER, &command)?.must()?;
        let report: Report = serde_json::from_str(&printed).with_context(|| printed.clone())?;
        all.merge(&report);
    }
    Ok(all)
}

/// The names of the release's pods.
fn pods(world: &World) -> Result<Vec<String>> {
    let pods = world.pods_of_the_release()?;
    Ok(pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned).collect())
}

/// What helm is told for the chart's `cloud` and one more, `next`, to be there or not.
fn daemonsets(cloud: bool, next: bool) -> String {
    format!("daemonsets.cloud.create={cloud},daemonsets.next.create={next},daemonsets.next.nameSuffix=next")
}

/// Brings the other one's agent beside the one that is there, and then takes the latter away.
fn replace(world: &World, to_next: bool) -> Result<()> {
    let before = pods(world)?;
    world.helm("upgrade", &["--set", &daemonsets(true, true)])?;
    ensure!(pods(world)?.len() == 2, "two agents at once: {:?}", pods(world)?);
    world.helm("upgrade", &["--set", &daemonsets(!to_next, to_next)])?;
    for pod in &before {
        let pod = format!("pod/{pod}");
        world.cluster.kubectl(&["--namespace", SYSTEM, "wait", "--for=delete", "--timeout=60s", &pod])?;
    }
    let after = pods(world)?;
    ensure!(after.len() == 1 && !before.contains(&after[0]), "{before:?} was to be replaced: {after:?}");
    Ok(())
}

#[test]
fn no_fetch_fails_while_one_agent_takes_over_from_another() -> Result<()> {
    let world = World::with_agent()?;
    world.cluster.idle_pod(SHOP, READER, APP)?;
    world.cluster.shell(SHOP, READER, "/tests/sdk-client")?.must()?;
    let ends = AtomicBool::new(false);
    let reports = thread::scope(|scope| -> Result<[Report; 2]> {
        let anew = scope.spawn(|| load(&world, "new", &ends));
        thread::sleep(ROUND / 2);
        let kept = scope.spawn(|| load(&world, "kept", &ends));
        let done = replace(&world, true).and_then(|()| replace(&world, false));
        ends.store(true, Ordering::Relaxed);
        let join = |thread: thread::ScopedJoinHandle<'_, Result<Report>>| {
            thread.join().map_err(|_| anyhow!("a client of the load panicked"))?
        };
        let reports = [join(anew)?, join(kept)?];
        done.map(|()| reports)
    })?;
    for (name, report) in ["new", "kept"].into_iter().zip(&reports) {
        let (requests, longest) = (report.requests(), report.latencies.longest());
        println!(
            "{name} connections: {} of {requests} fetches granted, the longest took {longest:?}",
            report.granted()
        );
        ensure!(requests > 0 && report.granted() == requests, "{:?}, {:?}", report.statuses, report.failures);
    }
    let release = world.cluster.helm(&["history", RELEASE, "--namespace", SYSTEM])?.must()?;
    ensure!(release.lines().filter(|line| line.contains("uperseded")).count() == 4, "{release}");
    Ok(())
}
