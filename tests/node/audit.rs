//! What was granted and refused: told over the admin socket, followed, written to a file, and without a secret.
use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::AgentSpec,
    client::Client,
    node::Node,
    operator::tell,
    process::{binary, eventually},
};
use serde_json::Value;

use crate::common::{Served, served};

fn lines(text: &str) -> Result<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn audit(served: &Served) -> Result<Vec<Value>> {
    let told = tell(served.agent.run_dir(), &["audit"])?;
    ensure!(told.code == Some(0), "{}", told.text);
    lines(&told.text)
}

#[test]
fn a_grant_and_a_refusal_are_told_with_what_the_kernel_says_of_the_caller() -> Result<()> {
    let served = served()?;
    ensure!(audit(&served)?.is_empty());
    let answer = served.pod.must_get_credentials()?;
    served.pod.must_get_credentials()?;
    let other = served.node.pod("other")?;
    ensure!(other.ask_once(&Client::with_token(served.pod.token()))?.status == Some(403));
    let told = audit(&served)?;
    let [fetched, cached, refused] = &told[..] else { anyhow::bail!("{told:#?}") };
    ensure!(fetched["cached"] == false && cached["cached"] == true, "{told:#?}");
    for granted in [fetched, cached] {
        ensure!(
            granted["decision"] == "granted" && granted["access_key_id"] == answer.access_key_id().as_str(),
            "{told:#?}"
        );
        ensure!(granted["pod_uid"] == served.pod.uid() && granted["service_account"] == "app", "{told:#?}");
        ensure!(
            granted["namespace"] == "default" && granted["pod"] == served.pod.subject().pod_name.as_str(),
            "{told:#?}"
        );
        ensure!(granted["container_id"] == served.pod.container("app")?.id() && granted["uid"] == 0, "{told:#?}");
        ensure!(granted["association_id"].as_str().is_some_and(|id| id.starts_with("a-")), "{told:#?}");
        ensure!(granted["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{told:#?}");
    }
    ensure!(refused["decision"] == "refused" && refused["reason"] == "foreign_token", "{told:#?}");
    ensure!(refused["pod_uid"] == other.uid() && refused["access_key_id"].is_null(), "{told:#?}");
    let text = format!("{told:?}");
    for secret in [served.pod.token(), other.token(), &answer.member("SecretAccessKey"), &answer.member("Token")] {
        ensure!(!secret.is_empty() && !text.contains(secret), "the audit tells a secret");
    }
    Ok(())
}

#[test]
fn it_is_followed_from_one_agent_to_the_next() -> Result<()> {
    let Served { pod, mut agent, node } = served()?;
    let first = pod.must_get_credentials()?.access_key_id();
    let run_dir = agent.run_dir().to_owned();
    let mut following = Command::new(binary("pod-identity-agent")?);
    following.args(["audit", "--follow", "--run-dir"]).arg(&run_dir).stdout(Stdio::piped());
    let mut following = following.spawn()?;
    let mut told = BufReader::new(following.stdout.take().context("stdout")?).lines();
    let before = told.next().context("nothing is told")??;
    ensure!(before.contains(&first), "{before}");
    pod.must_get_credentials()?;
    let second = told.next().context("nothing more is told")??;
    ensure!(second.contains(&first), "{second}");
    // The next agent takes the socket's name over, as in a rollout.
    let spec = AgentSpec { privileged: true, ..AgentSpec::flags(&["--run-dir", &run_dir.display().to_string()]) };
    let next = node.start_agent(&spec)?;
    next.wait_for_log(&["ready", "namespaces"], Duration::from_secs(20))?;
    agent.terminate(Duration::from_secs(20))?;
    let again = eventually("the next agent to serve", Duration::from_secs(10), || {
        let answer = pod.credentials()?;
        Ok((answer.status == Some(200)).then(|| answer.access_key_id()))
    })?;
    let after = told.next().context("the next agent's is not told")??;
    following.kill()?;
    following.wait()?;
    ensure!(again != first && after.contains(&again), "{after}");
    Ok(())
}

#[test]
fn the_file_is_written_by_a_thread_that_can_do_nothing_else_and_is_set_aside_when_it_is_full() -> Result<()> {
    let node = Node::new()?;
    let directory = node.dir().join("audit");
    fs::create_dir(&directory)?;
    let file = directory.join("audit.log");
    let flags = ["--audit-log", &file.display().to_string(), "--audit-log-max-mib", "1"];
    // The rest of its file system is read-only: the chart's `auditLog` mounts a directory of the node.
    let spec = AgentSpec { writable: Some(directory), ..AgentSpec::flags(&flags) };
    let (mut agent, pod) = (node.agent_with(&spec)?, node.pod("app")?);
    let key = pod.must_get_credentials()?.access_key_id();
    let written = || lines(&fs::read_to_string(&file)?);
    eventually("the grant to be written", Duration::from_secs(5), || {
        Ok(written()?.iter().any(|line| line["access_key_id"] == key.as_str()).then_some(()))
    })?;
    ensure!(fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600);

    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid()))?;
    let status = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    let thread = status.filter(|status| status.starts_with("Name:\taudit\n")).collect::<String>();
    ensure!(thread.contains("CapEff:\t0000000000000000") && thread.contains("Seccomp:\t2"), "{thread}");

    let many = 4000;
    let answers = pod.ask(&Client::with_token(pod.token()).requests(many))?;
    ensure!(answers.iter().filter(|answer| answer.status == Some(200)).count() == many);
    agent.terminate(Duration::from_secs(20))?;
    let old = fs::read_to_string(file.with_extension("log.1"))?;
    let (old, new) = (lines(&old)?, written()?);
    let lost: u64 = old.iter().chain(&new).filter_map(|line| line["events"].as_u64()).sum();
    let told = old.iter().chain(&new).filter(|line| line["decision"] == "granted").count();
    ensure!(told + usize::try_from(lost)? == many + 1 && told > 3000, "{told} told, {lost} lost");
    ensure!(fs::metadata(file.with_extension("log.1"))?.len() <= 1024 * 1024);
    Ok(())
}
