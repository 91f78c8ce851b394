//! `doctor` finds what is wrong with a node, and with the container it runs in, with an agent beside it and without one.
use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::CAPABILITIES,
    operator::{Told, told},
    pod::PodSpec,
    process::eventually,
    sigv4::AccessKey,
    standin::control::Effect,
};
use serde_json::Value;

use crate::common::{Served, served};

/// Nothing listens there in the node's namespace, which has no way out.
const NO_METADATA: &str = "http://127.0.0.1:9";

fn doctor(served: &Served, before: &[&str], capabilities: &str, args: &[&str]) -> Result<Command> {
    let args = [&["doctor", "--output", "json"], args].concat();
    let mut command = served.agent.beside(before, capabilities, &args)?;
    command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", NO_METADATA);
    Ok(command)
}

fn in_the_agents_container(served: &Served) -> Result<Examined> {
    Examined::read(&mut doctor(served, &[], CAPABILITIES, &[])?)
}

#[derive(Debug)]
struct Examined {
    json: Value,
    code: Option<i32>,
}

impl Examined {
    fn read(command: &mut Command) -> Result<Self> {
        let Told { text, code } = told(command)?;
        Ok(Self { json: serde_json::from_str(&text).with_context(|| text.clone())?, code })
    }

    fn check(&self, name: &str) -> Result<&Value> {
        let checks = self.json["checks"].as_array().context("checks")?;
        checks.iter().find(|check| check["step"] == name).with_context(|| format!("no {name}: {:#}", self.json))
    }

    fn must(&self, name: &str, verdict: &str, finding: &str) -> Result<()> {
        let check = self.check(name)?;
        let found = check["finding"].as_str().is_some_and(|text| text.contains(finding));
        ensure!(check["verdict"] == verdict && found, "not {verdict}, {finding}: {check:#}");
        ensure!(verdict == "ok" || verdict == "not_known" || check["remedy"] != "", "no remedy: {check:#}");
        Ok(())
    }

    /// Fails unless this and nothing else fails.
    fn must_fail_only(&self, name: &str, finding: &str) -> Result<()> {
        self.must(name, "fail", finding)?;
        ensure!(self.failed()? == [name], "{:#}", self.json);
        ensure!(self.code == Some(1) && self.json["good"] == false, "{:#}", self.json);
        Ok(())
    }

    fn failed(&self) -> Result<Vec<&str>> {
        let checks = self.json["checks"].as_array().context("checks")?;
        Ok(checks
            .iter()
            .filter(|check| check["verdict"] == "fail")
            .filter_map(|check| check["step"].as_str())
            .collect())
    }
}

/// Answers one request in the node's namespace as the instance metadata service does; returns what it was asked.
fn metadata(served: &Served) -> Result<(String, thread::JoinHandle<String>)> {
    let listener = served.node.netns().within(|| TcpListener::bind("127.0.0.1:0"))??;
    let url = format!("http://{}", listener.local_addr()?);
    let serving = thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return String::new() };
        let mut head = [0; 1024];
        let read = stream.read(&mut head).unwrap_or_default();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nplanted");
        String::from_utf8_lossy(&head[..read]).into_owned()
    });
    Ok((url, serving))
}

#[test]
fn a_node_on_which_the_agent_works() -> Result<()> {
    let served = served()?;
    served.pod.must_get_credentials()?;
    let (url, asked) = metadata(&served)?;
    let mut command = doctor(&served, &[], CAPABILITIES, &[])?;
    let examined = Examined::read(command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url))?;
    ensure!(examined.code == Some(0) && examined.failed()?.is_empty(), "{:#}", examined.json);
    for check in [
        "agent",
        "kernel",
        "capabilities",
        "tcp_diag",
        "cgroups",
        "kubepods",
        "steering",
        "propagation",
        "pods",
        "host_pid",
        "metadata",
        "eks_auth",
        "node_role",
        "clock",
    ] {
        examined.must(check, "ok", "")?;
    }
    // The test's node has a network namespace of its own; that of the machine's process 1 is another, or out of sight.
    ensure!(examined.check("host_network")?["verdict"] != "ok", "{:#}", examined.json);
    let asked = asked.join().unwrap_or_default();
    ensure!(
        asked.starts_with("PUT /latest/api/token HTTP/1.1\r\n") && asked.contains("token-ttl-seconds: 1"),
        "{asked}"
    );
    ensure!(!examined.json.to_string().contains("planted"), "{:#}", examined.json);
    Ok(())
}

#[test]
fn without_an_agent() -> Result<()> {
    let mut served = served()?;
    served.agent.kill()?;
    let root = served.node.kubelet().path().display().to_string();
    let flags = ["--cluster-name", "test", "--endpoint", &served.node.eks_auth().url(), "--kubelet-root", &root];
    let examined = Examined::read(&mut doctor(&served, &[], CAPABILITIES, &flags)?)?;
    ensure!(examined.code == Some(0), "{:#}", examined.json);
    examined.must("agent", "warn", "cannot reach the agent")?;
    examined.must("pods", "ok", "1 with an EKS token")?;
    examined.must("node_role", "ok", "")?;
    examined.must("metadata", "warn", "does not answer here")
}

#[test]
fn a_container_without_a_capability() -> Result<()> {
    let served = served()?;
    let less = "SYS_ADMIN,DAC_READ_SEARCH,NET_BIND_SERVICE";
    let examined = Examined::read(&mut doctor(&served, &[], less, &[])?)?;
    examined.must_fail_only("capabilities", "missing: CAP_SYS_PTRACE (to")
}

#[test]
fn a_container_that_mounts_of_the_kubelet_do_not_reach() -> Result<()> {
    let served = served()?;
    let private = ["unshare", "--mount", "--propagation", "private"];
    let examined = Examined::read(&mut doctor(&served, &private, CAPABILITIES, &[])?)?;
    examined.must_fail_only("propagation", "tokens of new pods stay unseen")?;
    ensure!(examined.check("propagation")?["remedy"].to_string().contains("HostToContainer"), "{:#}", examined.json);
    Ok(())
}

#[test]
fn a_container_without_the_nodes_processes() -> Result<()> {
    let served = served()?;
    let own = ["unshare", "--pid", "--fork", "--mount-proc", "--propagation", "unchanged"];
    let examined = Examined::read(&mut doctor(&served, &own, CAPABILITIES, &[])?)?;
    examined.must("host_pid", "fail", "cannot be seen from here")?;
    examined.must("host_network", "not_known", "process 1 is not the node's")
}

#[test]
fn a_container_in_a_network_namespace_of_its_own() -> Result<()> {
    let Served { pod, mut agent, node } = served()?;
    let root = node.kubelet().path().display().to_string();
    let flags = ["doctor", "--output", "json", "--endpoint", &node.eks_auth().url(), "--kubelet-root", &root];
    // A machine in small: its first process is in one network namespace, the agent's container in another.
    let machine = ["unshare", "--pid", "--fork", "--mount-proc", "--propagation", "unchanged", "sh", "-c"];
    let first = ["\"$@\"; exit $?", "sh"];
    pod.remove()?;
    agent.kill()?;
    let mut command = agent.beside(&[&machine[..], &first].concat(), CAPABILITIES, &flags)?;
    command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", NO_METADATA);
    let examined = Examined::read(&mut command)?;
    ensure!(examined.code == Some(0), "{:#}", examined.json);
    examined.must("host_network", "warn", "takes its own for the node's")?;
    ensure!(examined.check("host_network")?["remedy"] == "set hostNetwork: true", "{:#}", examined.json);
    Ok(())
}

#[test]
fn a_process_outside_of_pods() -> Result<()> {
    let mut served = served()?;
    served.agent.kill()?;
    let mut command = Command::new(pod_identity_tests::process::binary("pod-exec")?);
    command.arg("--from").arg(served.node.netns().path()).arg("--cgroup").arg(served.node.top_cgroup().dir());
    command.arg("--").arg(pod_identity_tests::process::binary("pod-identity-agent")?);
    command.args(["doctor", "--output", "json", "--run-dir"]).arg(served.agent.run_dir());
    command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", NO_METADATA).env("AWS_REGION", "eu-central-1");
    // Nothing of this test asks the real one.
    command.args(["--endpoint", &served.node.eks_auth().url()]);
    let examined = Examined::read(&mut command)?;
    examined.must("kubepods", "fail", "does not run below a kubepods cgroup")?;
    // Nor does it have the node's credentials.
    examined.must("node_role", "fail", "EKS Auth refuses the credentials of this node")
}

#[test]
fn pods_that_are_not_below_the_kubepods_cgroup() -> Result<()> {
    let served = served()?;
    let mut pod = served.node.begin_pod(PodSpec::named("elsewhere"))?;
    pod.mount_volume()?;
    pod.write_token()?;
    pod.remove_cgroup()?;
    let uid = pod.uid().to_owned();
    in_the_agents_container(&served)?.must_fail_only("pods", &uid)?;
    // A directory that has outlived its pod is none.
    pod.remove_kubelet_dir()?;
    fs::create_dir_all(served.node.kubelet().pod_dir(&uid).join("volumes"))?;
    in_the_agents_container(&served)?.must("pods", "ok", "")
}

#[test]
fn eks_auth_out_of_reach() -> Result<()> {
    let served = served()?;
    let examined = Examined::read(&mut doctor(&served, &[], CAPABILITIES, &["--endpoint", "http://127.0.0.1:9"])?)?;
    examined.must_fail_only("eks_auth", "cannot be reached")?;
    served.node.eks_auth().always(Effect::Drop)?;
    // It takes the signature and the connection, and lets go of a real pod's call only: the token here is none.
    in_the_agents_container(&served)?.must("eks_auth", "ok", "")
}

#[test]
fn a_node_whose_role_may_not_call_eks_auth() -> Result<()> {
    let served = served()?;
    served.pod.must_get_credentials()?;
    let other = AccessKey { id: "AKIAOTHER".to_owned(), secret: "other".to_owned() };
    served.node.eks_auth().replace_node_key(&other)?;
    in_the_agents_container(&served)?.must_fail_only("node_role", "EKS Auth refuses the credentials of this node")
}

#[test]
fn programs_that_are_gone() -> Result<()> {
    let served = served()?;
    for (_, link) in pod_identity_tests::foreign::links(served.node.kubepods().cgroup().dir())? {
        pod_identity_tests::foreign::detach(link)?;
    }
    let found = in_the_agents_container(&served)?;
    found.must_fail_only("steering", "not attached")?;
    eventually("the programs to be back", Duration::from_secs(20), || {
        let steering = in_the_agents_container(&served)?.check("steering")?["verdict"].clone();
        Ok((steering == "ok").then_some(()))
    })
}
