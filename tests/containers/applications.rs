//! Applications in containers get their own pod's credentials, and nobody else's.
use anyhow::{Result, ensure};
use pod_identity_tests::client::Client;

use crate::common::{World, must_be_granted, must_be_refused};

#[test]
fn an_unmodified_sdk_gets_credentials_with_what_eks_injects() -> Result<()> {
    let world = World::new()?;
    let pod = world.runtime.pod(&world.node, "app")?;
    let key = pod.sdk_credentials()?;
    ensure!(key == must_be_granted(&pod.credentials()?)?, "the SDK has credentials that the agent did not serve");
    ensure!(world.node.eks_auth().calls_for(pod.kubelet_part().uid())? == 1);
    pod.remove()
}

#[test]
fn pods_of_two_service_accounts_get_their_own() -> Result<()> {
    let world = World::new()?;
    let (one, other) = (world.runtime.pod(&world.node, "one")?, world.runtime.pod(&world.node, "other")?);
    let keys = [must_be_granted(&one.credentials()?)?, must_be_granted(&other.credentials()?)?];
    ensure!(keys[0] != keys[1], "two pods have one access key");
    ensure!(keys == [one.sdk_credentials()?, other.sdk_credentials()?], "not those of the pod itself");
    for pod in [&one, &other] {
        ensure!(world.node.eks_auth().calls_for(pod.kubelet_part().uid())? == 1);
    }
    one.remove()?;
    other.remove()
}

#[test]
fn a_stolen_token_is_refused() -> Result<()> {
    let world = World::new()?;
    let (victim, thief) = (world.runtime.pod(&world.node, "victim")?, world.runtime.pod(&world.node, "thief")?);
    must_be_granted(&victim.credentials()?)?;
    let stolen = Client::with_token(victim.kubelet_part().token());
    must_be_refused(&thief.ask(&stolen)?, 403)?;
    ensure!((world.agent.refusals("foreign_token")? - 1.0).abs() < 0.1, "not for the reason that was expected");
    must_be_granted(&thief.credentials()?)?;
    victim.remove()?;
    thief.remove()
}

#[test]
fn a_pod_of_the_host_network_gets_its_own() -> Result<()> {
    let world = World::new()?;
    let pod = world.runtime.host_network_pod(&world.node, "host")?;
    ensure!(pod.sdk_credentials()? == must_be_granted(&pod.credentials()?)?);
    // Somebody else in the same namespace.
    let other = world.runtime.pod(&world.node, "other")?;
    must_be_refused(&pod.ask(&Client::with_token(other.kubelet_part().token()))?, 403)?;
    pod.remove()?;
    other.remove()
}

#[test]
fn a_container_that_is_started_again_needs_no_other_call() -> Result<()> {
    let world = World::new()?;
    let mut pod = world.runtime.pod(&world.node, "app")?;
    let key = must_be_granted(&pod.credentials()?)?;
    for _ in 0..2 {
        pod.remove_container("app")?;
        pod.start_idle("app")?;
        ensure!(pod.sdk_credentials()? == key, "a new container of the same pod has other credentials");
    }
    ensure!(world.node.eks_auth().calls_for(pod.kubelet_part().uid())? == 1);
    pod.remove()
}
