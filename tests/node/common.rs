//! What the modules share: a node with an agent and a pod, and the checks that every refusal has to pass.
use std::{thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use pod_identity_tests::{
    agent::{Agent, AgentSpec},
    client::{Answer, Client},
    node::Node,
    pod::Pod,
    process::binary,
    starting_line::StartingLine,
};

/// The addresses that SDKs aim at.
pub(crate) const V4: &str = "169.254.170.23:80";
/// The one of IPv6 clusters.
pub(crate) const V6: &str = "[fd00:ec2::23]:80";
/// What Java and Node make of the IPv4 address on their IPv6 sockets.
pub(crate) const MAPPED: &str = "[::ffff:169.254.170.23]:80";

/// A node with an agent and one pod that has an association.
pub(crate) struct Served {
    // The pod's processes end before the agent, the agent before the node.
    pub(crate) pod: Pod,
    pub(crate) agent: Agent,
    pub(crate) node: Node,
}

/// The usual case.
pub(crate) fn served() -> Result<Served> {
    served_with(&AgentSpec::default())
}

/// The usual case with flags.
pub(crate) fn served_with(spec: &AgentSpec) -> Result<Served> {
    let node = Node::new()?;
    let agent = node.agent_with(spec)?;
    let pod = node.pod("app")?;
    Ok(Served { pod, agent, node })
}

/// Fails unless the answer carries credentials.
pub(crate) fn must_be_granted(answer: &Answer) -> Result<()> {
    ensure!(answer.status == Some(200) && answer.access_key_id().starts_with("ASIA"), "not granted: {answer:?}");
    Ok(())
}

/// Fails unless the answer is this refusal in the contract's form: JSON in both spellings, not to be stored, and
/// `Retry-After` exactly where trying again can help.
pub(crate) fn must_be_refused(answer: &Answer, status: u16, message: &str) -> Result<()> {
    ensure!(answer.status == Some(status), "not {status}: {answer:?}");
    let json = answer.json();
    let members: Vec<&String> = json.as_object().context("a refusal is a JSON object")?.keys().collect();
    ensure!(members.len() == 4, "{answer:?}");
    ensure!(json["code"] == status && json["Code"] == status && json["message"] == json["Message"], "{answer:?}");
    ensure!(answer.member("message").contains(message), "not '{message}': {answer:?}");
    ensure!(answer.header("content-type") == Some("application/json"), "{answer:?}");
    ensure!(answer.header("content-length") == Some(answer.body.len().to_string().as_str()), "{answer:?}");
    ensure!(answer.header("retry-after").is_some() == (status == 503), "{answer:?}");
    // No token, path or address of the node's own.
    for secret in ["eyJ", "/var/", "/tmp/", "127.0.0.1"] {
        ensure!(!answer.body.contains(secret), "a refusal says {secret}: {answer:?}");
    }
    Ok(())
}

/// A refusal for one reason: its status, a part of its message, its name in metrics.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) status: u16,
    pub(crate) message: &'a str,
    pub(crate) reason: &'a str,
}

/// A refusal that is expected.
pub(crate) fn refusal<'a>(status: u16, reason: &'a str, message: &'a str) -> Expected<'a> {
    Expected { status, message, reason }
}

/// Runs something that leads to one refusal, and fails unless it is this one and is counted once, for this reason, and
/// as a response of its status.
pub(crate) fn must_refuse(
    agent: &Agent,
    expected: Expected<'_>,
    ask: impl FnOnce() -> Result<Answer>,
) -> Result<Answer> {
    let Expected { status, message, reason } = expected;
    let before = agent.metrics()?;
    let answer = ask()?;
    must_be_refused(&answer, status, message).context(reason.to_owned())?;
    let after = agent.metrics()?;
    let rise = |name: &str| after.get(name).unwrap_or(&0.0) - before.get(name).unwrap_or(&0.0);
    let counted: Vec<&String> =
        after.keys().filter(|name| name.starts_with("pod_identity_refusals_total") && rise(name) != 0.0).collect();
    let name = format!("pod_identity_refusals_total{{reason=\"{reason}\"}}");
    ensure!(counted == [&name] && (rise(&name) - 1.0).abs() < 0.1, "{reason} was to be counted once, not {counted:?}");
    let responses = format!("pod_identity_http_response{{code=\"{status}\"}}");
    ensure!((rise(&responses) - 1.0).abs() < 0.1, "{responses} rose by {}", rise(&responses));
    Ok(answer)
}

/// Pods of one service account, with an association. Several are made at a time: most of it is waiting for the kernel.
pub(crate) fn pods(node: &Node, service_account: &str, count: usize) -> Result<Vec<Pod>> {
    const AT_A_TIME: usize = 8;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_A_TIME.min(count))
            .map(|first| {
                scope.spawn(move || -> Result<Vec<Pod>> {
                    (first..count).step_by(AT_A_TIME).map(|_| node.pod(service_account)).collect()
                })
            })
            .collect();
        let mut pods = Vec::with_capacity(count);
        for thread in threads {
            pods.extend(thread.join().map_err(|_| anyhow!("a thread that makes pods panicked"))??);
        }
        Ok(pods)
    })
}

/// Lets a client of each pod ask with the pod's own token, all at the same moment. `how` says what else they do.
pub(crate) fn ask_at_once(node: &Node, pods: &[Pod], how: impl Fn(Client) -> Client) -> Result<Vec<Answer>> {
    let line = StartingLine::draw(node.dir())?;
    thread::scope(|scope| {
        let asking: Vec<_> = pods
            .iter()
            .map(|pod| {
                let client = how(Client::with_token(pod.token()).from_line(&line));
                scope.spawn(move || pod.ask_once(&client))
            })
            .collect();
        line.release(pods.len())?;
        asking.into_iter().map(|asked| asked.join().map_err(|_| anyhow!("a client panicked"))?).collect()
    })
}

/// From a client's first attempt to connect to its answer.
pub(crate) fn took(answer: &Answer) -> Duration {
    Duration::from_micros(answer.connect_us + answer.latency_us)
}

/// The longest that any of them took.
pub(crate) fn slowest(answers: &[Answer]) -> Duration {
    answers.iter().map(took).max().unwrap_or_default()
}

/// The middle one.
pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Asks from namespaces that a process of the pod makes for itself, one after the other, all kept alive to the end.
pub(crate) fn ask_from_new_namespaces(pod: &Pod, count: usize) -> Result<Vec<Answer>> {
    let client = binary("pod-client")?;
    let ask = format!("{} --connect-within-ms=1500 --header='Authorization: {}'", client.display(), pod.token());
    let script = format!(
        "for i in $(seq {count}); do unshare --net sh -c \"ip link set lo up; {ask}; exec sleep 30\" & sleep 0.1; done; \
         sleep 2; kill $(jobs -p)"
    );
    let output = pod.exec("bash", &["-c", &script])?;
    let lines = String::from_utf8(output.stdout)?;
    lines.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}
