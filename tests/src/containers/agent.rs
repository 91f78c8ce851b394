//! The agent as a container of a pod, from an image of its program alone, with what the chart's restricted mode gives.
use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{Containerd, CriPod, image::Image, messages, pod};
use crate::{
    agent::{self, CAPABILITIES},
    eks_auth::{CLUSTER, REGION},
    http1,
    node::Node,
    pod::PodSpec,
    process::{binary, eventually},
};

/// The chart's image, and its program's place there.
const IMAGE: &str = "localhost/pod-identity-agent:test";
const PROGRAM: &str = "/pod-identity-agent";

/// Where its admin socket is.
const RUN_DIR: &str = "/run/pod-identity-agent";

/// From its start to its readiness, on a machine that may be busy.
const BECOMES_READY: Duration = Duration::from_secs(20);

/// The agent's pod.
#[derive(Debug)]
pub struct AgentPod<'a> {
    pod: CriPod<'a>,
    container: super::Container,
    run_dir: std::path::PathBuf,
}

impl<'a> AgentPod<'a> {
    /// Starts it, and waits until it is ready. Nothing tells it where the cgroups of pods are.
    pub fn start(runtime: &'a Containerd, node: &Node) -> Result<Self> {
        let program = binary("pod-identity-agent")?;
        runtime.import(IMAGE, &Image::default().file(PROGRAM, &program).libraries_of(&program)?)?;
        let spec = PodSpec::named("pod-identity-agent").host_network().no_token();
        let mut pod = runtime.begin_pod(node, spec)?;
        // hostPID.
        let namespaces = messages::Namespaces { network: messages::NODE, pid: messages::NODE };
        if let Some(linux) = &mut pod.config.linux {
            linux.security = Some(messages::SandboxSecurity { namespaces: Some(namespaces) });
        }
        pod.run_sandbox()?;
        let run_dir = pod.shared("run");
        fs::create_dir(&run_dir)?;
        let container = pod.start_with("agent", configuration(node, &run_dir, namespaces))?;
        let agent = Self { pod, container, run_dir };
        let ready = eventually("the agent to be ready", BECOMES_READY, || {
            ensure!(agent.pid().is_ok(), "it ended");
            Ok(agent.admin("/readyz").is_ok_and(|response| response.status == 200).then_some(()))
        });
        ready.with_context(|| agent.container.output().unwrap_or_default())?;
        Ok(agent)
    }

    /// Asks its admin socket.
    pub fn admin(&self, path: &str) -> Result<http1::Response> {
        agent::ask_admin(&self.run_dir, path)
    }

    /// All that it has logged.
    pub fn log_text(&self) -> Result<String> {
        self.container.output()
    }

    /// Runs the chart's probe in its container, as the kubelet does.
    pub fn probe(&self) -> Result<String> {
        self.pod.exec("agent", &[PROGRAM, "probe", "--ready"])
    }

    /// Its process, as the machine knows it.
    pub fn pid(&self) -> Result<u32> {
        self.pod.processes_of(&self.container)?.first().copied().context("the agent has no process")
    }

    /// Its pod.
    #[must_use]
    pub fn pod(&self) -> &CriPod<'a> {
        &self.pod
    }

    /// Ends it, in the kubelet's order.
    pub fn remove(self) -> Result<()> {
        self.pod.remove()
    }
}

/// What deploy/chart/templates/daemonset.yaml renders in restricted mode, with the node's own kubelet directory and
/// EKS Auth.
fn configuration(node: &Node, run_dir: &Path, namespaces: messages::Namespaces) -> messages::Container {
    let kubelet = node.kubelet().path().to_string_lossy().into_owned();
    let mut command: Vec<String> = [PROGRAM, "server", "--log-format=json"].map(str::to_owned).into();
    command.push(format!("--cluster-name={CLUSTER}"));
    command.push(format!("--endpoint={}", node.eks_auth().url()));
    command.push(format!("--kubelet-root={kubelet}"));
    let key = node.eks_auth().node_key();
    let mut of_kubelet = pod::mount(node.kubelet().path(), &kubelet, true);
    // HostToContainer.
    of_kubelet.propagation = 1;
    let capabilities = messages::Capabilities {
        add: CAPABILITIES.split(',').map(str::to_owned).collect(),
        drop: vec!["ALL".to_owned()],
    };
    let security = messages::ContainerSecurity {
        capabilities: Some(capabilities),
        namespaces: Some(namespaces),
        read_only_root: true,
        seccomp: Some(messages::Nothing {}),
    };
    messages::Container {
        image: Some(messages::ImageSpec { image: IMAGE.to_owned() }),
        command,
        env: vec![
            pod::variable("AWS_REGION", REGION),
            pod::variable("AWS_ACCESS_KEY_ID", &key.id),
            pod::variable("AWS_SECRET_ACCESS_KEY", &key.secret),
        ],
        mounts: vec![
            pod::mount(Path::new("/sys/fs/cgroup"), "/host/sys/fs/cgroup", true),
            of_kubelet,
            pod::mount(run_dir, RUN_DIR, false),
        ],
        linux: Some(messages::LinuxContainer { security: Some(security) }),
        ..messages::Container::default()
    }
}
