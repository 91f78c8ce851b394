//! A pod whose service account has no association: EKS Auth's answer reaches its owner as far as each SDK shows it.
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::aws::application::{Application, Family};
use serde_json::Value;

use crate::{
    client::{Sdk, aws},
    world::{READER, World},
};

/// A service account of the namespace `shop` without an association.
const STRANGER: &str = "stranger";

/// For a line to be in the log, which is written off the serving thread.
const LOGGED: Duration = Duration::from_secs(5);

/// The agent's sentence.
const SENTENCE: &str =
    "(ResourceNotFoundException): No association found for service account stranger in namespace shop";

#[test]
fn boto3_shows_status_and_sentence() -> Result<()> {
    let complaint = refuses(|application| complaint_of(Sdk::Boto3, application))?;
    ensure!(complaint.contains("404") && complaint.contains(SENTENCE), "{complaint}");
    Ok(())
}

#[test]
fn the_command_line_shows_status_and_sentence() -> Result<()> {
    let complaint = refuses(|application| {
        let output = aws(application, &["sts", "get-caller-identity"])?;
        ensure!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        Ok(String::from_utf8(output.stderr)?)
    })?;
    ensure!(complaint.contains("404") && complaint.contains(SENTENCE), "{complaint}");
    Ok(())
}

#[test]
fn javascript_shows_that_there_are_none() -> Result<()> {
    let complaint = refuses(|application| complaint_of(Sdk::JavaScript, application))?;
    ensure!(complaint.starts_with("CredentialsProviderError"), "{complaint}");
    Ok(())
}

#[test]
fn rust_shows_the_status() -> Result<()> {
    let complaint = refuses(|application| complaint_of(Sdk::Rust, application))?;
    ensure!(complaint.contains("404"), "{complaint}");
    Ok(())
}

fn complaint_of(sdk: Sdk, application: &Application<'_>) -> Result<String> {
    let said = sdk.start(application, 1, &[])?.next()?;
    said.get("error").and_then(Value::as_str).map(str::to_owned).with_context(|| format!("no error: {said}"))
}

/// What `client` shows in a pod without an association. The refusal is counted and logged, and is that pod's alone.
fn refuses(client: impl FnOnce(&Application<'_>) -> Result<String>) -> Result<String> {
    let world = World::new()?;
    let pod = world.pod(STRANGER)?;
    let complaint = client(&Application::new(&pod, Family::V4, Some(world.node.aws()?))?)?;
    ensure!(world.agent.refusals("eks_auth_refused")? >= 1.0, "the refusal is not counted");
    world.agent.wait_for_log(&["\"eks_auth_refused\"", pod.uid()], LOGGED)?;
    ensure!(!world.node.eks_auth().outcomes()?.contains_key("ok"), "EKS Auth gave somebody credentials");
    world.pod(READER)?.must_get_credentials()?;
    Ok(complaint)
}
