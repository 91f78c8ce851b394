//! Each SDK gets credentials that AWS accepts, over both target addresses, and on the way from the agent to it they cross
//! no interface but the pod's own loopback.
use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    aws::{
        ACCOUNT,
        application::{Application, Family},
    },
    capture::Capture,
    pod::Pod,
    process::{QUICK, run},
};
use serde_json::{Value, json};

use crate::{
    client::{Fetched, Sdk, aws},
    world::{ALLOWED, KEY, OTHER, READER, World},
};

#[test]
fn boto3_over_ipv4() -> Result<()> {
    is_accepted(Sdk::Boto3, Family::V4)
}

#[test]
fn boto3_over_ipv6() -> Result<()> {
    is_accepted(Sdk::Boto3, Family::V6)
}

#[test]
fn boto3_over_v4_mapped_sockets() -> Result<()> {
    is_accepted(Sdk::Boto3Mapped, Family::V4)
}

#[test]
fn aws_cli_over_ipv4() -> Result<()> {
    the_command_line_is_accepted(Family::V4)
}

#[test]
fn aws_cli_over_ipv6() -> Result<()> {
    the_command_line_is_accepted(Family::V6)
}

#[test]
fn javascript_sdk_over_ipv4() -> Result<()> {
    is_accepted(Sdk::JavaScript, Family::V4)
}

#[test]
fn javascript_sdk_over_ipv6() -> Result<()> {
    is_accepted(Sdk::JavaScript, Family::V6)
}

#[test]
fn rust_sdk_over_ipv4() -> Result<()> {
    is_accepted(Sdk::Rust, Family::V4)
}

#[test]
fn rust_sdk_over_ipv6() -> Result<()> {
    is_accepted(Sdk::Rust, Family::V6)
}

/// Credentials that moto did not give out are refused by it: what makes the other tests of this file say anything.
#[test]
fn invented_credentials_are_not_accepted() -> Result<()> {
    let world = World::new()?;
    let pod = world.pod(READER)?;
    let application = Application::new(&pod, Family::V4, Some(world.node.aws()?))?;
    let mut aws = application.command(&application.clients().python_program("aws"))?;
    aws.env("AWS_ACCESS_KEY_ID", "ASIAINVENTED00000000")
        .env("AWS_SECRET_ACCESS_KEY", "x")
        .env("AWS_SESSION_TOKEN", "x");
    let output = run(aws.args(["sts", "get-caller-identity"]), QUICK)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && complaint.contains("InvalidClientTokenId"), "{output:?}");
    Ok(())
}

fn is_accepted(sdk: Sdk, family: Family) -> Result<()> {
    let world = World::new()?;
    let pod = world.pod(READER)?;
    let cached = get_cached(&pod)?;
    let application = Application::new(&pod, family, Some(world.node.aws()?))?;

    let by_hook = if sdk == Sdk::Boto3Mapped { Family::V6 } else { family };
    let before = world.steered(by_hook)?;
    let capture = Both::start(&world, &pod)?;
    let mut session = sdk.start(&application, 1, &[ALLOWED, OTHER])?;
    let fetched = Fetched::read(&session.next()?)?;
    // The session waits: nothing has been signed yet.
    capture.only_loopback_carried(&pod, &cached)?;
    ensure!(fetched == cached, "these are not the agent's: {fetched:?}");
    ensure!(world.steered(by_hook)? > before, "it did not come by the hook of {by_hook:?}");

    session.go_on()?;
    let identity = session.next()?;
    let arn = identity.get("arn").and_then(Value::as_str).with_context(|| format!("no ARN: {identity}"))?;
    is_the_pods(arn, &pod)?;
    if sdk != Sdk::Rust {
        let (allowed, other) = (session.next()?, session.next()?);
        ensure!(allowed == json!({"step": "bucket", "name": ALLOWED, "keys": [KEY]}), "{allowed}");
        ensure!(other == json!({"step": "bucket", "name": OTHER, "error": "AccessDenied"}), "{other}");
    }
    ensure!(world.node.eks_auth().calls_for(pod.uid())? == 1, "EKS Auth was asked more than once");
    Ok(())
}

fn the_command_line_is_accepted(family: Family) -> Result<()> {
    let world = World::new()?;
    let pod = world.pod(READER)?;
    let cached = get_cached(&pod)?;
    let application = Application::new(&pod, family, Some(world.node.aws()?))?;

    let before = world.steered(family)?;
    let capture = Both::start(&world, &pod)?;
    // Fetches them to show where they come from, and talks to no service.
    let list = aws(&application, &["configure", "list"])?;
    capture.only_loopback_carried(&pod, &cached)?;
    let shown = String::from_utf8(list.stdout)?;
    let end = cached.access_key_id.get(16..).context("an access key's id has 20 characters")?;
    ensure!(shown.contains("container-role") && shown.contains(&format!("*{end} ")), "{shown}");
    ensure!(world.steered(family)? > before, "it did not come by the hook of {family:?}");

    let identity = aws(&application, &["sts", "get-caller-identity", "--query", "Arn", "--output", "text"])?;
    ensure!(identity.status.success(), "{identity:?}");
    is_the_pods(String::from_utf8(identity.stdout)?.trim(), &pod)?;
    let allowed = aws(&application, &["s3", "ls", &format!("s3://{ALLOWED}")])?;
    ensure!(allowed.status.success() && String::from_utf8_lossy(&allowed.stdout).contains(KEY), "{allowed:?}");
    let other = aws(&application, &["s3", "ls", &format!("s3://{OTHER}")])?;
    ensure!(!other.status.success() && other.stdout.is_empty(), "{other:?}");
    ensure!(String::from_utf8_lossy(&other.stderr).contains("(AccessDenied)"), "{other:?}");
    ensure!(world.node.eks_auth().calls_for(pod.uid())? == 1, "EKS Auth was asked more than once");
    Ok(())
}

/// Makes the agent get them. What follows is between it and the pod alone: EKS Auth is not asked again.
fn get_cached(pod: &Pod) -> Result<Fetched> {
    Ok(Fetched::of_answer(&pod.must_get_credentials()?))
}

/// The session is named for the pod, as EKS names it.
fn is_the_pods(arn: &str, pod: &Pod) -> Result<()> {
    let wanted = format!("arn:aws:sts::{ACCOUNT}:assumed-role/{READER}/eks-{}-", pod.subject().pod_name);
    ensure!(arn.starts_with(&wanted), "{arn} is not {wanted}…");
    Ok(())
}

/// What crosses any interface of a pod, and any of its node.
struct Both {
    in_pod: Capture,
    on_node: Capture,
}

impl Both {
    fn start(world: &World, pod: &Pod) -> Result<Self> {
        Ok(Self { in_pod: Capture::start(pod.netns()?)?, on_node: Capture::start(world.node.netns())? })
    }

    fn only_loopback_carried(self, pod: &Pod, fetched: &Fetched) -> Result<()> {
        let (in_pod, on_node) = (self.in_pod.stop(), self.on_node.stop());
        let Fetched { access_key_id, secret_access_key, session_token } = fetched;
        for secret in [pod.token(), access_key_id, secret_access_key, session_token] {
            // That it is seen there shows that it would be seen elsewhere.
            let carried = in_pod.interfaces_that_carried(secret);
            ensure!(carried == ["lo"], "in the pod, these interfaces carried {secret}: {carried:?}");
            let carried = on_node.interfaces_that_carried(secret);
            ensure!(carried.is_empty(), "on the node, these interfaces carried {secret}: {carried:?}");
        }
        Ok(())
    }
}
