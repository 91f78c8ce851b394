//! When the runtime has ended a pod and the kubelet has removed its cgroup, its connections are reset and its token is
//! refused.
use std::{
    io::{BufReader, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail, ensure};
use pod_identity_tests::{client::Client, containers::CriPod, host, http1, process::eventually, sockets};
use rustix::net::connect;

use crate::common::{World, must_be_granted, must_be_refused};

/// What a pod's end may take, by the design's sixth invariant.
const PROMPTLY: Duration = Duration::from_millis(100);

/// On a machine that is busy with something else.
const LATEST: Duration = Duration::from_secs(1);

const SOON: Duration = Duration::from_secs(5);

fn rounds() -> usize {
    if host::full_size() { 50 } else { 5 }
}

/// A connection to the agent on a socket that a container made, in this process's hands: it outlives the container.
fn connection_of(pod: &mut CriPod<'_>) -> Result<TcpStream> {
    pod.start_program("maker", "pod-client", &["--mode=give-socket", "--unix=/shared/maker.sock"])?;
    let unix = pod.shared("maker.sock");
    let socket = eventually("the maker of sockets to listen", SOON, || Ok(sockets::take(&unix).ok()))?;
    connect(&socket, &"169.254.170.23:80".parse::<SocketAddr>()?)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

/// The status of the answer to a request on a connection.
fn ask(mut stream: &TcpStream, token: &str) -> Result<u16> {
    stream.write_all(http1::credentials_request(token).as_bytes())?;
    Ok(http1::read_response(&mut BufReader::new(stream), false)?.status)
}

/// When a connection is reset.
fn reset_at(mut stream: &TcpStream) -> Result<Instant> {
    match stream.read(&mut [0_u8; 4096]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(Instant::now()),
        other => bail!("the connection was not reset: {other:?}"),
    }
}

/// The middle one must keep the bound; the others may have waited for a busy machine.
fn must_be_prompt(what: &str, mut times: Vec<Duration>) -> Result<()> {
    times.sort_unstable();
    println!("{what} after the pod's cgroup: {times:?}");
    let at = |index: usize| times.get(index).copied().unwrap_or(LATEST);
    ensure!(at(times.len() / 2) < PROMPTLY && at(times.len() - 1) < LATEST, "{what}: {times:?}");
    Ok(())
}

/// In the host network: of other namespaces the runtime takes the loopback down, and nothing reaches anybody there.
#[test]
fn connections_are_reset() -> Result<()> {
    let world = World::new()?;
    let mut resets = Vec::new();
    for _ in 0..rounds() {
        let mut pod = world.runtime.host_network_pod(&world.node, "ending")?;
        let token = pod.kubelet_part().token().to_owned();
        let stream = connection_of(&mut pod)?;
        // At once, as the agent wants it: a runtime on a busy machine takes longer to end a pod.
        ensure!(ask(&stream, &token)? == 200, "no credentials");
        pod.stop()?;
        ensure!(ask(&stream, &token)? == 200, "the pod ended with its containers");
        resets.push(thread::scope(|scope| -> Result<Duration> {
            let reading = scope.spawn(|| reset_at(&stream));
            // For it to be where it waits.
            thread::sleep(Duration::from_millis(20));
            pod.remove_cgroup()?;
            let removed = Instant::now();
            let reset = reading.join().map_err(|_| anyhow!("the reader panicked"))??;
            Ok(reset.saturating_duration_since(removed))
        })?);
    }
    must_be_prompt("connections reset", resets)
}

#[test]
fn credentials_are_served_no_more() -> Result<()> {
    let world = World::new()?;
    let other = world.runtime.pod(&world.node, "other")?;
    let mut forgotten = Vec::new();
    for _ in 0..rounds() {
        let mut pod = world.runtime.pod(&world.node, "ending")?;
        must_be_granted(&pod.credentials()?)?;
        let known = world.agent.metric("pod_identity_pods")?;
        pod.stop()?;
        pod.remove_cgroup()?;
        let removed = Instant::now();
        eventually("the pod to be forgotten", SOON, || {
            Ok((world.agent.metric("pod_identity_pods")? < known - 0.5).then_some(()))
        })?;
        forgotten.push(removed.elapsed());
        must_be_refused(&other.ask(&Client::with_token(pod.kubelet_part().token()))?, 403)?;
        ensure!(world.node.eks_auth().calls_for(pod.kubelet_part().uid())? == 1);
    }
    must_be_prompt("credentials forgotten", forgotten)?;
    must_be_granted(&other.credentials()?)?;
    other.remove()
}
