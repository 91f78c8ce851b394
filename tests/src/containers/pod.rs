//! A pod over the CRI: the kubelet's part (cgroup, token volume) as for every pod here, the rest containerd's and runc's.
use std::{collections::HashMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{APP, Containerd, SLEEP, cri, messages};
use crate::{
    aws::application::{Family, TOKEN_FILE},
    cgroup::{Driver, Kubepods, mount_point},
    client::{Answer, Client},
    eks_auth::REGION,
    node::Node,
    pod::{Network, Pod, PodSpec},
    process::{binary, eventually},
};

/// For a container that has ended to be known as such.
const REMOVES: Duration = Duration::from_secs(10);

/// For a program in a container, in seconds.
const RUNS: i64 = 30;

/// Where programs of this workspace are in containers.
const PROGRAMS: &str = "/tests";

/// Where a directory of the node's is that the test and the containers share.
const SHARED: &str = "/shared";

/// A pod. Whoever drops one that still runs leaves it to the end of its containerd.
#[derive(Debug)]
pub struct CriPod<'a> {
    pub(super) runtime: &'a Containerd,
    pub(super) pod: Pod,
    pub(super) config: messages::Sandbox,
    sandbox: Option<String>,
    containers: Vec<Container>,
    attempts: u32,
    shared: PathBuf,
    kubepods: Kubepods,
}

/// A container.
#[derive(Clone, Debug)]
pub struct Container {
    name: String,
    id: String,
    log: PathBuf,
}

impl Container {
    /// What it has printed, without the runtime's words before each line.
    pub fn output(&self) -> Result<String> {
        let text = fs::read_to_string(&self.log)?;
        // A time, the stream, whether the line is whole.
        Ok(text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).flat_map(|line| [line, "\n"]).collect())
    }

    /// Its id, 64 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl<'a> CriPod<'a> {
    pub(super) fn begin(runtime: &'a Containerd, node: &Node, spec: PodSpec) -> Result<Self> {
        let network = if spec.network == Network::Host { messages::NODE } else { 0 };
        let pod = node.begin_pod(spec)?;
        let shared = runtime.dir.join(format!("pod-{}", pod.uid()));
        fs::create_dir(&shared)?;
        let subject = pod.subject();
        let metadata = messages::SandboxMetadata {
            name: subject.pod_name.clone(),
            uid: subject.pod_uid.clone(),
            namespace: subject.namespace.clone(),
        };
        let below = pod.cgroup().dir().strip_prefix(mount_point()?)?;
        let namespaces = messages::Namespaces { network, pid: messages::CONTAINER };
        let config = messages::Sandbox {
            // In the host network it is the node's.
            hostname: if network == messages::NODE { String::new() } else { subject.pod_name.clone() },
            log_directory: shared.to_string_lossy().into_owned(),
            labels: HashMap::from([("io.kubernetes.pod.uid".to_owned(), subject.pod_uid.clone())]),
            linux: Some(messages::LinuxSandbox {
                cgroup_parent: match node.kubepods().driver() {
                    Driver::Cgroupfs => format!("/{}", below.display()),
                    // A unit's name says where it is.
                    Driver::Systemd => below.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                },
                security: Some(messages::SandboxSecurity { namespaces: Some(namespaces) }),
            }),
            metadata: Some(metadata),
        };
        Ok(Self {
            runtime,
            pod,
            config,
            sandbox: None,
            containers: Vec::new(),
            attempts: 0,
            shared,
            kubepods: node.kubepods().clone(),
        })
    }

    /// Mounts its token volume and writes the token, as the kubelet does before it asks for a sandbox.
    pub fn mount_and_write_token(&mut self) -> Result<()> {
        self.pod.mount_volume()?;
        self.pod.write_token()
    }

    /// Has its sandbox made.
    pub fn run_sandbox(&mut self) -> Result<()> {
        let request = messages::RunSandbox { config: Some(self.config.clone()) };
        let answer: messages::Id = self.call("RunPodSandbox", &request)?;
        self.sandbox = Some(answer.id);
        Ok(())
    }

    /// Starts a container that does nothing by itself.
    pub fn start_idle(&mut self, name: &str) -> Result<Container> {
        self.start(name, &SLEEP)
    }

    /// Starts a container that runs one of this workspace's programs.
    pub fn start_program(&mut self, name: &str, program: &str, args: &[&str]) -> Result<Container> {
        let path = format!("{PROGRAMS}/{program}");
        self.start(name, &[&[path.as_str()], args].concat())
    }

    fn start(&mut self, name: &str, command: &[&str]) -> Result<Container> {
        let mut config = messages::Container {
            image: Some(messages::ImageSpec { image: APP.to_owned() }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            env: injected(),
            ..messages::Container::default()
        };
        for program in ["pod-client", "sdk-client"] {
            config.mounts.push(mount(&binary(program)?, &format!("{PROGRAMS}/{program}"), true));
        }
        config.mounts.push(mount(&self.shared, SHARED, false));
        if let (Some(volume), Some(at)) = (self.pod.volume(), TOKEN_FILE.rsplit_once('/')) {
            config.mounts.push(mount(volume.dir(), at.0, true));
        }
        let namespaces = messages::Namespaces { network: self.network(), pid: messages::CONTAINER };
        let security = messages::ContainerSecurity {
            namespaces: Some(namespaces),
            seccomp: Some(messages::Nothing {}),
            ..Default::default()
        };
        config.linux = Some(messages::LinuxContainer { security: Some(security) });
        self.start_with(name, config)
    }

    /// Creates and starts a container.
    pub(super) fn start_with(&mut self, name: &str, mut config: messages::Container) -> Result<Container> {
        let attempt = self.attempts;
        self.attempts += 1;
        config.log_path = format!("{name}-{attempt}.log");
        let log = self.shared.join(&config.log_path);
        config.metadata = Some(messages::ContainerMetadata { name: name.to_owned(), attempt });
        let request = messages::CreateContainer {
            sandbox: self.sandbox.clone().context("this pod has no sandbox")?,
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let created: messages::Id = self.call("CreateContainer", &request)?;
        let container = Container { name: name.to_owned(), id: created.id.clone(), log };
        self.call::<messages::Nothing>("StartContainer", &created)?;
        self.containers.push(container.clone());
        Ok(container)
    }

    /// Kills and removes a container, as when it has crashed.
    pub fn remove_container(&mut self, name: &str) -> Result<()> {
        let at = self.containers.iter().position(|container| container.name == name).context("no such container")?;
        let id = self.containers.remove(at).id;
        let (stop, removed) = (messages::Stop { id: id.clone(), grace_seconds: 0 }, messages::Id { id });
        // A container that ends by itself at that moment makes either fail, and the kubelet asks again.
        let mut refused = None;
        let done = eventually("the runtime to remove a container", REMOVES, || {
            let stopped = self.call::<messages::Nothing>("StopContainer", &stop);
            let done = stopped.and_then(|_| self.call::<messages::Nothing>("RemoveContainer", &removed));
            Ok(done.map_err(|error| refused = Some(error)).ok())
        });
        done.map(drop).map_err(|late| refused.unwrap_or(late))
    }

    /// Ends its processes: containers, then the sandbox with its network. Its cgroup and volume stay.
    pub fn stop(&mut self) -> Result<()> {
        let Some(id) = self.sandbox.take() else { return Ok(()) };
        let names: Vec<String> = self.containers.iter().map(|container| container.name.clone()).collect();
        names.iter().try_for_each(|name| self.remove_container(name))?;
        let sandbox = messages::Id { id };
        self.call::<messages::Nothing>("StopPodSandbox", &sandbox)?;
        self.call::<messages::Nothing>("RemovePodSandbox", &sandbox)?;
        Ok(())
    }

    /// Ends it in the kubelet's order.
    pub fn remove(mut self) -> Result<()> {
        self.stop()?;
        self.pod.remove()
    }

    /// The kubelet's part of it: token, volume, cgroup.
    #[must_use]
    pub fn kubelet_part(&self) -> &Pod {
        &self.pod
    }

    /// Removes its cgroup, the last that the kubelet does to a pod whose processes have ended.
    pub fn remove_cgroup(&mut self) -> Result<()> {
        self.pod.remove_cgroup()
    }

    /// Runs a command in one of its containers, which must succeed; returns what it printed.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<String> {
        let found = self.containers.iter().find(|running| running.name == container);
        let container = found.with_context(|| format!("this pod has no container {container}"))?;
        let request = messages::Exec {
            container: container.id.clone(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            timeout_seconds: RUNS,
        };
        let done: messages::Executed = self.call("ExecSync", &request)?;
        let stdout = String::from_utf8(done.stdout)?;
        let stderr = String::from_utf8_lossy(&done.stderr);
        ensure!(done.exit_code == 0, "{:?} ended with {}: {stdout}{stderr}", command.first(), done.exit_code);
        Ok(stdout)
    }

    /// Makes a request from its container `app`.
    pub fn ask(&self, client: &Client) -> Result<Answer> {
        let program = format!("{PROGRAMS}/pod-client");
        let (args, input) = client.invocation();
        ensure!(input.is_empty(), "the CRI's exec passes no input on");
        let words: Vec<&str> = std::iter::once(program.as_str()).chain(args.iter().map(String::as_str)).collect();
        let line = self.exec("app", &words)?;
        serde_json::from_str(line.trim()).with_context(|| format!("not one answer: {line}"))
    }

    /// Asks for credentials with its own token.
    pub fn credentials(&self) -> Result<Answer> {
        self.ask(&Client::with_token(self.pod.token()))
    }

    /// Lets the SDK for Rust fetch credentials in its container `app`, with what EKS injects and nothing else; returns the
    /// access key.
    pub fn sdk_credentials(&self) -> Result<String> {
        access_key_of(&self.exec("app", &[&format!("{PROGRAMS}/sdk-client")])?)
    }

    /// Where a file of the containers' directory `/shared` is on the node.
    #[must_use]
    pub fn shared(&self, name: &str) -> PathBuf {
        self.shared.join(name)
    }

    /// The processes of a container, found in the cgroup2 directory that the runtime must have made for it.
    pub fn processes_of(&self, container: &Container) -> Result<Vec<u32>> {
        let cgroup = self.pod.cgroup().dir().join(self.kubepods.container_name(&container.id));
        let text = fs::read_to_string(cgroup.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Its containers, in the order in which they were started.
    #[must_use]
    pub fn containers(&self) -> &[Container] {
        &self.containers
    }

    fn network(&self) -> i32 {
        let security = self.config.linux.as_ref().and_then(|linux| linux.security.as_ref());
        security.and_then(|security| security.namespaces).map_or(0, |namespaces| namespaces.network)
    }

    fn call<A: prost::Message + Default>(&self, method: &str, request: &impl prost::Message) -> Result<A> {
        let answer = cri::call(&self.runtime.socket, &format!("RuntimeService/{method}"), request);
        answer.with_context(|| format!("containerd's log:\n{}", self.runtime.log_text()))
    }
}

/// The access key in what the SDK for Rust printed.
pub fn access_key_of(printed: &str) -> Result<String> {
    let said: Value = serde_json::from_str(printed.trim()).context("the client printed no JSON")?;
    Ok(said["access_key_id"].as_str().with_context(|| format!("no credentials: {}", said["error"]))?.to_owned())
}

/// What EKS injects into the pods of associated service accounts.
fn injected() -> Vec<messages::Variable> {
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", Family::V4.credentials_uri()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", TOKEN_FILE),
        ("AWS_REGION", REGION),
    ];
    variables.map(|(name, value)| variable(name, value)).into()
}

pub(super) fn variable(name: &str, value: &str) -> messages::Variable {
    messages::Variable { name: name.to_owned(), value: value.to_owned() }
}

pub(super) fn mount(from: &std::path::Path, to: &str, read_only: bool) -> messages::Mount {
    let host_path = from.to_string_lossy().into_owned();
    messages::Mount { container_path: to.to_owned(), host_path, read_only, propagation: 0 }
}
