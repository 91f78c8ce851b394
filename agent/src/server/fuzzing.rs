//! Connections of an attested pod, with whatever bytes come on them: for fuzz targets and tests only.
#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a failed property is told by a panic")]
use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Runtime,
    task::yield_now,
    time::Instant,
};

use super::{Context, connection::serve_caller};
use crate::{
    attestation::{Attestor, Caller, diag::DiagSocket},
    cgroup::resolver::CgroupResolver,
    credentials::Clock,
    discovery::{Commands, DiscoveryHandle},
    fuzzing::{
        answers::{self, Answer},
        node::{self, POD, SECRETS},
    },
    metrics::Metrics,
    namespace::Namespace,
    pod_uid::PodUid,
    pods::{Admission, Pods},
};

/// A request's path, without which none is granted.
const PATH: &[u8] = b"/v1/credentials";

/// What a pod sends, in which `{H}` stands for a good Host header, `{T}` for an Authorization header with the pod's own
/// token, `{F}` for one with another pod's: nobody guesses a token.
///
/// Sent at once and in two pieces, it is answered by the statuses of the contract, with right lengths, in the same way
/// (as far as the connection lasts), no more often than there are requests; and credentials go to the pod's own token only.
pub fn http(input: &[u8]) {
    thread_local!(static ENDPOINT: Endpoint = Endpoint::new());
    ENDPOINT.with(|endpoint| endpoint.check(input));
}

struct Endpoint {
    runtime: Runtime,
    context: Arc<Context>,
    namespace: Arc<Namespace>,
    pods: Arc<Pods>,
    pod: PodUid,
    own: String,
    foreign: String,
    // Nobody reads from it, but it must be there to be asked.
    _discovery: Commands,
}

impl Endpoint {
    fn new() -> Self {
        let runtime = node::runtime();
        let (context, namespace, pods, discovery) = {
            let _entered = runtime.enter();
            let metrics = Arc::new(Metrics::new());
            let pods = node::pods(&runtime, &metrics);
            let (handle, commands) = DiscoveryHandle::new();
            let attestor = Attestor::new(CgroupResolver::without_thread(), Arc::clone(&pods), handle.clone(), true);
            let namespace = Namespace::new(1, false, DiagSocket::open().expect("a netlink socket"));
            (Context::new(attestor, Clock::system(), metrics, Arc::default(), handle), namespace, pods, commands)
        };
        let endpoint = Self {
            runtime,
            context: Arc::new(context),
            namespace: Arc::new(namespace),
            pods,
            pod: POD.parse().expect("a UID"),
            own: format!("Authorization: {}", node::token(POD)),
            foreign: format!("Authorization: {}", node::token("00000000-0000-4000-8000-000000000000")),
            _discovery: discovery,
        };
        // The control: what only the own token may get is there to be got.
        let good = format!("GET /v1/credentials HTTP/1.1\r\nHost: 169.254.170.23\r\n{}\r\n\r\n", endpoint.own);
        assert_eq!(endpoint.judge(good.as_bytes(), &[good.as_bytes()]), [200]);
        endpoint
    }

    fn check(&self, input: &[u8]) {
        let sent = replace(input, b"{H}", b"Host: 169.254.170.23");
        let sent = replace(&replace(&sent, b"{T}", self.own.as_bytes()), b"{F}", self.foreign.as_bytes());
        let at = sent.iter().map(|&byte| usize::from(byte)).sum::<usize>() % (sent.len() + 1);
        let (first, second) = sent.split_at(at);
        let whole = self.judge(&sent, &[&sent]);
        let pieces = self.judge(&sent, &[first, second]);
        // What comes later than an answer may find the connection closed: a body that is not there when its request has
        // been answered ends it.
        assert!(
            whole.starts_with(&pieces) || pieces.starts_with(&whole),
            "{whole:?} at once, {pieces:?} when cut at {at}"
        );
    }

    /// Holds the answers to `sent` to what must be, and gives back their statuses.
    fn judge(&self, sent: &[u8], pieces: &[&[u8]]) -> Vec<u16> {
        let granted_before = self.context.metrics.grants.get();
        let bytes = self.runtime.block_on(self.exchange(pieces)).expect("a connection");
        let answers = answers::read(&bytes);
        for answer in &answers {
            judge(answer);
        }
        let requests = count(sent, b"HTTP/1.");
        assert!(answers.len() <= requests + 1, "{requests} requests, and {} answers", answers.len());
        let granted = answers.iter().filter(|answer| answer.status == 200).count();
        assert!(granted <= count(sent, PATH), "{granted} requests were granted that asked for something else");
        assert!(granted <= count(sent, self.own.get(15..).expect("a token").as_bytes()), "granted without its token");
        let counted = self.context.metrics.grants.get() - granted_before;
        assert_eq!(usize::try_from(counted), Ok(granted), "grants are counted");
        assert_eq!(self.context.metrics.connections.get(), 0, "connections are given back");
        answers.iter().map(|answer| answer.status).collect()
    }

    /// One connection of a pod that is new. The socket is no TCP socket, which the route never asks of an accepted one.
    async fn exchange(&self, pieces: &[&[u8]]) -> io::Result<Vec<u8>> {
        let caller = Caller::of(self.pods.add(self.pod));
        let Admission::Serve(permit) = caller.pod().admit() else { return Err(io::ErrorKind::Other.into()) };
        let (mut client, accepted) = pair()?;
        let (context, namespace) = (Arc::clone(&self.context), Arc::clone(&self.namespace));
        let accepted = accepted.into_std()?;
        let served = serve_caller(context, namespace, accepted, caller, Instant::now(), Admission::Serve(permit));
        let (mut reader, mut writer) = client.split();
        let sending = async {
            for piece in pieces {
                // The other side may have hung up already.
                let _ = writer.write_all(piece).await;
                for _ in 0..8 {
                    yield_now().await;
                }
            }
            let _ = writer.shutdown().await;
        };
        let mut answer = Vec::new();
        let ((), (), read) = tokio::join!(served, sending, reader.read_to_end(&mut answer));
        // A reset comes after what was answered before it.
        read.or_else(|error| if error.kind() == io::ErrorKind::ConnectionReset { Ok(0) } else { Err(error) })?;
        self.pods.end(self.pod);
        yield_now().await;
        Ok(answer)
    }
}

/// Two connected sockets that the event loop takes for TCP's, and none of the ports of this machine.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let (one, other) = UnixStream::pair()?;
    let [one, other] = [one, other].map(|socket| {
        socket.set_nonblocking(true)?;
        TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(socket)))
    });
    Ok((one?, other?))
}

fn judge(answer: &Answer) {
    let text = String::from_utf8_lossy(&answer.body);
    assert!(matches!(answer.status, 200 | 400 | 403 | 404 | 405 | 431 | 503), "{}: {text}", answer.status);
    assert_eq!(answer.header("retry-after").is_some(), answer.status == 503, "{answer:?}");
    assert_eq!(answer.header("allow").is_some(), answer.status == 405, "{answer:?}");
    if answer.status != 200 {
        // `eyJ` begins every token.
        assert!(!SECRETS.iter().chain(&["eyJ"]).any(|secret| text.contains(secret)), "{text}");
    }
    if answer.body.is_empty() {
        // An answer to HEAD, or the protocol's to what is no request.
        return;
    }
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let json: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    if answer.status == 200 {
        assert!(SECRETS.iter().all(|secret| text.contains(secret)), "{text}");
    } else {
        assert!(json["code"] == answer.status && json["Code"] == answer.status, "{text}");
        assert!(json["message"].is_string() && json["message"] == json["Message"], "{text}");
    }
}

fn count(text: &[u8], what: &[u8]) -> usize {
    text.windows(what.len()).filter(|window| *window == what).count()
}

fn replace(text: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(what.len()).position(|window| window == what) {
        let (before, after) = rest.split_at(at);
        replaced.extend_from_slice(before);
        replaced.extend_from_slice(with);
        rest = after.get(what.len()..).unwrap_or_default();
    }
    replaced.extend_from_slice(rest);
    replaced
}
