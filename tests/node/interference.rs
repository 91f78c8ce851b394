//! Somebody detaches the agent's programs, replaces them, or has others run first: it is noticed, said and mended.
use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_identity_agent::{
    health::Readiness,
    metrics::Metrics,
    steering::{Order, Steering, Targets, guard::Guard},
};
use pod_identity_tests::{
    client::Client,
    foreign::{self, Foreign, IN_FRONT, PREORDER},
    node::Node,
    process::eventually,
};

use crate::common::{Served, must_be_granted, served};

/// Within which the agent notices.
const NOTICED: Duration = Duration::from_secs(15);

fn kubepods(node: &Node) -> PathBuf {
    node.kubepods().cgroup().dir().to_owned()
}

fn interference(program: &str, kind: &str) -> String {
    format!("pod_identity_interference_total{{program=\"{program}\",kind=\"{kind}\"}}")
}

/// One connection, which goes nowhere where nobody steers it.
fn one_try(served: &Served) -> Result<Option<u16>> {
    let client = Client::with_token(served.pod.token()).connect_once().timeout_ms(500);
    Ok(served.pod.ask_once(&client)?.status)
}

#[test]
fn detached_programs_are_attached_again() -> Result<()> {
    let served = served()?;
    served.pod.must_get_credentials()?;
    let links = foreign::links(&kubepods(&served.node))?;
    ensure!(links.len() == 4, "{links:?}");
    for (_, link) in &links {
        foreign::detach(*link)?;
    }
    ensure!(one_try(&served)?.is_none(), "it is served without programs");
    for (program, _) in &links {
        served.agent.wait_for_metric(&interference(program, "detached"), 1.0, NOTICED)?;
        served.agent.wait_for_log(&["somebody detached", program], Duration::from_secs(2))?;
    }
    must_be_granted(&served.pod.credentials()?)?;
    let again = foreign::links(&kubepods(&served.node))?;
    ensure!(again.len() == 4 && again.iter().all(|link| !links.contains(link)), "{links:?}, then {again:?}");
    Ok(())
}

#[test]
fn a_replaced_program_is_attached_again() -> Result<()> {
    let served = served()?;
    served.pod.must_get_credentials()?;
    let links = foreign::links(&kubepods(&served.node))?;
    let (_, link) = links.iter().find(|(program, _)| program == "connect4").context("it has a link")?;
    let program = Foreign::harmless()?;
    program.replace(*link)?;
    ensure!(one_try(&served)?.is_none(), "it is served by somebody else's program");
    served.agent.wait_for_metric(&interference("connect4", "replaced"), 1.0, NOTICED)?;
    served.agent.wait_for_log(&["in the place of this one", "foreign"], Duration::from_secs(2))?;
    must_be_granted(&served.pod.credentials()?)
}

#[test]
fn a_program_in_front_is_overtaken() -> Result<()> {
    let served = served()?;
    served.pod.must_get_credentials()?;
    let program = Foreign::diverting()?;
    let _link = program.attach(&kubepods(&served.node), IN_FRONT)?;
    ensure!(one_try(&served)?.is_none(), "a program in front does not divert");
    served.agent.wait_for_metric(&interference("connect4", "preceded"), 1.0, NOTICED)?;
    served.agent.wait_for_log(&["runs before this agent's", "foreign"], Duration::from_secs(2))?;
    must_be_granted(&served.pod.credentials()?)?;
    served.agent.wait_for_log(&["runs first again"], Duration::from_secs(2))?;
    ensure!(served.agent.metric("pod_identity_preceding_programs")? < 0.5);
    Ok(())
}

#[test]
fn a_program_in_front_that_cannot_be_overtaken_is_reported() -> Result<()> {
    let served = served()?;
    served.pod.must_get_credentials()?;
    // Programs of a parent that want to be first are.
    let parent = kubepods(&served.node).parent().context("the node's own cgroup")?.to_owned();
    let program = Foreign::harmless()?;
    let link = program.attach(&parent, PREORDER)?;
    served.agent.wait_for_metric("pod_identity_preceding_programs", 1.0, NOTICED)?;
    served.agent.wait_for_log(&["cannot overtake them"], Duration::from_secs(2))?;
    must_be_granted(&served.pod.credentials()?)?;
    drop(link);
    eventually("the agent to see that it has gone", NOTICED, || {
        Ok((served.agent.metric("pod_identity_preceding_programs")? < 0.5).then_some(()))
    })
}

#[test]
fn a_program_on_a_pods_own_cgroup_does_not_come_first() -> Result<()> {
    let served = served()?;
    served.pod.must_get_credentials()?;
    for flags in [0, PREORDER] {
        let program = Foreign::diverting()?;
        let _link = program.attach(served.pod.cgroup().dir(), flags)?;
        ensure!(one_try(&served)? == Some(200), "diverted with flags {flags}");
    }
    Ok(())
}

/// On a kernel without an order of programs; what is attached here is as there.
#[test]
fn without_an_order_of_programs_those_of_the_cgroups_below_are_reported() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod("app")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let targets = Targets { port: 80, v4: true, v6: true, listener_ports: 706..=737, pace: false };
        let (steering, _events) = Steering::load(&targets, false)?;
        let (steering, metrics) = (Arc::new(steering), Arc::new(Metrics::new()));
        steering.attach(&kubepods(&node), Order::AsTheyCome)?;
        let mut guard = Guard::new(Arc::clone(&steering), kubepods(&node), Arc::clone(&metrics), Readiness::default());
        ensure!(guard.look().await == 0);

        let program = Foreign::harmless()?;
        let on_pod = program.attach(pod.cgroup().dir(), 0)?;
        let _on_container = program.attach(pod.container("app")?.cgroup().dir(), 0)?;
        let _behind = program.attach(&kubepods(&node), 0)?;
        let _in_front = program.attach(&kubepods(&node), IN_FRONT)?;
        ensure!(guard.look().await == 3, "one before ours at kubepods, one at the pod, one at its container");
        drop(on_pod);
        ensure!(guard.look().await == 2);
        let counted = metrics.text();
        let line = format!("{} 3", interference("connect4", "preceded"));
        ensure!(counted.contains(&line), "no {line} in\n{counted}");
        Ok(())
    })
}
