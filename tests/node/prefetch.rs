//! Credentials are there before the pod asks, and a rotated token costs nothing.
use std::time::Duration;

use anyhow::{Result, ensure};
use pod_identity_tests::{
    agent::AgentSpec,
    node::Node,
    pod::{Pod, PodSpec},
    process::eventually,
};

use crate::common::{Served, served_with};

fn prefetching() -> Result<Served> {
    served_with(&AgentSpec::flags(&["--prefetch=true"]))
}

/// Waits until EKS Auth was called once for the pod.
fn fetched(node: &Node, pod: &Pod) -> Result<()> {
    eventually("the credentials to be fetched", Duration::from_secs(5), || {
        Ok((node.eks_auth().calls_for(pod.uid())? == 1).then_some(()))
    })
}

#[test]
fn the_first_request_of_a_pod_is_a_cache_hit() -> Result<()> {
    let served = prefetching()?;
    fetched(&served.node, &served.pod)?;
    // EKS Auth has answered; what it said is there a moment later.
    std::thread::sleep(Duration::from_millis(100));
    served.node.eks_auth().fail(500, "InternalServerException", "down")?;
    served.pod.must_get_credentials()?;
    ensure!((served.agent.metric("pod_identity_cache_state{state=\"hit\"}")? - 1.0).abs() < 0.1);
    ensure!(served.agent.metric("pod_identity_cache_state{state=\"miss\"}")? < 0.1);
    ensure!(served.node.eks_auth().calls_for(served.pod.uid())? == 1);
    Ok(())
}

#[test]
fn pods_that_were_there_before_the_agent_are_fetched_for_too() -> Result<()> {
    let node = Node::new()?;
    let pods = (0..5).map(|_| node.pod("app")).collect::<Result<Vec<_>>>()?;
    let _agent = node.agent_with(&AgentSpec::flags(&["--prefetch=true"]))?;
    pods.iter().try_for_each(|pod| fetched(&node, pod))
}

#[test]
fn a_pod_without_the_volume_is_never_asked_about() -> Result<()> {
    let served = prefetching()?;
    let bare = served.node.pod_with(PodSpec::named("app").no_token())?;
    fetched(&served.node, &served.pod)?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(served.node.eks_auth().calls_for(bare.uid())? == 0);
    ensure!(served.node.eks_auth().counters()?.calls == 1, "somebody else was asked about");
    Ok(())
}
