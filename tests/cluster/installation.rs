//! The chart is installed by helm, the API server takes it, and the kubelet's probes pass.
use std::time::Duration;

use anyhow::{Result, ensure};
use pod_identity_tests::{cluster::NODE, process::eventually};

use crate::world::{RELEASE, SYSTEM, World, original_chart, text};

/// For both probes to have been executed: the chart's liveness probe begins after 15 s, and comes every 30 s.
const PROBES: Duration = Duration::from_mins(2);

/// How often the kubelet has executed a probe of the agent with this result.
fn probes(world: &World, kind: &str, result: &str) -> Result<u64> {
    let path = format!("/api/v1/nodes/{NODE}/proxy/metrics/probes");
    let metrics = world.cluster.kubectl(&["get", "--raw", &path])?;
    let has = |line: &str, label: &str, value: &str| line.contains(&format!("{label}=\"{value}\""));
    let count = |line: &str| -> Option<u64> { line.rsplit_once(' ')?.1.parse().ok() };
    let lines =
        metrics.lines().filter(|line| line.starts_with("prober_probe_total{") && has(line, "container", "agent"));
    Ok(lines.filter(|line| has(line, "probe_type", kind) && has(line, "result", result)).filter_map(count).sum())
}

#[test]
fn the_daemonset_is_ready_and_its_probes_are_executed() -> Result<()> {
    let world = World::new()?;
    // Without the harness's change it is told at once that this cluster is too old for it.
    let chart = original_chart();
    let refused = world.cluster.helm(&["install", RELEASE, text(&chart)?, "--namespace", SYSTEM])?.must_fail()?;
    ensure!(refused.contains("requires kubeVersion: >=1.25.0-0"), "{refused}");

    world.helm("install", &[])?;
    let pods = world.pods_of_the_release()?;
    ensure!(pods.len() == 1, "{pods:?}");
    let ready = world.cluster.kubectl(&[
        "--namespace",
        SYSTEM,
        "get",
        "daemonset",
        "pod-identity-agent",
        "--output=jsonpath={.status.desiredNumberScheduled} {.status.numberReady}",
    ])?;
    ensure!(ready == "1 1", "desired and ready: {ready}");
    let executed = eventually("the kubelet to execute both probes", PROBES, || {
        let (live, ready) = (probes(&world, "Liveness", "successful")?, probes(&world, "Readiness", "successful")?);
        Ok((live > 0 && ready > 0).then_some((live, ready)))
    })?;
    println!("probes that succeeded: {} of liveness, {} of readiness", executed.0, executed.1);
    let failed = probes(&world, "Liveness", "failed")?;
    ensure!(failed == 0, "{failed} liveness probes failed");
    for status in world.pods_of_the_release()?.iter().map(|pod| &pod["status"]["containerStatuses"][0]) {
        ensure!(status["ready"] == true && status["restartCount"] == 0, "{status}");
    }
    Ok(())
}
