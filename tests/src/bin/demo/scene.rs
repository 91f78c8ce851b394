//! The node of the demo and what is on it.
use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::Agent,
    aws::application::{Application, Family},
    cgroup, host,
    node::{Node, NodeSpec},
    pod::{Pod, PodSpec},
};
use rustix::{
    io::Errno,
    process::{WaitOptions, waitpid},
};

use crate::{kernel, screen::Screen};

pub(crate) const NAMESPACE: &str = "shop";
/// The service account with an association, and its role.
pub(crate) const READER: &str = "reader";
/// The one without.
pub(crate) const STRANGER: &str = "stranger";
/// The bucket that the role may list, and one that it may not.
pub(crate) const ALLOWED: &str = "orders";
pub(crate) const OTHER: &str = "salaries";

/// For the agent to finish what is under way.
const DRAINS: Duration = Duration::from_secs(10);

/// Everything that runs. Dropped from top to bottom.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) stranger: Pod,
    pub(crate) reader: Pod,
    pub(crate) agent: Agent,
    pub(crate) node: Node,
}

impl Scene {
    pub(crate) fn start(screen: &Screen) -> Result<Self> {
        host::require_root()?;
        screen.heading("A node with an AWS of its own");
        let node = screen
            .step("AWS: STS, S3, IAM (moto, enforcing) and EKS (ministack); EKS Auth (stand-in)", || {
                Node::with(NodeSpec { aws: true, ..NodeSpec::default() })
            })?;
        screen.step(
            &format!("role {READER}: may list s3://{ALLOWED}; associated with service account {NAMESPACE}/{READER}"),
            || furnish(&node),
        )?;
        let agent = screen.step("pod-identity-agent: programs attached, ready", || node.agent())?;
        let reader = screen.step(&format!("pod of {NAMESPACE}/{READER}"), || pod(&node, READER))?;
        let stranger = screen
            .step(&format!("pod of {NAMESPACE}/{STRANGER}, which has no association"), || pod(&node, STRANGER))?;
        Ok(Self { stranger, reader, agent, node })
    }

    /// What runs in one of the pods.
    pub(crate) fn application<'a>(&'a self, pod: &'a Pod) -> Result<Application<'a>> {
        Application::new(pod, Family::V4, Some(self.node.aws()?))
    }

    /// Ends everything, the agent by its own way, and looks whether anything is left.
    pub(crate) fn stop(self, screen: &Screen) -> Result<()> {
        screen.heading("The end");
        let Self { stranger, reader, mut agent, node } = self;
        let kubepods = node.kubepods().cgroup();
        let stopped = (|| {
            let status = agent.terminate(DRAINS)?;
            ensure!(status.success(), "the agent ended with {status}:\n{}", agent.log_text());
            let attached = kernel::attached(kubepods.dir())?;
            ensure!(attached.is_empty(), "programs are still attached: {attached:?}");
            screen.holds("SIGTERM: the agent has drained and ended, no program is attached");
            Ok(())
        })();
        let dir = node.dir().to_owned();
        drop((stranger, reader, agent, node));
        stopped.and_then(|()| {
            nothing_is_left(&dir)?;
            screen.holds("no process, namespace, cgroup, mount or file is left");
            Ok(())
        })
    }
}

fn furnish(node: &Node) -> Result<()> {
    let aws = node.aws()?;
    aws.bucket(ALLOWED, "2026-11-24.csv")?;
    aws.bucket(OTHER, "board.csv")?;
    aws.associate(NAMESPACE, READER, &aws.role(READER, ALLOWED)?)
}

fn pod(node: &Node, service_account: &str) -> Result<Pod> {
    let mut spec = PodSpec::named(service_account);
    NAMESPACE.clone_into(&mut spec.subject.namespace);
    node.pod_with(spec)
}

/// All that the demo makes has the name of its directory, and all that it starts is its child.
fn nothing_is_left(dir: &Path) -> Result<()> {
    let name = dir.file_name().and_then(|name| name.to_str()).context("the demo had a directory")?;
    ensure!(!dir.exists(), "{} is left", dir.display());
    let cgroup = cgroup::mount_point()?.join(name);
    ensure!(!cgroup.exists(), "{} is left", cgroup.display());
    let names = std::fs::read_dir("/run/netns")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let left: Vec<String> = names.filter(|netns| netns == name || netns.starts_with(&format!("{name}-"))).collect();
    ensure!(left.is_empty(), "network namespaces are left: {left:?}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(name), "mounts are left in {name}");
    ensure!(matches!(waitpid(None, WaitOptions::NOHANG), Err(Errno::CHILD)), "processes are left");
    Ok(())
}
