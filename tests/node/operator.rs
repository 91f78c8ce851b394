//! What an operator sees and may do: `status` and `flush`, asked of the running agent.
use std::{
    io::{BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{client::Client, process::binary};
use serde_json::Value;

use crate::common::{Served, must_be_granted, must_be_refused, served};

/// Runs a command of the agent's binary beside the agent.
fn command(served: &Served, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary("pod-identity-agent")?);
    command.args(args).arg("--run-dir").arg(served.agent.run_dir());
    command.output().context("the command does not start")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn status(served: &Served) -> Result<Value> {
    let output = command(served, &["status", "--output", "json"])?;
    ensure!(output.status.success(), "{}", text(&output));
    let status: Value = serde_json::from_slice(&output.stdout)?;
    let pods = status["pods"].as_array().context("pods")?;
    let found = pods.iter().find(|pod| pod["uid"] == served.pod.uid());
    Ok(found.context("the pod is not in the status")?.clone())
}

#[test]
fn the_status_names_the_pod_and_what_it_is_served() -> Result<()> {
    let served = served()?;
    ensure!(status(&served)?["state"] == "empty");
    let key = served.pod.must_get_credentials()?.access_key_id();
    let pod = status(&served)?;
    ensure!(pod["state"] == "available" && pod["credentials"]["access_key_id"] == key.as_str(), "{pod}");
    ensure!(pod["namespace"] == "default" && pod["service_account"] == "app", "{pod}");
    let inode = std::fs::metadata(served.pod.cgroup().dir())?.ino();
    let netns = std::fs::metadata(format!("/proc/{}/ns/net", served.pod.pause()?.pid()))?.ino();
    ensure!(pod["cgroup_id"] == inode && pod["listeners"][0]["netns"] == netns, "{pod}");
    ensure!(pod["listeners"][0]["port"] == 706 && pod["listener_failure"].is_null(), "{pod}");
    ensure!(pod["last_refusal"].is_null(), "{pod}");
    let table = text(&command(&served, &["status"])?);
    let row = table.lines().find(|line| line.contains(&key)).context(table.clone())?;
    ensure!(row.contains("default/app") && row.contains("5h 59m") && row.contains("valid"), "{table}");
    ensure!(row.contains(&inode.to_string()) && row.contains("706+v6"), "{table}");
    ensure!(served.pod.ask_once(&Client::with_token("nonsense"))?.status == Some(400));
    let refused = status(&served)?["last_refusal"].clone();
    ensure!(refused["reason"] == "malformed_token" && refused["at"].is_string(), "{refused}");
    Ok(())
}

#[test]
fn the_status_is_shown_again_and_again_and_as_yaml() -> Result<()> {
    let served = served()?;
    let yaml = text(&command(&served, &["status", "--output", "yaml"])?);
    ensure!(yaml.contains(&format!("\"uid\": \"{}\"", served.pod.uid())), "{yaml}");
    let mut watching = Command::new(binary("pod-identity-agent")?);
    watching.args(["status", "--watch=100ms", "--output", "json", "--run-dir"]).arg(served.agent.run_dir());
    let mut watching = watching.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(watching.stdout.take().context("stdout")?).lines();
    let first: Value = serde_json::from_str(&lines.next().context("a line")??)?;
    served.pod.must_get_credentials()?;
    let shown = lines.take(50).find(|line| line.as_ref().is_ok_and(|line| line.contains("\"available\"")));
    watching.kill()?;
    watching.wait()?;
    ensure!(!first.to_string().contains("\"available\"") && shown.is_some(), "{first}");
    Ok(())
}

#[test]
fn a_flush_has_credentials_fetched_anew_at_once() -> Result<()> {
    let served = served()?;
    let other = served.node.pod("other")?;
    let (first, others) = (served.pod.must_get_credentials()?, other.must_get_credentials()?);
    for selection in [["--service-account", "default/app"], ["--pod", served.pod.uid()]] {
        let before = served.node.eks_auth().calls_for(served.pod.uid())?;
        let output = command(&served, &[&["flush"], &selection[..]].concat())?;
        ensure!(output.status.success() && text(&output).contains("fetched anew"), "{}", text(&output));
        let answer = served.pod.must_get_credentials()?;
        ensure!(answer.access_key_id() != first.access_key_id(), "the old credentials are still served");
        ensure!(served.node.eks_auth().calls_for(served.pod.uid())? == before + 1, "not exactly one call");
    }
    ensure!(other.must_get_credentials()?.access_key_id() == others.access_key_id(), "another pod was flushed too");
    let output = command(&served, &["flush", "--all", "--output", "json"])?;
    ensure!(output.status.success(), "{}", text(&output));
    ensure!(other.must_get_credentials()?.access_key_id() != others.access_key_id(), "--all left a pod out");
    let nobody = command(&served, &["flush", "--pod", "default/nobody"])?;
    ensure!(nobody.status.code() == Some(1) && text(&nobody).contains("no pod of this node"), "{}", text(&nobody));
    Ok(())
}

#[test]
fn a_flush_takes_away_only_what_eks_auth_refuses() -> Result<()> {
    let served = served()?;
    let key = served.pod.must_get_credentials()?.access_key_id();
    served.node.eks_auth().fail(503, "ServiceUnavailableException", "down")?;
    let output = command(&served, &["flush", "--all"])?;
    ensure!(output.status.code() == Some(1) && text(&output).contains("is kept"), "{}", text(&output));
    ensure!(served.pod.must_get_credentials()?.access_key_id() == key, "an outage took valid credentials away");
    let failure = status(&served)?["last_failure"]["reason"].clone();
    ensure!(failure == "eks_auth_unavailable", "{failure}");

    served.node.eks_auth().behave()?;
    served.node.eks_auth().fail(404, "ResourceNotFoundException", "No association")?;
    let output = command(&served, &["flush", "--pod", served.pod.uid()])?;
    ensure!(output.status.code() == Some(1) && text(&output).contains("refused: given up"), "{}", text(&output));
    must_be_refused(&served.pod.credentials()?, 404, "(ResourceNotFoundException): No association")?;

    // The association is back: the next flush asks at once, whatever was remembered.
    served.node.eks_auth().behave()?;
    let output = command(&served, &["flush", "--pod", served.pod.uid()])?;
    ensure!(output.status.success(), "{}", text(&output));
    must_be_granted(&served.pod.credentials()?)
}

#[test]
fn without_an_agent_the_command_says_where_it_looked() -> Result<()> {
    let mut served = served()?;
    served.agent.kill()?;
    let output = command(&served, &["status"])?;
    ensure!(output.status.code() == Some(1) && text(&output).contains("--run-dir"), "{}", text(&output));
    Ok(())
}
