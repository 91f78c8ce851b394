//! Each way to use connections is served: one kept alive for every fetch, and a new one for each.
//!
//! Credentials that end within minutes make SDKs fetch each time they are asked, so one process shows what it does.
use anyhow::{Result, ensure};
use pod_identity_tests::{
    aws::application::{Application, Family},
    eks_auth::EksAuthSpec,
    node::{Node, NodeSpec},
};

use crate::{
    client::{Fetched, Sdk},
    world::steered,
};

/// Less than the 5 and 10 minutes before the end in which SDKs insist on new credentials.
const LIFETIME_SECONDS: u64 = 240;
const FETCHES: u32 = 4;

#[test]
fn boto3_keeps_one_alive() -> Result<()> {
    let (answers, connections) = fetch_again_and_again(Sdk::Boto3, Family::V4)?;
    ensure!(connections == 1, "{answers} answers on {connections} connections");
    Ok(())
}

#[test]
fn boto3_keeps_one_alive_over_ipv6() -> Result<()> {
    let (answers, connections) = fetch_again_and_again(Sdk::Boto3, Family::V6)?;
    ensure!(connections == 1, "{answers} answers on {connections} connections");
    Ok(())
}

#[test]
fn rust_keeps_one_alive() -> Result<()> {
    let (answers, connections) = fetch_again_and_again(Sdk::Rust, Family::V4)?;
    ensure!(connections == 1, "{answers} answers on {connections} connections");
    Ok(())
}

#[test]
fn javascript_makes_a_new_one_each_time() -> Result<()> {
    let (answers, connections) = fetch_again_and_again(Sdk::JavaScript, Family::V4)?;
    ensure!(connections == answers, "{answers} answers on {connections} connections");
    Ok(())
}

#[test]
fn javascript_makes_a_new_one_each_time_over_ipv6() -> Result<()> {
    let (answers, connections) = fetch_again_and_again(Sdk::JavaScript, Family::V6)?;
    ensure!(connections == answers, "{answers} answers on {connections} connections");
    Ok(())
}

/// The agent's answers with credentials, and the connections that were steered to it for them.
fn fetch_again_and_again(sdk: Sdk, family: Family) -> Result<(u32, u32)> {
    let eks_auth = EksAuthSpec { lifetime_seconds: Some(LIFETIME_SECONDS), ..EksAuthSpec::default() };
    let node = Node::with(NodeSpec { eks_auth, ..NodeSpec::default() })?;
    let agent = node.agent()?;
    let pod = node.pod("app")?;
    let mut session = sdk.start(&Application::new(&pod, family, None)?, FETCHES, &[])?;
    for _ in 0..FETCHES {
        Fetched::read(&session.next()?)?;
    }
    let answers = whole(agent.metric("pod_identity_grants_total")?)?;
    ensure!(answers >= FETCHES, "{answers} answers for {FETCHES} fetches");
    Ok((answers, whole(steered(&agent, family)?)?))
}

/// A counter's value, which its text form has as a decimal.
fn whole(value: f64) -> Result<u32> {
    Ok(value.to_string().parse()?)
}
