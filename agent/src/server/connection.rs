//! One connection: attested, admitted under its pod's limits, served until it is idle, old, or its pod has ended.
use std::{
    convert::Infallible,
    net::TcpStream,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Context, metered::Metered, record, route, stream::Stream};
use crate::{
    attestation::{CLOSE_WAIT, Caller, ESTABLISHED, Ends, Evidence, Unattested},
    namespace::Namespace,
    pods::Admission,
    refusal::Refusal,
    share::Share,
    sys,
};

/// From the connection to its first request's head. SDKs send it at once.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// From one request's answer to the next one's head: longer than SDKs keep connections they do not use.
const IDLE: Duration = Duration::from_mins(1);
/// A connection may be passed on to who knows whom; after this time it must be made, and attested, anew.
const OLDEST: Duration = Duration::from_mins(10);
/// What a request that came in time may take beyond it.
const LAST_ANSWER: Duration = Duration::from_secs(2);
/// When the agent stops: for the head of a connection that was accepted just before.
const LAST_HEAD: Duration = Duration::from_millis(250);
/// All of a request's head: a token (16 KiB at most) and what SDKs say about themselves. Said twice below: as the limit of a
/// head, which may have come in one read with more, and of what is read before there is a whole one.
const MAX_HEAD_BYTES: usize = 32 * 1024;
const MAX_HEADERS: usize = 64;

/// Serves an accepted connection.
pub(super) async fn handle(context: Arc<Context>, namespace: Arc<Namespace>, stream: TcpStream, ends: Ends) {
    let accepted = Instant::now();
    context.metrics.connections_accepted.inc();
    match context.attestor.attest(&namespace, &stream, ends).await {
        Ok(caller) => {
            bill(&namespace, caller.pod().share(), accepted);
            admit(context, namespace, stream, caller, accepted).await;
        }
        Err(Unattested::Drop) => {
            // Without evidence: what the look-up said is about somebody else by now.
            let nobody = Evidence::default();
            record::refused(&context, &namespace, nobody, &Refusal::UnknownSocket, accepted.elapsed());
            reset(stream);
            namespace.pay(accepted.into_std());
        }
        // Whoever connects and hangs up at once is unknown to the kernel by now, and need not be told so.
        Err(Unattested::Refused(Refusal::UnknownSocket, _)) if !is_connected(&stream) => {
            context.metrics.refused(&Refusal::UnknownSocket);
            drop(stream);
            namespace.pay(accepted.into_std());
        }
        Err(Unattested::Refused(refusal, who)) => {
            bill(&namespace, &namespace.strangers, accepted);
            record::refused(&context, &namespace, who, &refusal, accepted.elapsed());
            match Arc::clone(&namespace.unattested).try_acquire_owned() {
                Ok(_permit) => refuse(&context, stream, refusal, accepted).await,
                Err(_) => reset(stream),
            }
        }
    }
}

/// Whether the other end is still there; it may have closed its direction.
fn is_connected(stream: &TcpStream) -> bool {
    matches!(sys::tcp_state(stream), Ok(ESTABLISHED | CLOSE_WAIT))
}

/// Charges for a connection that was accepted, once it is known who pays.
fn bill(namespace: &Namespace, share: &Arc<Share>, accepted: Instant) {
    let now = Instant::now();
    share.spend(now - accepted, now.into_std());
    namespace.bill(share);
}

/// Serves a caller under its pod's limits.
async fn admit(context: Arc<Context>, namespace: Arc<Namespace>, stream: TcpStream, caller: Caller, accepted: Instant) {
    let admission = caller.pod().admit();
    if matches!(admission, Admission::Reset) {
        // At once, and not when the pod is out of debt: until then it would keep a descriptor.
        record::refused(&context, &namespace, (&caller).into(), &Refusal::PodLimit, accepted.elapsed());
        return reset(stream);
    }
    let (share, ended) = (Arc::clone(caller.pod().share()), caller.pod().ended().clone());
    let (logged_to, delayed) = (Arc::clone(&context), caller.clone());
    let work = pin!(serve_caller(context, namespace, stream, caller, accepted, admission));
    Metered::new(share, ended, work, move || record::delayed(&logged_to, &delayed)).await;
}

pub(super) async fn serve_caller(
    context: Arc<Context>,
    namespace: Arc<Namespace>,
    stream: TcpStream,
    caller: Caller,
    accepted: Instant,
    admission: Admission,
) {
    let refused = |refusal: &Refusal| {
        record::refused(&context, &namespace, (&caller).into(), refusal, accepted.elapsed());
    };
    match admission {
        Admission::Serve(_permit) => {
            context.metrics.connections.inc();
            let requests = Arc::new(Requests::new(accepted));
            let shared =
                Arc::new((Arc::clone(&context), Arc::clone(&namespace), caller.clone(), Arc::clone(&requests)));
            let service = service_fn(move |request: Request<Incoming>| {
                let shared = Arc::clone(&shared);
                async move {
                    let (context, namespace, caller, requests) = &*shared;
                    let _request = requests.begin();
                    Ok::<_, Infallible>(route::answer(context, namespace, caller, request).await)
                }
            });
            if serve(&context, stream, service, &requests, caller.pod().ended()).await == End::NotHttp {
                refused(&Refusal::MalformedRequest);
                context.metrics.responded(Refusal::MalformedRequest.status());
            }
            context.metrics.connections.dec();
        }
        Admission::Refuse(_permit) => {
            refused(&Refusal::PodLimit);
            refuse(&context, stream, Refusal::PodLimit, accepted).await;
        }
        Admission::Reset => reset(stream),
    }
}

/// Reads one request and answers it with a refusal, whatever it asks.
async fn refuse(context: &Context, stream: TcpStream, refusal: Refusal, accepted: Instant) {
    context.metrics.responded(refusal.status());
    let service = service_fn(move |_: Request<Incoming>| {
        let mut response = refusal.response();
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        async move { Ok::<_, Infallible>(response) }
    });
    let nobody = CancellationToken::new();
    // Refused already, whatever it is that was sent.
    let _ = serve(context, stream, service, &Requests::new(accepted), &nobody).await;
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By either side's will, or with its pod.
    Closed,
    /// What came was not HTTP/1; the protocol has answered that with 400 or 431.
    NotHttp,
}

/// The requests of a connection: whether one is being answered, and when the last one was.
#[derive(Debug)]
struct Requests {
    accepted: Instant,
    answering: AtomicBool,
    /// Milliseconds from the connection's start to the last answer; 0 before the first.
    last_answer: AtomicU64,
}

impl Requests {
    fn new(accepted: Instant) -> Self {
        Self { accepted, answering: AtomicBool::new(false), last_answer: AtomicU64::new(0) }
    }

    /// A request whose head has come; it ends when the returned value is dropped.
    fn begin(&self) -> Answering<'_> {
        self.answering.store(true, Ordering::Relaxed);
        Answering(self)
    }

    /// Whether there was one yet.
    fn any(&self) -> bool {
        self.answering.load(Ordering::Relaxed) || self.last_answer.load(Ordering::Relaxed) > 0
    }

    /// When the connection is to be closed, as things stand now.
    fn deadline(&self) -> Instant {
        if self.answering.load(Ordering::Relaxed) {
            // An answer takes a second at most; without the bound a client that always asks would never grow old.
            return (Instant::now() + IDLE).min(self.accepted + OLDEST + LAST_ANSWER);
        }
        match self.last_answer.load(Ordering::Relaxed) {
            0 => self.accepted + FIRST_REQUEST,
            last => self.accepted + (Duration::from_millis(last) + IDLE).min(OLDEST),
        }
    }
}

struct Answering<'a>(&'a Requests);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        let Self(requests) = self;
        let last = u64::try_from(requests.accepted.elapsed().as_millis()).unwrap_or(u64::MAX);
        requests.last_answer.store(last.max(1), Ordering::Relaxed);
        requests.answering.store(false, Ordering::Relaxed);
    }
}

/// Runs the HTTP protocol until the connection ends, or must.
async fn serve<S>(
    context: &Context,
    stream: TcpStream,
    service: S,
    requests: &Requests,
    pod_ended: &CancellationToken,
) -> End
where
    S: Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible> + Unpin,
{
    let mut connection = http1::Builder::new()
        .half_close(true)
        .header_read_timeout(None)
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(Stream::from(stream)), service);
    let mut closing = false;
    // One timer for the connection, looked at when it fires: none is set or reset for a request.
    let mut timer = requests.deadline();
    loop {
        tokio::select! {
            biased;
            () = pod_ended.cancelled() => {
                reset(connection.into_parts().io.into_inner());
                return End::Closed;
            }
            ended = &mut connection => {
                return if ended.is_err_and(|error| error.is_parse()) { End::NotHttp } else { End::Closed };
            }
            () = context.closing.cancelled(), if !closing => {
                closing = true;
                if requests.any() {
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                } else {
                    // Told to end before its first request, the protocol would close at once.
                    timer = Instant::now() + LAST_HEAD;
                }
            }
            () = tokio::time::sleep_until(timer) => {
                if closing {
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                }
                timer = requests.deadline();
                if timer <= Instant::now() {
                    return End::Closed;
                }
            }
        }
    }
}

/// Ends a connection without another byte, and without what it has sent being read.
fn reset(stream: impl Into<Stream>) {
    let stream = stream.into();
    if let Some(socket) = stream.socket() {
        // With a linger of zero the close sends a reset.
        let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
    }
    drop(stream);
}
