//! Health and metrics over HTTP, for the kubelet, Prometheus and people on the node. No credential passes here.
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::audit::Cursor;
use crate::health::{Liveness, Readiness, Verdict};
use crate::metrics::{self, Metrics};
use crate::operator::{Operator, Selection};

pub mod client;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod socket;
#[cfg(test)]
mod tests;

pub use socket::{AdminSocket, NoAdminSocket};

/// File name of the admin socket in the run directory.
pub const SOCKET_NAME: &str = "admin.sock";

/// Connections served at once on one transport; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16;

/// For a request's head to come, an idle connection to be used again.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// For a connection as a whole: nobody holds one of the few places for longer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Until an address that could not be bound is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(5);

/// A selection of pods is a name or two.
const MAX_QUESTION: usize = 4 * 1024;

/// After a failed accept: it is for want of descriptors, which somebody has to close first.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What may be asked over a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routes {
    /// `/healthz` and `/readyz`, for everybody on the node.
    Health,
    /// `/metrics`, where the operator asked for it.
    Metrics,
    /// All, with `/status`, `/explain`, `/audit` and `/flush`, for the owner of the admin socket.
    All,
}

/// What there is to ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Live,
    Ready,
    Metrics,
    Status,
    Explain,
    Audit,
    Flush,
}

impl Route {
    fn find(path: &str, routes: Routes) -> Option<Self> {
        let route = match path {
            "/healthz" => Self::Live,
            "/readyz" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/status" => Self::Status,
            "/explain" => Self::Explain,
            "/audit" => Self::Audit,
            "/flush" => Self::Flush,
            _ => return None,
        };
        let allowed = match routes {
            Routes::Health => matches!(route, Self::Live | Self::Ready),
            Routes::Metrics => route == Self::Metrics,
            Routes::All => true,
        };
        allowed.then_some(route)
    }

    fn methods(self) -> &'static str {
        if matches!(self, Self::Explain | Self::Audit | Self::Flush) { "POST" } else { "GET, HEAD" }
    }

    fn takes(self, method: &Method) -> bool {
        self.methods().split(", ").any(|taken| method == taken)
    }
}

/// Answers what is asked. Clones answer the same.
#[derive(Clone, Debug)]
pub struct Admin {
    readiness: Readiness,
    liveness: Liveness,
    metrics: Arc<Metrics>,
    /// Not there before the first scan.
    operator: Arc<OnceLock<Operator>>,
}

impl Admin {
    /// Answers from these.
    #[must_use]
    pub fn new(readiness: Readiness, liveness: Liveness, metrics: Arc<Metrics>) -> Self {
        Self { readiness, liveness, metrics, operator: Arc::default() }
    }

    /// From now on the pods can be asked about.
    pub fn know(&self, operator: Operator) {
        let _ = self.operator.set(operator);
    }

    /// Serves on a TCP address until it is dropped. The address is never required: while another agent has it (two
    /// overlap during an upgrade, and AWS's may run beside this one) binding is tried again every 5 s.
    pub async fn serve_tcp(self, address: SocketAddr, routes: Routes) -> Infallible {
        let mut said = false;
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) if !said => {
                    tracing::warn!(%address, %error, "cannot listen, trying again every 5 s; pods are served all the same");
                    said = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(BIND_AGAIN).await;
        };
        tracing::info!(%address, ?routes, "listening");
        self.serve_listener(listener, routes).await
    }

    async fn serve_listener(self, listener: TcpListener, routes: Routes) -> Infallible {
        let mut visitors = Visitors::new(self, routes);
        loop {
            visitors.place().await;
            visitors.receive(listener.accept().await.map(|(stream, _)| stream)).await;
        }
    }

    /// Serves on the admin socket until it is dropped, which removes the socket's file.
    pub async fn serve_unix(self, socket: AdminSocket) -> Infallible {
        let mut visitors = Visitors::new(self, Routes::All);
        loop {
            visitors.place().await;
            visitors.receive(socket.accept().await).await;
        }
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin, routes: Routes) {
        let service = service_fn(|request| async { Ok::<_, Infallible>(self.answer(request, routes).await) });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_headers(32)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        // An error is a client that went away or was too slow; there is nobody to tell.
        let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
    }

    async fn answer(&self, request: Request<Incoming>, routes: Routes) -> Response<Full<Bytes>> {
        let Some(route) = Route::find(request.uri().path(), routes) else {
            return response(StatusCode::NOT_FOUND, "text/plain", "not found\n");
        };
        if !route.takes(request.method()) {
            let mut refused =
                response(StatusCode::METHOD_NOT_ALLOWED, "text/plain", format!("use {}\n", route.methods()));
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static(route.methods()));
            return refused;
        }
        let operator = self.operator.get();
        match (route, operator) {
            (Route::Live, _) => verdict(self.liveness.reasons(Instant::now())),
            (Route::Ready, _) => verdict(self.readiness.reasons()),
            (Route::Metrics, _) => response(StatusCode::OK, metrics::CONTENT_TYPE, self.metrics.text()),
            (Route::Status, Some(operator)) => json(StatusCode::OK, &operator.status().await),
            (Route::Explain, Some(operator)) => explain(operator, request.into_body()).await,
            (Route::Audit, Some(operator)) => audit(operator, request.into_body()).await,
            (Route::Flush, Some(operator)) => flush(operator, request.into_body()).await,
            (Route::Status | Route::Explain | Route::Audit | Route::Flush, None) => {
                response(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "the agent is starting, try again\n")
            }
        }
    }
}

async fn explain(operator: &Operator, body: Incoming) -> Response<Full<Bytes>> {
    let body = Limited::new(body, MAX_QUESTION).collect().await.map(http_body_util::Collected::to_bytes);
    match body.ok().and_then(|body| serde_json::from_slice::<String>(&body).ok()) {
        Some(pod) => json(StatusCode::OK, &operator.explain(&pod).await),
        None => response(StatusCode::BAD_REQUEST, "text/plain", "send the pod's UID, NAMESPACE/NAME or name as JSON\n"),
    }
}

async fn audit(operator: &Operator, body: Incoming) -> Response<Full<Bytes>> {
    let body = Limited::new(body, MAX_QUESTION).collect().await.map(http_body_util::Collected::to_bytes);
    match body.ok().and_then(|body| serde_json::from_slice::<Cursor>(&body).ok()) {
        Some(cursor) => json(StatusCode::OK, &operator.audit(cursor)),
        None => response(
            StatusCode::BAD_REQUEST,
            "text/plain",
            "send {\"run\": 0, \"next\": 0}, or the last answer's cursor\n",
        ),
    }
}

async fn flush(operator: &Operator, body: Incoming) -> Response<Full<Bytes>> {
    let Ok(body) = Limited::new(body, MAX_QUESTION).collect().await else {
        return response(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", "the selection cannot be read\n");
    };
    let Ok(selection) = serde_json::from_slice::<Selection>(&body.to_bytes()) else {
        let usage = r#"send "all", {"pod": "UID or NAMESPACE/NAME"} or {"service_account": "NAMESPACE/NAME"}"#;
        return response(StatusCode::BAD_REQUEST, "text/plain", format!("{usage}\n"));
    };
    let flushed = operator.flush(&selection).await;
    let status = if flushed.is_empty() { StatusCode::NOT_FOUND } else { StatusCode::OK };
    json(status, &flushed)
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => response(status, "application/json", body),
        Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
    }
}

/// The connections of one transport. They end with it.
struct Visitors {
    admin: Admin,
    routes: Routes,
    connections: JoinSet<()>,
}

impl Visitors {
    fn new(admin: Admin, routes: Routes) -> Self {
        Self { admin, routes, connections: JoinSet::new() }
    }

    /// Waits until one more may come.
    async fn place(&mut self) {
        while self.connections.try_join_next().is_some() {}
        while self.connections.len() >= MAX_CONNECTIONS {
            self.connections.join_next().await;
        }
    }

    async fn receive<S>(&mut self, accepted: io::Result<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match accepted {
            Ok(stream) => {
                let (admin, routes) = (self.admin.clone(), self.routes);
                self.connections.spawn(async move { admin.serve(stream, routes).await });
            }
            Err(error) => {
                tracing::debug!(%error, "accept failed on an admin listener");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// Path of the admin socket.
#[must_use]
pub fn socket_path(run_dir: &Path) -> std::path::PathBuf {
    run_dir.join(SOCKET_NAME)
}

fn verdict(reasons: Vec<String>) -> Response<Full<Bytes>> {
    let verdict = Verdict::from_reasons(reasons);
    let status = if verdict.good() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    response(status, "application/json", verdict.json())
}

fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
