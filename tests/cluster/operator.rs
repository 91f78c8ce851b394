//! What an operator asks the agent through `kubectl exec`.
use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::cluster::APP;
use serde_json::Value;

use crate::world::{READER, SHOP, World};

fn uid(world: &World, name: &str) -> Result<String> {
    world.cluster.kubectl(&["--namespace", SHOP, "get", "pod", name, "--output=jsonpath={.metadata.uid}"])
}

#[test]
fn status_and_explain_answer_through_kubectl_exec() -> Result<()> {
    let world = World::with_agent()?;
    world.cluster.idle_pod(SHOP, READER, APP)?;
    world.cluster.shell(SHOP, READER, "/tests/sdk-client")?.must()?;
    let reader = uid(&world, READER)?;

    let shown = world.agent(&["status"])?.must()?;
    ensure!(shown.lines().any(|line| line.contains("shop/reader")), "{shown}");
    println!("{shown}");
    let status: Value = serde_json::from_str(&world.agent(&["status", "--output=json"])?.must()?)?;
    let pods = status["pods"].as_array().context("pods")?;
    ensure!(pods.iter().any(|pod| pod.to_string().contains(&reader)), "no pod {reader}: {status:#}");

    let good = world.agent(&["explain", "shop/reader"])?.must()?;
    println!("{good}");

    let stranger = "stranger";
    world.cluster.service_account(SHOP, stranger)?;
    world.cluster.idle_pod(SHOP, stranger, APP)?;
    let told = world.agent(&["explain", &uid(&world, stranger)?, "--output=json"])?;
    let explained: Value = serde_json::from_str(&told.text).with_context(|| format!("{told:?}"))?;
    let steps = explained["steps"].as_array().context("steps")?;
    let blamed = steps.iter().find(|step| step["verdict"] == "problem").context("nothing is blamed")?;
    ensure!(!told.succeeded && blamed["step"] == "volume", "{explained:#}");
    println!("stranger: {}", blamed["finding"]);
    Ok(())
}

#[test]
fn doctor_finds_nothing_wrong_in_the_restricted_mode() -> Result<()> {
    let world = World::new()?;
    world.helm("install", &["--set", "securityMode=restricted"])?;
    let told = world.agent(&["doctor"])?;
    println!("{}", told.text);
    told.must().map(drop)
}
