//! The walkthrough of deploy/examples, walked: its commands as they are written, with the AWS command line, against an IAM
//! and an EKS that the pod's credentials then come from.
use std::{path::PathBuf, process::Output, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::Agent,
    aws::application::{Application, Family},
    eks_auth::CLUSTER,
    node::{Node, NodeSpec},
    operator::tell,
    pod::{Pod, PodSpec},
    process::run,
};
use serde_json::{Value, json};

/// For the AWS command line, which tries again for seconds before it gives up.
const SPEAKS: Duration = Duration::from_mins(1);

fn examples() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy/examples")
}

/// The commands that begin so, as they are written, without what a comment says.
fn written(beginning: &str) -> Result<Vec<String>> {
    let readme = std::fs::read_to_string(examples().join("README.md"))?.replace("\\\n", " ");
    let commands = readme.lines().filter(|line| line.starts_with(beginning));
    let commands: Vec<_> =
        commands.map(|line| line.split(" #").next().unwrap_or_default().replace("my-cluster", CLUSTER)).collect();
    ensure!(!commands.is_empty(), "the walkthrough has no command {beginning}");
    Ok(commands)
}

/// Runs a command of the AWS command line as an administrator of the account, where the files are.
fn administer(node: &Node, command: &str) -> Result<String> {
    let mut line = node.aws()?.command_line()?;
    line.current_dir(examples()).args(command.split_whitespace().skip(1));
    let output = run(&mut line, SPEAKS)?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// moto looks for AWS principals in a trust policy, and fails without one: EKS Auth's own, which is a user there.
fn have_moto_understand(node: &Node) -> Result<()> {
    let trust = std::fs::read_to_string(examples().join("trust-policy.json"))?;
    let mut trust: Value = serde_json::from_str(&trust)?;
    trust["Statement"][0]["Principal"]["AWS"] = json!("*");
    let file = node.dir().join("trust-policy.json");
    std::fs::write(&file, trust.to_string())?;
    let update = "aws iam update-assume-role-policy --role-name shop-reader --policy-document";
    administer(node, &format!("{update} file://{}", file.display())).map(drop)
}

/// What the walkthrough has the pod do.
fn in_the_pod(node: &Node, pod: &Pod, number: usize) -> Result<Output> {
    let written = written("kubectl -n shop exec reader -- aws ")?;
    let (_, command) = written.get(number).context("no such command")?.split_once("-- aws ").context("no command")?;
    let application = Application::new(pod, Family::V4, Some(node.aws()?))?;
    let mut aws = application.command(&application.clients().python_program("aws"))?;
    run(aws.args(command.split_whitespace()), SPEAKS)
}

fn reader(node: &Node) -> Result<Pod> {
    let mut spec = PodSpec::named("reader");
    "shop".clone_into(&mut spec.subject.namespace);
    node.pod_with(spec)
}

#[test]
fn its_commands_lead_to_a_pod_that_lists_its_bucket_and_away_again() -> Result<()> {
    let node = Node::with(NodeSpec { aws: true, ..NodeSpec::default() })?;
    for bucket in ["shop-orders", "another-bucket"] {
        node.aws()?.bucket(bucket, "2026.csv")?;
    }
    let agent = node.agent()?;
    for command in [written("aws iam create-role ")?, written("aws iam put-role-policy ")?].concat() {
        administer(&node, &command)?;
    }
    have_moto_understand(&node)?;
    for command in written("aws eks create-pod-identity-association ")? {
        administer(&node, &command)?;
    }

    let pod = reader(&node)?;
    let said = |output: &Output| {
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let identity = in_the_pod(&node, &pod, 0)?;
    ensure!(identity.status.success() && said(&identity).contains(":assumed-role/shop-reader/"), "{}", said(&identity));
    let listed = in_the_pod(&node, &pod, 1)?;
    ensure!(listed.status.success() && said(&listed).contains("2026.csv"), "{}", said(&listed));
    let denied = in_the_pod(&node, &pod, 2)?;
    ensure!(!denied.status.success() && said(&denied).contains("AccessDenied"), "{}", said(&denied));

    go_away(&node)?;
    flushed_and_refused(&agent, &pod)
}

/// The last step: the association by its id, then the role.
fn go_away(node: &Node) -> Result<()> {
    let [list] = &written("aws eks list-pod-identity-associations ")?[..] else { anyhow::bail!("not one list") };
    let listed: Value = serde_json::from_str(&administer(node, list)?)?;
    let id = listed["associations"][0]["associationId"].as_str().with_context(|| listed.to_string())?;
    for command in written("aws eks delete-pod-identity-association ")? {
        administer(node, &command.replace("a-0123456789abcdef0", id))?;
    }
    for command in [written("aws iam delete-role-policy ")?, written("aws iam delete-role ")?].concat() {
        administer(node, &command)?;
    }
    Ok(())
}

/// A flush of the service account has the agent see that the association is gone.
fn flushed_and_refused(agent: &Agent, pod: &Pod) -> Result<()> {
    let told = tell(agent.run_dir(), &["flush", "--service-account", "shop/reader"])?;
    ensure!(told.code == Some(1) && told.text.contains("refused: given up"), "{}", told.text);
    let refused = pod.credentials()?;
    ensure!(refused.status == Some(404), "{refused:?}");
    Ok(())
}
