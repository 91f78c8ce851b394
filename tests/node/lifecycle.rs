//! Start, readiness, take-over, end: and nothing left behind.
use std::{
    net::TcpStream,
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::{Agent, AgentSpec},
    cgroup::Cgroup,
    client::Client,
    eks_auth::CLUSTER,
    node::Node,
    pod::Pod,
    process::{QUICK, binary, eventually, must, run},
};

use crate::common::{V4, V6, must_be_granted, served};

const STOPS: Duration = Duration::from_secs(10);

/// Programs attached to a cgroup, as bpftool shows them.
fn attached(cgroup: &Cgroup) -> Result<Vec<String>> {
    let shown = must(Command::new("bpftool").args(["-j", "cgroup", "show"]).arg(cgroup.dir()))?;
    if shown.trim().is_empty() {
        return Ok(Vec::new());
    }
    let programs: Vec<serde_json::Value> = serde_json::from_str(&shown).context(shown)?;
    Ok(programs.iter().map(|program| program["name"].as_str().unwrap_or_default().to_owned()).collect())
}

fn listening(pod: &Pod) -> Result<bool> {
    pod.netns()?.within(|| TcpStream::connect("127.0.0.1:706").is_ok())
}

/// Waits until nobody holds the pod's namespace, which has no name and no process any more: its link is gone then.
fn must_let_go(node: &Node, pod: Pod) -> Result<()> {
    let interface = pod.node_interface()?;
    pod.remove()?;
    eventually("the pod's namespace to end", STOPS, || {
        let links = must(Command::new("ip").args(["-n", node.netns().name(), "-br", "link"]))?;
        Ok((!links.contains(&interface)).then_some(()))
    })
}

#[test]
fn after_sigterm_nothing_is_left() -> Result<()> {
    let mut served = served()?;
    served.pod.must_get_credentials()?;
    let kubepods = served.node.kubepods().cgroup();
    let mut names = attached(&kubepods)?;
    names.sort();
    ensure!(names.len() == 4, "connect and getpeername, for both families, were to be attached: {names:?}");
    ensure!(listening(&served.pod)?);
    let log = served.agent.run_dir().join("log");
    let status = served.agent.terminate(STOPS)?;
    ensure!(status.success(), "it ended with {status}: {}", std::fs::read_to_string(log)?);
    ensure!(attached(&kubepods)?.is_empty(), "programs are still attached");
    ensure!(!listening(&served.pod)?, "a listener is left");
    ensure!(!served.agent.run_dir().join("admin.sock").exists(), "the admin socket is left");
    must_let_go(&served.node, served.pod)
}

#[test]
fn after_a_crash_nothing_is_left_either_and_the_next_agent_serves() -> Result<()> {
    let mut served = served()?;
    served.pod.must_get_credentials()?;
    served.agent.kill()?;
    let kubepods = served.node.kubepods().cgroup();
    eventually("the kernel to detach the programs", STOPS, || Ok(attached(&kubepods)?.is_empty().then_some(())))?;
    ensure!(!listening(&served.pod)?, "a listener is left");
    let lost = served.pod.ask_once(&Client::with_token(served.pod.token()).connect_once().timeout_ms(500))?;
    ensure!(lost.status.is_none(), "somebody answered: {lost:?}");
    let _next = served.node.agent()?;
    served.pod.must_get_credentials().map(|_| ())
}

#[test]
fn a_request_under_way_is_answered_before_the_end() -> Result<()> {
    let mut served = served()?;
    served.node.eks_auth().delay(Duration::from_millis(500))?;
    let kubepods = served.node.kubepods().cgroup();
    let (pod, agent) = (&served.pod, &mut served.agent);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| pod.credentials());
        agent.wait_for_metric("pod_identity_connections", 1.0, STOPS)?;
        agent.tell_to_stop()?;
        // Nothing new is steered to an agent that is about to end: that comes first.
        eventually("the programs to be detached", STOPS, || Ok(attached(&kubepods)?.is_empty().then_some(())))?;
        ensure!(agent.ended()?.is_none(), "it ended with a request under way");
        ensure!(agent.wait(STOPS)?.success());
        must_be_granted(&asking.join().map_err(|_| anyhow::anyhow!("the client panicked"))??)
    })
}

#[test]
fn one_agent_takes_over_from_another_without_a_failed_request() -> Result<()> {
    let mut served = served()?;
    served.pod.must_get_credentials()?;
    let (pod, node, old) = (&served.pod, &served.node, &mut served.agent);
    let stop = AtomicBool::new(false);
    let (asked, new) = std::thread::scope(|scope| -> Result<(usize, Agent)> {
        let asking = scope.spawn(|| -> Result<usize> {
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                for to in [V4, V6] {
                    let client = Client::with_token(pod.token()).to(to).clients(3).connect_once();
                    for answer in pod.ask(&client)? {
                        must_be_granted(&answer)?;
                        asked += 1;
                    }
                }
            }
            Ok(asked)
        });
        let new = node.agent();
        std::thread::sleep(Duration::from_millis(300));
        let ended = old.terminate(STOPS);
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        let asked = asking.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        ensure!(ended?.success());
        Ok((asked, new?))
    })?;
    ensure!(asked > 20, "{asked} requests say nothing");
    ensure!(attached(&node.kubepods().cgroup())?.len() == 4, "the new agent's programs alone were to be attached");
    ensure!(new.metric("pod_identity_grants_total")? > 0.0);
    Ok(())
}

#[test]
fn an_agent_that_hangs_does_not_stand_in_its_successors_way() -> Result<()> {
    let served = served()?;
    served.agent.freeze()?;
    let next = served.node.agent()?;
    // The frozen agent's programs run first, and refuse what they know no listener for.
    let before = next.metric("pod_identity_namespaces")?;
    let pod = served.node.pod("new")?;
    next.wait_for_metric("pod_identity_namespaces", before + 1.0, STOPS)?;
    for to in [V4, V6] {
        must_be_granted(&pod.ask_once(&Client::with_token(pod.token()).to(to).connect_once())?)?;
    }
    Ok(())
}

#[test]
fn an_agent_outside_of_pods_refuses_to_guess() -> Result<()> {
    let node = Node::new()?;
    let outside = AgentSpec { outside_of_pods: true, ..AgentSpec::default() };
    let mut agent = node.start_agent(&outside)?;
    ensure!(!agent.wait(STOPS)?.success());
    agent.wait_for_log(&["does not run below a kubepods cgroup", "--kubepods-cgroup"], STOPS)?;
    let kubepods = node.kubepods().cgroup();
    let told = AgentSpec { flags: vec!["--kubepods-cgroup".into(), kubepods.dir().display().to_string()], ..outside };
    let _agent = node.agent_with(&told)?;
    node.pod("app")?.must_get_credentials().map(|_| ())
}

#[test]
fn health_is_told_on_the_node_and_metrics_only_where_asked_for() -> Result<()> {
    let served = served()?;
    for path in ["/healthz", "/readyz"] {
        let response = eventually("the health port to be bound", STOPS, || {
            Ok(served.agent.http_on_node("127.0.0.1:2703", path).ok())
        })?;
        ensure!(response.status == 200, "{path}: {}", response.text());
    }
    ensure!(served.agent.http_on_node("127.0.0.1:2703", "/metrics")?.status == 404);
    ensure!(served.agent.http_on_node("127.0.0.1:2705", "/metrics").is_err(), "metrics are served unasked");
    let with =
        served.node.agent_with(&AgentSpec::flags(&["--metrics-port", "2705", "--metrics-address", "127.0.0.1"]))?;
    let metrics =
        eventually("the metrics port to be bound", STOPS, || Ok(with.http_on_node("127.0.0.1:2705", "/metrics").ok()))?;
    ensure!(metrics.status == 200 && metrics.text().contains("pod_identity_http_response"));
    // The second agent finds 2703 taken, and is ready all the same.
    ensure!(with.admin("/readyz")?.status == 200);
    Ok(())
}

fn agent_command(args: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary("pod-identity-agent")?);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_") || name.starts_with("POD_IDENTITY_A"))
    {
        command.env_remove(name);
    }
    run(command.args(args), QUICK)
}

#[test]
fn probe_says_what_the_kubelet_wants_to_know() -> Result<()> {
    let served = served()?;
    let run_dir = served.agent.run_dir().to_string_lossy().into_owned();
    for question in ["--live", "--ready"] {
        let output = agent_command(&["probe", question, "--run-dir", &run_dir])?;
        ensure!(output.status.success(), "{question}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let nobody = agent_command(&["probe", "--ready", "--run-dir", "/nowhere"])?;
    ensure!(!nobody.status.success() && !nobody.stderr.is_empty());
    Ok(())
}

#[test]
fn a_bad_configuration_ends_at_once_and_says_what_to_change() -> Result<()> {
    for (args, says) in [
        (vec!["server", "-c", "x", "-b", "10.0.0.1"], "--bind-hosts '10.0.0.1'"),
        (vec!["server", "-c", "x", "--listener-ports", "30000-30010"], "below 30000"),
        (vec!["server", "-c", "x", "--endpoint", "eks"], "--endpoint"),
    ] {
        let output = agent_command(&args)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(64), "{args:?}: {} {said}", output.status);
        ensure!(said.contains(says) && said.trim().lines().count() == 1, "{args:?}: {said}");
    }
    ensure!(agent_command(&["initialize"])?.status.success() && agent_command(&["version"])?.status.success());
    Ok(())
}

#[test]
fn an_empty_region_is_none() -> Result<()> {
    let node = Node::new()?;
    let spec = |default: &str| AgentSpec {
        env: vec![("AWS_REGION".to_owned(), " ".to_owned()), ("AWS_DEFAULT_REGION".to_owned(), default.to_owned())],
        ..AgentSpec::default()
    };
    let agent = node.agent_with(&spec("eu-west-1"))?;
    // Lines are written by a thread of their own, which may come after the readiness.
    agent.wait_for_log(&["eu-west-1"], Duration::from_secs(2)).map(|_| ())
}

#[test]
fn an_agent_is_ready_while_eks_auth_is_out_of_reach() -> Result<()> {
    let node = Node::new()?;
    let (agent, pod) = (node.agent_with(&AgentSpec::flags(&["--endpoint", "http://127.0.0.1:1"]))?, node.pod("app")?);
    let answer = pod.credentials()?;
    crate::common::must_be_refused(&answer, 503, "EKS Auth cannot be reached")?;
    ensure!(agent.admin("/readyz")?.status == 200, "an outage of {CLUSTER}'s EKS Auth makes the agent unready");
    Ok(())
}
