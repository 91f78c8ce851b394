//! A pod's first instruction finds its credentials there: they are fetched while the runtime makes the sandbox.
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pod_identity_tests::{agent::AgentSpec, containers::access_key_of, pod::PodSpec, process::eventually};

use crate::common::World;

/// For a container to start an SDK, and for that to end.
const RUNS: Duration = Duration::from_secs(20);

#[test]
fn the_first_request_of_a_new_container_is_a_cache_hit() -> Result<()> {
    let world = World::with(&AgentSpec::flags(&["--prefetch=true"]))?;
    let eks_auth = world.node.eks_auth();
    eks_auth.associate("default", "app", "app")?;
    eks_auth.delay(Duration::from_millis(30))?;
    let mut pod = world.runtime.begin_pod(&world.node, PodSpec::named("app"))?;
    pod.mount_and_write_token()?;
    let written = Instant::now();
    pod.run_sandbox()?;
    // It does nothing but to ask, at once.
    let container = pod.start_program("app", "sdk-client", &[])?;
    let started = written.elapsed();
    let printed =
        eventually("the SDK to end", RUNS, || Ok(Some(container.output()?).filter(|printed| printed.ends_with('\n'))))?;
    println!("from the token's file to the started application: {started:?}");
    ensure!(access_key_of(&printed)?.starts_with("ASIA"));
    let state = |state: &str| world.agent.metric(&format!("pod_identity_cache_state{{state=\"{state}\"}}"));
    ensure!((state("hit")? - 1.0).abs() < 0.1 && state("miss")? < 0.1, "it had to wait for EKS Auth");
    ensure!(eks_auth.calls_for(pod.kubelet_part().uid())? == 1);
    pod.remove()
}
