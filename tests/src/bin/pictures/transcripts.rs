//! The commands for people, asked about a node on which some pods are served and some are not.
use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::{Agent, CAPABILITIES},
    aws::application::{Application, Family},
    client::Client,
    node::Node,
    pod::Pod,
    process::{Process, eventually},
    signals::Signals,
    time,
};

use crate::{go_on, shop, stable, terminal};

/// Instance metadata, which no test asks: there is none.
const NO_METADATA: &str = "http://127.0.0.1:9";
/// When the run begins in what is written: 2026-01-01, 9 o'clock.
const BEGIN: Duration = Duration::from_hours(490_905);
/// For a process to be there.
const STARTS: Duration = Duration::from_secs(10);

const HEAD: &str = "# What the commands show

Made by `cargo xtask pictures` on a node of its own with real pods, an agent as the chart's restricted mode runs it, and the
demo's AWS. Ids (of cgroups, containers, processes, associations, requests, access keys) and instants are replaced by such as
are the same in every run; nothing else is changed. [deploy/README.md](../deploy/README.md#look-and-act) says what each command is for.
";

/// Runs the commands and writes them down.
pub(crate) fn make(out: &Path, signals: &Signals) -> Result<()> {
    println!("transcripts: an agent, six pods, and the commands for people");
    let node = shop::node()?;
    let begun = next_second();
    let crowded = shop::crowded(&node, 6)?;
    let agent = shop::agent(&node, &[])?;
    let scene = Scene::furnish(&node, agent, crowded.0)?;
    go_on(signals)?;
    let mut text = HEAD.to_owned();
    for (title, introduction, commands) in CHAPTERS {
        write!(text, "\n## {title}\n{introduction}\n")?;
        for command in *commands {
            go_on(signals)?;
            let shown = scene.shown(command)?;
            write!(text, "\n```console\n$ pod-identity-agent {}\n{}\n```\n", command.join(" "), shown.trim_end())?;
        }
    }
    fs::write(out, scene.stable(&text, begun)?).with_context(|| format!("write {}", out.display()))?;
    println!("{}", out.display());
    Ok(())
}

/// Waits for it: tokens and credentials expire at whole seconds, which a run that begins with one has at the same ones.
fn next_second() -> SystemTime {
    let next = UNIX_EPOCH + Duration::from_secs(time::now() + 1);
    thread::sleep(next.duration_since(SystemTime::now()).unwrap_or_default());
    next
}

type Chapter = (&'static str, &'static str, &'static [&'static [&'static str]]);

const CHAPTERS: &[Chapter] = &[
    (
        "status",
        "Every pod of the node. A table gives way to the terminal's width: its widest columns are cut.",
        &[&["status"]],
    ),
    ("explain", "A pod that is served; the exit code is 0.", &[&["explain", "shop/web-0"]]),
    (
        "explain: no association",
        "What EKS Auth says, and the command that is missing; the exit code is 1.",
        &[&["explain", "shop/stranger-0"]],
    ),
    (
        "explain: a proxy in the way",
        "The pod's SDK would send its token to the proxy. What is in the variable beside the address is not shown.",
        &[&["explain", "shop/payments-0"]],
    ),
    (
        "explain: made before its association",
        "EKS adds the volume when a pod is made. Without a token nothing tells the pod's name, so it is named by its UID.",
        &[&["explain", "00013a52-0c4e-4b7a-9d21-000000000005"]],
    ),
    (
        "explain: no listener",
        "Every port that the agent could take in the pod's namespace is somebody else's.",
        &[&["explain", "shop/crowded-0"]],
    ),
    (
        "doctor",
        "The node, and the agent's container on it. This node is a network namespace of a larger machine, whose first process \
         is out of sight, and has no instance metadata.",
        &[&["doctor"]],
    ),
    ("audit", "Grants and refusals as lines of JSON, for programs; with `--follow` as they come.", &[&["audit"]]),
];

/// The node's pods and what runs in them.
struct Scene<'a> {
    // Dropped in this order: applications, pods, the agent.
    applications: Vec<Process>,
    pods: Vec<Pod>,
    agent: Agent,
    node: &'a Node,
}

impl<'a> Scene<'a> {
    fn furnish(node: &'a Node, agent: Agent, crowded: Pod) -> Result<Self> {
        let pod = |account, name, number| node.pod_with(shop::spec(account, name, number));
        let web = pod("web", "web-0", 1)?;
        let orders = pod("orders", "orders-0", 2)?;
        let stranger = pod(shop::STRANGER, "stranger-0", 3)?;
        let payments = pod("payments", "payments-0", 4)?;
        let early = node.pod_with(shop::spec("report", "report-0", 5).no_token())?;
        let applications = vec![
            run(node, &web, &[])?,
            run(node, &orders, &[])?,
            run(node, &stranger, &[])?,
            run(node, &payments, &[("HTTP_PROXY", "http://user:secret@proxy.example:3128"), ("NO_PROXY", ".svc")])?,
            run(node, &crowded, &[])?,
        ];
        // All that have an association: fetched before they ask.
        agent.wait_for_metric("pod_identity_cached_pods", 4.0, STARTS)?;
        for pod in [&web, &web, &orders] {
            pod.must_get_credentials()?;
        }
        ensure!(stranger.credentials()?.status == Some(404), "a pod without an association was served");
        // A token of another pod's, refused by what the kernel says of the caller.
        ensure!(orders.ask_once(&Client::with_token(web.token()))?.status == Some(403), "a foreign token was taken");
        let pods = vec![web, orders, stranger, payments, early, crowded];
        Ok(Self { applications, pods, agent, node })
    }

    fn shown(&self, command: &[&str]) -> Result<String> {
        let mut command = self.agent.beside(&[], CAPABILITIES, command)?;
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", NO_METADATA);
        terminal::shown(&mut command)
    }

    /// A text in which what differs from run to run does not.
    fn stable(&self, text: &str, begun: SystemTime) -> Result<String> {
        let mut text = text.to_owned();
        for (place, shown) in [
            (self.node.kubelet().path(), "/var/lib/kubelet"),
            (self.agent.run_dir(), "/run/pod-identity-agent"),
            (self.node.top_cgroup().dir(), "/sys/fs/cgroup"),
        ] {
            text = text.replace(&place.display().to_string(), shown);
        }
        let mut cgroups = vec![self.node.kubepods().cgroup().id()?];
        for pod in &self.pods {
            let container = pod.container("app")?;
            text = text.replace(container.id(), &format!("{:064x}", cgroups.len()));
            cgroups.extend([pod.cgroup().id()?, container.cgroup().id()?]);
        }
        cgroups.push(fs::metadata(self.agent.cgroup().dir().parent().context("the agent is in no pod")?)?.ino());
        for (number, cgroup) in cgroups.iter().enumerate() {
            let cgroup = cgroup.to_string();
            text = text.replace(&cgroup, &numbered("4", number, cgroup.len()));
        }
        let mut processes: Vec<u32> = self.applications.iter().map(Process::pid).collect();
        for pod in &self.pods {
            processes.extend([pod.container("app")?.pid(), pod.pause()?.pid()]);
        }
        for (number, process) in processes.iter().enumerate() {
            text = text.replace(&format!("({process})"), &format!("({})", numbered("7", number, 5)));
        }
        // The table cuts them; here they are whole.
        let whole = format!("{}{text}", self.agent.admin("/status")?.text());
        for (found, shown) in stable::ids(&whole, shop::UID) {
            text = stable::replaced(&text, &found, &shown);
        }
        Ok(stable::shifted(&text, begun, UNIX_EPOCH + BEGIN))
    }
}

fn numbered(first: &str, number: usize, width: usize) -> String {
    format!("{first}{number:0>0$}", width.saturating_sub(first.len()))
}

/// A program in a pod that has what EKS injects, and these variables.
fn run(node: &Node, pod: &Pod, variables: &[(&str, &str)]) -> Result<Process> {
    let mut command = Application::new(pod, Family::V4, None)?.command("sleep".as_ref())?;
    command.arg("infinity").envs(variables.iter().copied());
    let process = Process::start("an application", &mut command, &node.dir().join("applications.log"))?;
    eventually("the application to run", STARTS, || {
        let name = fs::read_to_string(format!("/proc/{}/comm", process.pid()))?;
        Ok((name.trim_end() == "sleep").then_some(()))
    })?;
    Ok(process)
}
