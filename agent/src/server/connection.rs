//! One connection: attested, admitted under its pod's limits, served until it is idle, old, or its pod has ended.
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
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
use tokio::{net::TcpStream, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Context, record, route};
use crate::{
    attestation::{Caller, Unattested},
    namespace::Namespace,
    pods::Admission,
    refusal::Refusal,
};

/// From the connection to its first request's head. SDKs send it at once.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// From one request's answer to the next one's head: longer than SDKs keep connections they do not use.
const IDLE: Duration = Duration::from_mins(1);
/// A connection may be passed on to who knows whom; after this time it must be made, and attested, anew.
const OLDEST: Duration = Duration::from_mins(10);
/// All of a request's head: a token (16 KiB at most) and what SDKs say about themselves.
const MAX_HEAD_BYTES: usize = 32 * 1024;
const MAX_HEADERS: usize = 64;

/// Serves an accepted connection.
pub(super) async fn handle(context: Arc<Context>, namespace: Arc<Namespace>, stream: TcpStream, peer: SocketAddr) {
    context.metrics.connections_accepted.inc();
    // Without its own address the socket is dead already.
    let Ok(local) = stream.local_addr() else { return };
    match context.attestor.attest(&namespace, &stream, peer, local).await {
        Ok(caller) => serve_caller(context, stream, caller).await,
        Err(Unattested::Drop) => reset(stream),
        Err(Unattested::Refused(refusal)) => {
            let Ok(permit) = Arc::clone(&namespace.unattested).try_acquire_owned() else { return reset(stream) };
            refuse(&context, stream, None, refusal).await;
            drop(permit);
        }
    }
}

async fn serve_caller(context: Arc<Context>, stream: TcpStream, caller: Caller) {
    match caller.pod().admit() {
        Admission::Serve(permit) => {
            context.metrics.connections.inc();
            let activity = Arc::new(Activity::default());
            let ended = caller.pod().ended().clone();
            let (shared, busy) = (Arc::clone(&context), Arc::clone(&activity));
            let asking = caller.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let (context, caller, busy) = (Arc::clone(&shared), asking.clone(), Arc::clone(&busy));
                async move {
                    let _request = busy.begin();
                    Ok::<_, Infallible>(route::answer(&context, &caller, &request).await)
                }
            });
            if serve(&context, stream, service, &activity, &ended).await == End::NotHttp {
                record::refused(&context, Some(&caller), &Refusal::MalformedRequest, Duration::ZERO);
                context.metrics.responded(Refusal::MalformedRequest.status());
            }
            context.metrics.connections.dec();
            drop(permit);
        }
        Admission::Refuse(permit) => {
            refuse(&context, stream, Some(&caller), Refusal::PodLimit).await;
            drop(permit);
        }
        Admission::Reset => {
            record::refused(&context, Some(&caller), &Refusal::PodLimit, Duration::ZERO);
            reset(stream);
        }
    }
}

/// Reads one request and answers it with a refusal, whatever it asks.
async fn refuse(context: &Arc<Context>, stream: TcpStream, caller: Option<&Caller>, refusal: Refusal) {
    record::refused(context, caller, &refusal, Duration::ZERO);
    context.metrics.responded(refusal.status());
    let service = service_fn(move |_: Request<Incoming>| {
        let mut response = refusal.response();
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        async move { Ok::<_, Infallible>(response) }
    });
    let nobody = CancellationToken::new();
    // Refused already, whatever it is that was sent.
    let _ = serve(context, stream, service, &Activity::default(), &nobody).await;
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By either side's will, or with its pod.
    Closed,
    /// What came was not HTTP/1; the protocol has answered that with 400 or 431.
    NotHttp,
}

/// Whether a request is being answered, and when the last one was.
#[derive(Debug, Default)]
struct Activity {
    answering: AtomicBool,
    /// Requests since the timer last looked.
    used: AtomicBool,
}

impl Activity {
    fn begin(&self) -> impl Drop + '_ {
        struct Ended<'a>(&'a Activity);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                self.0.answering.store(false, Ordering::Relaxed);
            }
        }
        self.answering.store(true, Ordering::Relaxed);
        self.used.store(true, Ordering::Relaxed);
        Ended(self)
    }

    /// Whether anything happened since this was last asked.
    fn take(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed) || self.answering.load(Ordering::Relaxed)
    }
}

/// Runs the HTTP protocol until the connection ends, or must.
async fn serve<S>(
    context: &Context,
    stream: TcpStream,
    service: S,
    activity: &Activity,
    pod_ended: &CancellationToken,
) -> End
where
    S: Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible> + Unpin,
{
    let mut connection = http1::Builder::new()
        .half_close(true)
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let accepted = Instant::now();
    let mut deadline = accepted + FIRST_REQUEST;
    let mut closing = false;
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
                std::pin::Pin::new(&mut connection).graceful_shutdown();
            }
            () = tokio::time::sleep_until(deadline) => {
                let used = activity.take();
                if !used || accepted.elapsed() >= OLDEST + IDLE {
                    return End::Closed;
                }
                if accepted.elapsed() >= OLDEST {
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                }
                deadline = Instant::now() + IDLE;
            }
        }
    }
}

/// Ends a connection without another byte, and without what it has sent being read.
fn reset(stream: TcpStream) {
    // With a linger of zero the close sends a reset.
    let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
    drop(stream);
}
