//! Every metric is moved by something that a test makes happen, and none has labels without bounds.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::{Agent, AgentSpec},
    client::Client,
    eks_auth::EksAuthSpec,
    node::{Node, NodeSpec},
    process::eventually,
};

/// All labels there are. Each has few values, and none that came over the wire.
const LABELS: [&str; 8] = ["code", "kind", "le", "outcome", "program", "reason", "state", "type"];

/// Series by their family, histograms by their counts.
fn families(agent: &Agent) -> Result<BTreeMap<String, Vec<f64>>> {
    let mut families: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (series, value) in agent.metrics()? {
        let name = series.split('{').next().unwrap_or_default();
        if !name.ends_with("_bucket") && !name.ends_with("_sum") {
            families.entry(name.trim_end_matches("_count").to_owned()).or_default().push(value);
        }
    }
    Ok(families)
}

/// Lines that stderr does not take can only be had by stopping whoever reads it: the unit tests of the log do.
const MOVED_BY_UNIT_TESTS: [&str; 1] = ["pod_identity_log_lines_dropped_total"];

/// The sources of the tiers that run an agent, but not this one.
fn tests() -> Result<String> {
    let mut text = String::new();
    for tier in ["node", "attacks", "abuse"] {
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(tier))? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "rs") && !path.ends_with(Path::new("node/metrics.rs")) {
                text.push_str(&fs::read_to_string(path)?);
            }
        }
    }
    Ok(text)
}

#[test]
fn every_metric_is_moved() -> Result<()> {
    // Half of such a life is soon over.
    let eks_auth = EksAuthSpec { lifetime_seconds: Some(30), ..EksAuthSpec::default() };
    let node = Node::with(NodeSpec { eks_auth, ..NodeSpec::default() })?;
    let agent = node.agent_with(&AgentSpec::flags(&["--max-credential-retention-before-renewal", "1m"]))?;
    let (pod, stranger) = (node.pod("app")?, node.pod("stranger")?);
    pod.must_get_credentials()?;
    pod.must_get_credentials()?;
    stranger.ask_once(&Client::with_token(pod.token()))?;
    eventually("a renewal", Duration::from_secs(30), || {
        let renewed = agent.metric("pod_identity_renewals_total{outcome=\"ok\"}")?;
        Ok((renewed > 0.5).then_some(()))
    })?;
    ensure!(agent.metric("pod_identity_cached_pods")? > 0.5 && agent.metric("pod_identity_served_pods")? > 0.5);
    ensure!(agent.metric("pod_identity_expiring_pods")? > 0.5, "30 s are less than 15 minutes");

    // In debt after its first thousand answers, in a binary without optimizations after fewer.
    pod.ask(&Client::with_token(pod.token()).requests(3_000))?;
    ensure!(agent.metric("pod_identity_delays_total")? > 0.5, "it took what it liked");
    // No event tells of a namespace that a process makes when it is there already.
    pod.exec("sh", &["-c", "unshare --net sleep 60 >/dev/null 2>&1 &"])?;
    agent.wait_for_metric("pod_identity_reconciliations_total", 1.0, Duration::from_secs(45))?;

    let tests = tests()?;
    let is_moved =
        |name: &str, values: &[f64]| values.iter().any(|value| value.abs() > f64::EPSILON) || tests.contains(name);
    let mut still = families(&agent)?;
    still.retain(|name, values| !is_moved(name, values) && !MOVED_BY_UNIT_TESTS.contains(&name.as_str()));
    ensure!(still.is_empty(), "nothing moves these, here or in another test: {still:?}");
    Ok(())
}

#[test]
fn what_pods_send_makes_no_series() -> Result<()> {
    let node = Node::new()?;
    let agent = node.agent()?;
    let pod = node.pod("app")?;
    let ask = |number: u32| -> Result<()> {
        let client =
            Client::with_token(pod.token()).path(&format!("/v1/{number}")).header("X-Odd", &number.to_string());
        pod.ask_once(&client.host(&format!("host-{number}")))?;
        pod.ask_once(&Client::with_token(&format!("{}{number}", pod.token())))?;
        pod.ask_once(&Client::new().method(&format!("M{number}")))?;
        Ok(())
    };
    pod.must_get_credentials()?;
    ask(0)?;
    let series = || -> Result<BTreeSet<String>> {
        // One for each status that was answered yet; there is a dozen.
        let is_status = |series: &String| series.starts_with("pod_identity_http_response");
        Ok(agent.metrics()?.into_keys().filter(|series| !is_status(series)).collect())
    };
    let before = series()?;
    for number in 1..10 {
        ask(number)?;
        node.pod(&format!("pod-{number}"))?.must_get_credentials()?;
    }
    let after = series()?;
    ensure!(before == after, "new series: {:?}", after.difference(&before).collect::<Vec<_>>());
    for series in &after {
        let Some((_, labels)) = series.split_once('{') else { continue };
        for label in labels.trim_end_matches('}').split(',').filter(|label| !label.starts_with("version=")) {
            let (name, _) = label.split_once('=').with_context(|| series.clone())?;
            ensure!(LABELS.contains(&name), "{series} has a label that nobody has thought about");
        }
    }
    Ok(())
}
