//! Pods are found whenever they come, and what is held for them follows their sandboxes. Their ends are in `ends.rs`.
use std::time::Duration;

use anyhow::{Result, ensure};
use pod_identity_tests::{
    agent::Agent,
    client::{Answer, Client},
    host,
    node::Node,
    pod::{Pod, PodSpec},
    process::eventually,
};

use crate::common::{ask_from_new_namespaces, must_be_granted, served};

const SOON: Duration = Duration::from_secs(5);

/// A request that gives up when the first connection is refused.
fn at_once(pod: &Pod) -> Result<Answer> {
    pod.ask_once(&Client::with_token(pod.token()).connect_once())
}

fn missed(agent: &Agent) -> Result<f64> {
    agent.metric("pod_identity_steering_missed_total{program=\"connect4\"}")
}

#[test]
fn pods_that_were_there_before_the_agent_are_served_at_once() -> Result<()> {
    let node = Node::new()?;
    let before = [node.pod("app")?, node.pod("app")?, node.pod("app")?];
    let agent = node.agent()?;
    for pod in &before {
        must_be_granted(&at_once(pod)?)?;
    }
    ensure!(missed(&agent)? < 0.5, "{} connections found no listener", missed(&agent)?);
    Ok(())
}

#[test]
fn new_pods_are_found_before_they_ask() -> Result<()> {
    let node = Node::new()?;
    let agent = node.agent()?;
    for _ in 0..if host::full_size() { 200 } else { 20 } {
        let before = agent.metric("pod_identity_namespaces")?;
        let pod = node.pod("app")?;
        // Long before the rescan, and without a connection that could have told.
        agent.wait_for_metric("pod_identity_namespaces", before + 1.0, SOON)?;
        must_be_granted(&at_once(&pod)?)?;
        pod.remove()?;
        eventually("the pod to be forgotten", SOON, || {
            Ok((agent.metric("pod_identity_namespaces")? < before + 0.5).then_some(()))
        })?;
    }
    ensure!(missed(&agent)? < 0.5, "{} connections found no listener", missed(&agent)?);
    Ok(())
}

#[test]
fn a_sandbox_replaced_under_one_uid_keeps_the_pods_credentials() -> Result<()> {
    let mut served = served()?;
    let key = served.pod.must_get_credentials()?.access_key_id();
    let old = served.pod.node_interface()?;
    served.pod.stop_sandbox()?;
    served.pod.start_sandbox()?;
    served.pod.start_container("app")?;
    let answer = served.pod.must_get_credentials()?;
    ensure!(answer.access_key_id() == key, "{answer:?}");
    ensure!(served.node.eks_auth().calls_for(served.pod.uid())? == 1, "a new sandbox is no reason to ask again");
    // The old namespace ends when the agent lets go of it.
    eventually("the old sandbox's namespace to end", SOON, || {
        let netns = served.node.netns();
        let mut command = std::process::Command::new("ip");
        let links = pod_identity_tests::process::must(command.args(["-n", netns.name(), "-br", "link"]))?;
        Ok((!links.split_whitespace().any(|word| word.starts_with(&format!("{old}@")))).then_some(()))
    })?;
    let namespaces = served.agent.metric("pod_identity_namespaces")?;
    ensure!((namespaces - 2.0).abs() < 0.1, "the node's and the pod's, not {namespaces}");
    Ok(())
}

#[test]
fn a_pod_whose_containers_have_all_ended_keeps_its_credentials() -> Result<()> {
    let mut served = served()?;
    let key = served.pod.must_get_credentials()?.access_key_id();
    // A crash loop: the sandbox stays, then even that goes.
    served.pod.stop_container("app")?;
    std::thread::sleep(Duration::from_millis(200));
    served.pod.stop_sandbox()?;
    std::thread::sleep(Duration::from_millis(200));
    served.pod.start_sandbox()?;
    served.pod.start_container("app")?;
    ensure!(served.pod.must_get_credentials()?.access_key_id() == key);
    Ok(())
}

#[test]
fn pods_of_the_host_network_come_and_go_without_a_trace_in_it() -> Result<()> {
    let served = served()?;
    // Its pod has been found now.
    served.pod.must_get_credentials()?;
    let before = served.agent.metric("pod_identity_namespaces")?;
    let pod = served.node.pod_with(PodSpec::named("app").host_network())?;
    must_be_granted(&at_once(&pod)?)?;
    ensure!((served.agent.metric("pod_identity_namespaces")? - before).abs() < 0.1);
    pod.remove()?;
    let next = served.node.pod_with(PodSpec::named("app").host_network())?;
    must_be_granted(&at_once(&next)?)
}

#[test]
fn a_namespace_that_nobody_announced_is_served_after_its_first_connection() -> Result<()> {
    let served = served()?;
    served.pod.must_get_credentials()?;
    let answers = ask_from_new_namespaces(&served.pod, 1)?;
    let [answer] = answers.as_slice() else { anyhow::bail!("{answers:?}") };
    must_be_granted(answer)?;
    ensure!(answer.refused_connects >= 1, "somebody announced it: {answer:?}");
    ensure!(missed(&served.agent)? > 0.5, "the miss was not counted");
    Ok(())
}

#[test]
fn a_pod_cannot_make_the_agent_serve_any_number_of_namespaces() -> Result<()> {
    let served = served()?;
    // Its pod has been found now.
    served.pod.must_get_credentials()?;
    let before = served.agent.metric("pod_identity_namespaces")?;
    let answers = ask_from_new_namespaces(&served.pod, 20)?;
    let granted = answers.iter().filter(|answer| answer.status == Some(200)).count();
    ensure!(granted == 15 && answers.len() == 20, "{granted} of {} namespaces were served", answers.len());
    ensure!(served.agent.metric("pod_identity_namespace_failures_total")? > 0.5);
    // They are let go of, at the latest by the rescan; a neighbour has not noticed anything.
    served.node.pod("other")?.must_get_credentials()?;
    let namespaces = served.agent.metric("pod_identity_namespaces")?;
    ensure!(namespaces <= before + 16.5, "{namespaces}");
    Ok(())
}

#[test]
fn many_pods_at_once_are_all_served() -> Result<()> {
    let served = served()?;
    let count = if host::full_size() { 100 } else { 16 };
    let (node, eks_auth) = (&served.node, served.node.eks_auth());
    std::thread::scope(|scope| {
        let starting: Vec<_> = (0..count).map(|_| scope.spawn(|| node.pod("app")?.must_get_credentials())).collect();
        for pod in starting {
            pod.join().map_err(|_| anyhow::anyhow!("a pod panicked"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    ensure!(eks_auth.counters()?.calls == count, "one call for each pod");
    Ok(())
}
