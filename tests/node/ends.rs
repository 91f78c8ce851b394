//! The end of a pod is the removal of its cgroup. Within 100 ms of it the pod's connections are reset and its fetch is
//! given up, and its token is refused from then on, whoever presents it. What outlives a pod is only what others hold of
//! it: here, sockets that one of its processes made.
use std::{
    io::{BufReader, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail, ensure};
use pod_identity_tests::{
    agent::Agent,
    client::Client,
    host, http1,
    node::Node,
    pod::{Pod, PodSpec},
    process::eventually,
    sockets::Maker,
    standin::control::Effect,
};
use rustix::net::{connect, connect_unspec};

use crate::common::{V4, must_be_granted, must_refuse, refusal, served};

/// What a pod's end may take, by the design's sixth invariant.
const PROMPTLY: Duration = Duration::from_millis(100);

const LATEST: Duration = Duration::from_secs(1);

const SOON: Duration = Duration::from_secs(5);

/// A connection to the agent on a socket that a process of the pod made, in this process's hands.
fn connection_of(node: &Node, pod: &Pod) -> Result<TcpStream> {
    // Answered with a refusal, after which the pod's listener is known to be there.
    pod.ask_once(&Client::new())?;
    let stream = connect_to_agent(Maker::start(pod, node.dir())?.make()?)?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

fn connect_to_agent(socket: OwnedFd) -> Result<TcpStream> {
    let target: SocketAddr = V4.parse()?;
    connect(&socket, &target)?;
    Ok(TcpStream::from(socket))
}

fn ask_on(mut stream: &TcpStream, token: &str) -> Result<http1::Response> {
    stream.write_all(http1::credentials_request(token).as_bytes())?;
    http1::read_response(&mut BufReader::new(stream), false)
}

/// Pods and namespaces that the agent holds.
fn known(agent: &Agent) -> Result<[f64; 2]> {
    Ok([agent.metric("pod_identity_pods")?, agent.metric("pod_identity_namespaces")?])
}

/// Ends all of a pod but its cgroup.
fn end_processes(pod: &mut Pod) -> Result<()> {
    pod.kill_processes()?;
    pod.stop_sandbox()
}

/// When a connection is reset, read to its end on a thread of its own.
fn reset_at(mut stream: &TcpStream) -> Result<Instant> {
    let mut answer = [0_u8; 4096];
    loop {
        match stream.read(&mut answer) {
            Ok(0) => bail!("the connection was closed in an orderly way"),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Instant::now()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Removes a pod's cgroup. Tells how long after that the connection was reset, and `also` had come true.
fn measure_end(pod: &mut Pod, stream: &TcpStream, also: impl Fn() -> Result<bool> + Sync) -> Result<[Duration; 2]> {
    thread::scope(|scope| {
        let reading = scope.spawn(|| reset_at(stream));
        let looking = scope.spawn(|| eventually("what is to come true", SOON, || Ok(also()?.then(Instant::now))));
        // For both to be where they wait.
        thread::sleep(Duration::from_millis(20));
        pod.remove_cgroup()?;
        // Removing it may itself have to wait for others who change cgroups on this machine.
        let removed = Instant::now();
        let reset = reading.join().map_err(|_| anyhow!("the reader panicked"))??;
        let came_true = looking.join().map_err(|_| anyhow!("the observer panicked"))??;
        Ok([reset, came_true].map(|at| at.saturating_duration_since(removed)))
    })
}

/// Nine of ten must keep the bound. The rest may have waited for a busy machine to run the agent, or the observer, but
/// not for a rescan.
fn must_be_prompt(what: &str, mut times: Vec<Duration>) -> Result<()> {
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() - 1) * percent / 100).copied().unwrap_or_default();
    let (middle, nine_of_ten, most) = (at(50), at(90), at(100));
    let count = times.len();
    println!("{what} after {count} pods' cgroups: median {middle:?}, nine of ten {nine_of_ten:?}, at most {most:?}");
    ensure!(nine_of_ten < PROMPTLY && most < LATEST, "{what}: {times:?}");
    Ok(())
}

fn rounds() -> usize {
    if host::full_size() { 100 } else { 20 }
}

#[test]
fn connections_are_reset_and_credentials_served_no_more() -> Result<()> {
    let served = served()?;
    let (mut resets, mut forgotten) = (Vec::new(), Vec::new());
    for _ in 0..rounds() {
        let mut pod = served.node.pod("ending")?;
        must_be_granted(&pod.ask_once(&Client::with_token(pod.token()).attempts(5))?)?;
        let stream = connection_of(&served.node, &pod)?;
        ensure!(ask_on(&stream, pod.token())?.status == 200);
        // The namespace may be let go of as soon as the sandbox has ended, the pod not before its cgroup.
        let [pods, namespaces] = known(&served.agent)?;
        end_processes(&mut pod)?;
        ensure!(ask_on(&stream, pod.token())?.status == 200, "the pod ended with its sandbox");
        let [reset, gone] = measure_end(&mut pod, &stream, || {
            let [left, open] = known(&served.agent)?;
            Ok(left < pods - 0.5 && open < namespaces - 0.5)
        })?;
        resets.push(reset);
        forgotten.push(gone);
    }
    must_be_prompt("connections reset", resets)?;
    must_be_prompt("credentials and namespaces forgotten", forgotten)?;
    served.pod.must_get_credentials().map(|_| ())
}

#[test]
fn a_fetch_under_way_is_given_up() -> Result<()> {
    let served = served()?;
    let eks_auth = served.node.eks_auth();
    eks_auth.always(Effect::Hang)?;
    let (mut resets, mut given_up) = (Vec::new(), Vec::new());
    for _ in 0..rounds() {
        let mut pod = served.node.pod("ending")?;
        let stream = connection_of(&served.node, &pod)?;
        (&stream).write_all(http1::credentials_request(pod.token()).as_bytes())?;
        eventually("the call", SOON, || Ok((eks_auth.calls_for(pod.uid())? == 1).then_some(())))?;
        end_processes(&mut pod)?;
        ensure!(eks_auth.counters()?.in_flight == 1, "the fetch ended before the pod");
        let [reset, over] = measure_end(&mut pod, &stream, || Ok(eks_auth.counters()?.in_flight == 0))?;
        resets.push(reset);
        given_up.push(over);
    }
    must_be_prompt("waiting connections reset", resets)?;
    must_be_prompt("fetches given up", given_up)
}

#[test]
fn its_token_is_refused_from_then_on() -> Result<()> {
    let served = served()?;
    let other = served.node.pod("other")?;
    for in_host_network in [false, true] {
        served.node.eks_auth().associate("default", "ending", "ending")?;
        let spec = PodSpec::named("ending");
        let mut pod = served.node.pod_with(if in_host_network { spec.host_network() } else { spec })?;
        pod.must_get_credentials()?;
        let stream = connection_of(&served.node, &pod)?;
        connect_unspec(&stream)?;
        let (token, known) = (pod.token().to_owned(), served.agent.metric("pod_identity_pods")?);
        end_processes(&mut pod)?;
        pod.remove_cgroup()?;
        eventually("the pod to be forgotten", SOON, || {
            Ok((served.agent.metric("pod_identity_pods")? < known - 0.5).then_some(()))
        })?;
        // By another pod: as any token that is not its own.
        let foreign = refusal(403, "foreign_token", "");
        must_refuse(&served.agent, foreign, || other.ask_once(&Client::with_token(&token)))?;
        let refused = served.agent.refusals("pod_gone")?;
        // By somebody with a socket of the pod. Its own namespace has no listener any more; the node's has one.
        match connect_to_agent(OwnedFd::from(stream)) {
            Ok(stream) => {
                ensure!(in_host_network, "the namespace of a pod that has ended has a listener");
                let answer = ask_on(&stream, &token)?;
                ensure!(answer.status == 403 && answer.text().contains("has ended"), "{answer:?}");
                ensure!(served.agent.refusals("pod_gone")? > refused, "not counted");
            }
            Err(error) => {
                let errno = error.downcast_ref::<rustix::io::Errno>();
                ensure!(!in_host_network && errno == Some(&rustix::io::Errno::CONNREFUSED), "{error:#}");
            }
        }
        ensure!(served.node.eks_auth().calls_for(pod.uid())? == 1, "EKS Auth was asked about a pod that has ended");
    }
    Ok(())
}
