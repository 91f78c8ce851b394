//! Everybody who is measured, each on a node of its own, with a pod whose clients ask.
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::{Agent, AgentSpec},
    bpf,
    cgroup::Cgroup,
    eks_auth::{CLUSTER, REGION},
    node::Node,
    pod::{Pod, PodSpec},
    process::{binary, eventually},
    sockets::Maker,
};

use crate::contestant::Contestant;

/// Where pods' clients connect to.
const TARGET: &str = "169.254.170.23";
/// For a command that somebody gave to serve.
const RIVAL_STARTS: Duration = Duration::from_secs(30);

/// One pod may have all of the serving thread: a closed loop in a single pod would else be slowed down to its share.
const WHOLE_SHARE: [&str; 2] = ["--max-share-per-pod", "100"];

/// An agent and a pod on a node.
#[derive(Debug)]
pub(crate) struct Ours {
    name: String,
    pub(crate) pod: Pod,
    pub(crate) agent: Agent,
    pub(crate) node: Node,
}

impl Ours {
    /// `flags` come after the usual ones.
    pub(crate) fn start(name: &str, flags: &[&str]) -> Result<Self> {
        let node = Node::new()?;
        let flags: Vec<&str> = WHOLE_SHARE.iter().chain(flags).copied().collect();
        let mut spec = AgentSpec::flags(&flags);
        // Benches run with what users run with.
        spec.flags.extend(["--log-format".to_owned(), "text".to_owned()]);
        let agent = node.agent_with(&spec)?;
        let pod = node.pod("app")?;
        pod.must_get_credentials()?;
        Ok(Self { name: name.to_owned(), pod, agent, node })
    }

    pub(crate) fn contestant(&self) -> Result<Contestant<'_>> {
        let to = SocketAddr::new(TARGET.parse()?, 80);
        Ok(Contestant { name: self.name.clone(), cgroup: self.agent.cgroup().clone(), pod: &self.pod, to })
    }

    /// What the agent answers, byte by byte.
    pub(crate) fn answer(&self, closed: bool) -> Result<Vec<u8>> {
        let maker = Maker::start(&self.pod, self.node.dir())?;
        let socket = maker.make()?;
        rustix::net::connect(&socket, &SocketAddr::new(TARGET.parse()?, 80))?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        let close = if closed { "Connection: close\r\n" } else { "" };
        let token = self.pod.token();
        let request =
            format!("GET /v1/credentials HTTP/1.1\r\nHost: {TARGET}\r\nAuthorization: {token}\r\n{close}\r\n");
        stream.write_all(request.as_bytes())?;
        let mut bytes = Vec::new();
        // A connection that is kept ends in silence.
        let _ = stream.read_to_end(&mut bytes);
        ensure!(bytes.starts_with(b"HTTP/1.1 200 OK"), "{}", String::from_utf8_lossy(&bytes));
        Ok(bytes)
    }
}

/// The bare responder, in a second pod of a node with our programs.
#[derive(Debug)]
pub(crate) struct Floor {
    process: Child,
    cgroup: Cgroup,
    pod: Pod,
    port: u16,
}

impl Floor {
    /// Serves what `ours` answers, and takes its listener's place in the programs' map.
    pub(crate) fn start(ours: &Ours) -> Result<Self> {
        let pod = ours.node.pod("floor")?;
        // Its listener is there before another one can take its place.
        pod.must_get_credentials()?;
        let files = [false, true].map(|closed| (closed, ours.node.dir().join(format!("answer-{closed}"))));
        for (closed, file) in &files {
            fs::write(file, ours.answer(*closed)?)?;
        }
        let [(_, kept), (_, closed)] = files;
        let listener = pod.netns()?.within(|| TcpListener::bind("127.0.0.1:0"))??;
        let port = listener.local_addr()?.port();
        // As long a queue as the agent's.
        rustix::net::listen(&listener, 1024)?;
        let maps = bpf::maps_of(ours.agent.pid())?;
        let listeners = maps.iter().find(|map| map.name == "LISTENERS4").context("the agent has no map LISTENERS4")?;
        listeners.insert_socket(bpf::netns_cookie(&listener)?, &listener)?;
        let cgroup = ours.node.top_cgroup().child("floor")?;
        let mut command = Command::new(binary("pod-exec")?);
        command.arg("--from").arg(ours.node.netns().path()).arg("--cgroup").arg(cgroup.dir());
        command.arg("--").arg(binary("floor")?).arg("--kept").arg(kept).arg("--closed").arg(closed);
        let process = command.stdin(OwnedFd::from(listener)).spawn()?;
        eventually("the floor to be there", RIVAL_STARTS, || {
            Ok(cgroup.processes()?.contains(&process.id()).then_some(()))
        })?;
        Ok(Self { process, cgroup, pod, port })
    }

    /// Reached through the programs.
    pub(crate) fn steered(&self) -> Result<Contestant<'_>> {
        Ok(self.contestant("floor", SocketAddr::new(TARGET.parse()?, 80)))
    }

    /// Reached at its own address.
    pub(crate) fn direct(&self) -> Contestant<'_> {
        self.contestant("floor, not steered", SocketAddr::new([127, 0, 0, 1].into(), self.port))
    }

    fn contestant(&self, name: &str, to: SocketAddr) -> Contestant<'_> {
        Contestant { name: name.to_owned(), cgroup: self.cgroup.clone(), pod: &self.pod, to }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A command that serves the endpoint at the target address, in the namespace of a node of its own. Its clients are in that
/// namespace too, as a pod of the host network is: they have as short a way to it as ours to us.
#[derive(Debug)]
pub(crate) struct Rival {
    name: String,
    process: Child,
    cgroup: Cgroup,
    pod: Pod,
    _node: Node,
}

impl Rival {
    pub(crate) fn start(command: &str) -> Result<Self> {
        let node = Node::new()?;
        node.netns().ip(&format!("addr add {TARGET}/32 dev lo\naddr add fd00:ec2::23/128 dev lo nodad"))?;
        node.eks_auth().associate("default", "app", "app")?;
        let pod = node.pod_with(PodSpec::named("app").host_network())?;
        let line = command.replace("{endpoint}", &node.eks_auth().url());
        let line = line.replace("{cluster}", CLUSTER).replace("{region}", REGION);
        let cgroup = node.top_cgroup().child("rival")?;
        let mut start = Command::new(binary("pod-exec")?);
        start.arg("--from").arg(node.netns().path()).arg("--cgroup").arg(cgroup.dir());
        start.args(["--", "sh", "-c", &format!("exec {line}")]);
        let key = node.eks_auth().node_key();
        start.env("AWS_REGION", REGION).env("AWS_ACCESS_KEY_ID", &key.id).env("AWS_SECRET_ACCESS_KEY", &key.secret);
        let process = start.spawn()?;
        let name = command.split_whitespace().next().and_then(|word| word.rsplit('/').next()).unwrap_or("rival");
        let rival = Self { name: format!("rival: {name}"), process, cgroup, pod, _node: node };
        eventually(&format!("`{command}` to serve credentials on {TARGET}:80"), RIVAL_STARTS, || {
            Ok(rival.pod.credentials().is_ok_and(|answer| answer.status == Some(200)).then_some(()))
        })?;
        Ok(rival)
    }

    pub(crate) fn contestant(&self) -> Result<Contestant<'_>> {
        let to = SocketAddr::new(TARGET.parse()?, 80);
        Ok(Contestant { name: self.name.clone(), cgroup: self.cgroup.clone(), pod: &self.pod, to })
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
