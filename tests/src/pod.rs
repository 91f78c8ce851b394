//! A pod: cgroups with processes in them, a network namespace, and a token volume; made and removed in the kubelet's
//! order, each step callable by itself.
use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::de::DeserializeOwned;

use crate::{
    cgroup::{Cgroup, Qos},
    client::{Answer, Client, Tally},
    kubelet::TokenVolume,
    netns::Netns,
    node::Ground,
    process::{Process, binary, run, run_with_input},
    token::{Claims, Issuer, LIFETIME, Subject, random_hex, random_uid},
};

mod container;
mod sandbox;

pub use container::Container;
pub use sandbox::Network;
use sandbox::Sandbox;

/// For anything that runs in a pod, unless the test says otherwise.
const RUNS: Duration = Duration::from_secs(30);

/// For 10⁵ requests, on a machine that may be busy.
const RUNS_LONG: Duration = Duration::from_mins(10);

/// What a pod is to be like.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Namespace, service account, name and UID.
    pub subject: Subject,
    /// Where its cgroup is.
    pub qos: Qos,
    /// Its network.
    pub network: Network,
    /// Whether it has a token volume.
    pub token: bool,
    /// Life of its tokens.
    pub token_lifetime: Duration,
}

impl PodSpec {
    /// A pod of this service account in the namespace `default`, with a network of its own.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let subject = Subject {
            namespace: "default".to_owned(),
            service_account: name.to_owned(),
            pod_name: format!("{name}-{}", random_hex(3)),
            pod_uid: random_uid(),
        };
        let token_lifetime = Duration::from_secs(LIFETIME);
        Self { subject, qos: Qos::default(), network: Network::default(), token: true, token_lifetime }
    }

    /// In the node's own network.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.network = Network::Host;
        self
    }

    /// With this quality of service.
    #[must_use]
    pub fn qos(mut self, qos: Qos) -> Self {
        self.qos = qos;
        self
    }

    /// Without a token volume.
    #[must_use]
    pub fn no_token(mut self) -> Self {
        self.token = false;
        self
    }

    /// With tokens that live so long.
    #[must_use]
    pub fn token_lifetime(mut self, lifetime: Duration) -> Self {
        self.token_lifetime = lifetime;
        self
    }

    /// With this UID.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> Self {
        uid.clone_into(&mut self.subject.pod_uid);
        self
    }

    /// With this network.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    // Dropped in this order: processes, the namespace they are in, the volume.
    containers: Vec<Container>,
    sandbox: Option<Sandbox>,
    volume: Option<TokenVolume>,
    token: String,
    spec: PodSpec,
    cgroup: Cgroup,
    ground: Arc<Ground>,
}

impl Pod {
    pub(crate) fn create(ground: Arc<Ground>, spec: PodSpec) -> Result<Self> {
        let mut pod = Self::begin(ground, spec)?;
        pod.mount_volume()?;
        pod.write_token()?;
        pod.start_sandbox()?;
        pod.start_container("app")?;
        Ok(pod)
    }

    /// The pod's cgroup and its volume's directory, with nothing mounted or running yet.
    pub(crate) fn begin(ground: Arc<Ground>, spec: PodSpec) -> Result<Self> {
        let uid = &spec.subject.pod_uid;
        let pod_cgroup = ground.kubepods.pod(spec.qos, uid);
        let cgroup = Cgroup::create(pod_cgroup.dir().to_owned())?;
        let token = sign_token(&spec)?;
        let volume = spec.token.then(|| TokenVolume::make_directory(&ground.kubelet, uid)).transpose()?;
        Ok(Self { containers: Vec::new(), sandbox: None, volume, token, spec, cgroup, ground })
    }

    /// Mounts the tmpfs of its token volume, if it has one.
    pub fn mount_volume(&mut self) -> Result<()> {
        self.volume.as_mut().map_or(Ok(()), TokenVolume::mount)
    }

    /// Writes its token into the volume, if it has one.
    pub fn write_token(&self) -> Result<()> {
        self.volume.as_ref().map_or(Ok(()), |volume| volume.write(&self.token))
    }

    /// Starts a sandbox: a network namespace, if it has one of its own, and a pause process in a cgroup.
    pub fn start_sandbox(&mut self) -> Result<()> {
        ensure!(self.sandbox.is_none(), "this pod has a sandbox");
        self.sandbox = Some(Sandbox::start(&self.ground, &self.cgroup, self.spec.network)?);
        Ok(())
    }

    /// Starts a container; init, sidecar and ephemeral ones are no different here.
    pub fn start_container(&mut self, name: &str) -> Result<&Container> {
        let sandbox = self.sandbox.as_ref().context("this pod has no sandbox")?;
        let container = Container::start(&self.ground, &self.cgroup, sandbox, name)?;
        self.containers.push(container);
        self.containers.last().context("it was pushed")
    }

    /// Ends a container and removes its cgroup, as the kubelet does when it has exited.
    pub fn stop_container(&mut self, name: &str) -> Result<()> {
        let at = self.containers.iter().position(|c| c.name() == name).context("no such container")?;
        self.containers.remove(at).remove()
    }

    /// Ends the sandbox and all containers, and removes their cgroups: the pod's cgroup stays.
    pub fn stop_sandbox(&mut self) -> Result<()> {
        for container in std::mem::take(&mut self.containers) {
            container.remove()?;
        }
        self.sandbox.take().map_or(Ok(()), Sandbox::remove)
    }

    /// Kills all of its processes; cgroups and namespace stay.
    pub fn kill_processes(&mut self) -> Result<()> {
        self.cgroup.kill()
    }

    /// Removes its cgroup, which ends the pod.
    pub fn remove_cgroup(&mut self) -> Result<()> {
        self.cgroup.remove()
    }

    /// Removes its directory below the kubelet's, which happens some time after its end.
    pub fn remove_kubelet_dir(&mut self) -> Result<()> {
        if let Some(mut volume) = self.volume.take() {
            volume.unmount()?;
        }
        Ok(fs::remove_dir_all(self.ground.kubelet.pod_dir(self.uid()))?)
    }

    /// Ends it, in the kubelet's order.
    pub fn remove(mut self) -> Result<()> {
        self.kill_processes()?;
        self.stop_sandbox()?;
        self.remove_cgroup()?;
        if self.spec.token { self.remove_kubelet_dir() } else { Ok(()) }
    }

    /// Its UID.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.spec.subject.pod_uid
    }

    /// Who it is.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.spec.subject
    }

    /// Its pod-level cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its network namespace; the node's for a pod of the host network.
    pub fn netns(&self) -> Result<&Netns> {
        let sandbox = self.sandbox.as_ref().context("this pod has no sandbox")?;
        Ok(sandbox.netns().unwrap_or(&self.ground.netns))
    }

    /// Its IPv4 address, if it has a network of its own.
    pub fn address(&self) -> Result<Ipv4Addr> {
        self.sandbox.as_ref().and_then(Sandbox::address).context("this pod has no address of its own")
    }

    /// The node's end of its link.
    pub fn node_interface(&self) -> Result<String> {
        self.sandbox.as_ref().and_then(Sandbox::node_interface).context("this pod has no link of its own")
    }

    /// Its service account token, the current one.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// File with its token, as a process on the node sees it.
    pub fn token_file(&self) -> Result<PathBuf> {
        Ok(self.volume.as_ref().context("this pod has no token volume")?.file())
    }

    /// Its token volume, if it has one.
    #[must_use]
    pub fn volume(&self) -> Option<&TokenVolume> {
        self.volume.as_ref()
    }

    /// Replaces its token by a new one, as the kubelet does before the old one expires.
    pub fn rotate_token(&mut self) -> Result<()> {
        self.token = sign_token(&self.spec)?;
        self.write_token()
    }

    /// A container of it.
    pub fn container(&self, name: &str) -> Result<&Container> {
        self.containers.iter().find(|c| c.name() == name).with_context(|| format!("this pod has no container {name}"))
    }

    /// The process that keeps its sandbox.
    pub fn pause(&self) -> Result<&Process> {
        Ok(self.sandbox.as_ref().context("this pod has no sandbox")?.pause())
    }

    /// Runs a command in its container `app`.
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<Output> {
        run(self.container("app")?.command(program)?.args(args), RUNS)
    }

    /// Makes requests from its container `app`.
    pub fn ask(&self, client: &Client) -> Result<Vec<Answer>> {
        self.ask_in("app", client)
    }

    /// Makes requests from one of its containers.
    pub fn ask_in(&self, container: &str, client: &Client) -> Result<Vec<Answer>> {
        self.container(container)?.ask(client)
    }

    /// Makes many requests from its container `app`.
    pub fn tally(&self, client: &Client) -> Result<Tally> {
        tally_with(&mut self.container("app")?.command_line()?, client)
    }

    /// Makes one request from its container `app`.
    pub fn ask_once(&self, client: &Client) -> Result<Answer> {
        self.ask(client)?.pop().context("the client printed nothing")
    }

    /// Asks for credentials with its own token.
    pub fn credentials(&self) -> Result<Answer> {
        self.ask_once(&Client::with_token(&self.token))
    }

    /// Asks for credentials with its own token, and fails unless it gets some.
    pub fn must_get_credentials(&self) -> Result<Answer> {
        let answer = self.credentials()?;
        ensure!(answer.status == Some(200), "the pod got no credentials: {answer:?}");
        Ok(answer)
    }

    /// Makes requests from a process that is in its network namespace but in another cgroup.
    pub fn ask_from_cgroup(&self, cgroup: &Cgroup, client: &Client) -> Result<Vec<Answer>> {
        ask_with(&mut self.enter_from(cgroup)?, client)
    }

    /// Makes many requests from a process that is in its network namespace but in another cgroup.
    pub fn tally_from_cgroup(&self, cgroup: &Cgroup, client: &Client) -> Result<Tally> {
        tally_with(&mut self.enter_from(cgroup)?, client)
    }

    /// The beginning of a command line that runs in its network namespace but in another cgroup.
    pub fn enter_from(&self, cgroup: &Cgroup) -> Result<Command> {
        let sandbox = self.sandbox.as_ref().context("this pod has no sandbox")?;
        sandbox.way(&self.ground).enter(cgroup)
    }
}

fn sign_token(spec: &PodSpec) -> Result<String> {
    let claims = Claims::of(&spec.subject).lasting(spec.token_lifetime);
    Issuer::of_this_process()?.sign(&claims)
}

/// Runs `pod-client` at the end of a command line, and reads what it prints.
pub fn ask_with(command: &mut Command, client: &Client) -> Result<Vec<Answer>> {
    read_with(command, client, RUNS)
}

/// Runs a `pod-client` that makes many requests at the end of a command line.
pub fn tally_with(command: &mut Command, client: &Client) -> Result<Tally> {
    read_with(command, client, RUNS_LONG)?.pop().context("the client printed nothing")
}

fn read_with<T: DeserializeOwned>(command: &mut Command, client: &Client, timeout: Duration) -> Result<Vec<T>> {
    let (args, input) = client.invocation();
    let output = run_with_input(command.arg(binary("pod-client")?).args(args), input, timeout)?;
    let (stdout, stderr) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    stdout.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}
