//! What the pods do: the AWS CLI as it comes, with nothing configured but what EKS injects.
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{client::Answer, pod::Pod};

use crate::{
    scene::{ALLOWED, OTHER, READER, Scene},
    screen::Screen,
};

/// The first answer that the pod gets, before the AWS CLI asks.
pub(crate) fn first_fetch(screen: &Screen, scene: &Scene) -> Result<Answer> {
    screen.go_on()?;
    scene.reader.must_get_credentials()
}

/// The pod with an association.
pub(crate) fn associated(screen: &Screen, scene: &Scene) -> Result<()> {
    let pod = &scene.reader;
    screen.heading(&format!("In pod {}: the AWS CLI, unmodified", pod.subject().pod_name));
    injected(screen, scene)?;

    let identity = aws(screen, scene, pod, &["sts", "get-caller-identity"])?;
    let said = String::from_utf8(identity.stdout)?;
    let role = format!("assumed-role/{READER}/eks-{}", pod.subject().pod_name);
    screen.check(
        identity.status.success() && said.contains(&role),
        "the pod is the role, in a session named for the pod",
    )?;

    let allowed = aws(screen, scene, pod, &["s3", "ls", &format!("s3://{ALLOWED}")])?;
    let listed = String::from_utf8_lossy(&allowed.stdout).contains(".csv");
    screen.check(allowed.status.success() && listed, "the bucket of the role's policy is listed")?;

    let other = aws(screen, scene, pod, &["s3", "ls", &format!("s3://{OTHER}")])?;
    let denied = String::from_utf8_lossy(&other.stderr).contains("AccessDenied");
    screen.check(!other.status.success() && denied, "another bucket is denied")
}

/// The pod without one.
pub(crate) fn not_associated(screen: &Screen, scene: &Scene) -> Result<()> {
    let pod = &scene.stranger;
    screen.heading(&format!("In pod {}, without an association", pod.subject().pod_name));
    let refused = aws(screen, scene, pod, &["sts", "get-caller-identity"])?;
    let complaint = String::from_utf8(refused.stderr)?;
    let clear = complaint.contains("404") && complaint.contains("No association found for service account");
    screen.check(!refused.status.success() && clear, "refused, with the reason that EKS Auth gave")?;
    let counted = scene.agent.refusals("eks_auth_refused")?;
    screen.check(
        counted >= 1.0,
        &format!("counted: pod_identity_refusals_total{{reason=\"eks_auth_refused\"}} {counted}"),
    )
}

fn injected(screen: &Screen, scene: &Scene) -> Result<()> {
    let mut command = scene.application(&scene.reader)?.command("env".as_ref())?;
    let output = pod_identity_tests::process::run(&mut command, pod_identity_tests::process::QUICK)?;
    ensure!(output.status.success(), "env: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let container: Vec<&str> = text.lines().filter(|line| line.starts_with("AWS_CONTAINER_")).collect();
    ensure!(container.len() == 2, "EKS injects two variables: {container:?}");
    screen.listing("env | grep AWS_CONTAINER_", &container);
    Ok(())
}

fn aws(screen: &Screen, scene: &Scene, pod: &Pod, args: &[&str]) -> Result<Output> {
    let application = scene.application(pod)?;
    let mut command = application.command(&application.clients().python_program("aws"))?;
    screen.command(&format!("aws {}", args.join(" ")), command.args(args)).context("the AWS CLI did not run")
}
