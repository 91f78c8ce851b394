use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::*;
use crate::health::NotReady;

fn admin() -> (Admin, NotReady) {
    let (readiness, first) = Readiness::new("the first scan");
    (Admin::new(readiness, Liveness::default(), Arc::new(Metrics::new())), first)
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(format!("{request} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Serves on a port of its own.
async fn serve(admin: Admin, routes: Routes) -> (SocketAddr, JoinHandle<Infallible>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (address, tokio::spawn(admin.serve_listener(listener, routes)))
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

#[tokio::test]
async fn readiness_is_503_with_its_reasons_until_the_last_is_gone() {
    let (admin, first) = admin();
    let (address, serving) = serve(admin, Routes::Health).await;
    let answer = ask(connect(address).await, "GET /readyz").await;
    assert!(answer.starts_with("HTTP/1.0 503"), "{answer}");
    assert!(answer.ends_with(r#"{"status":"unavailable","reasons":["waiting for the first scan"]}"#), "{answer}");
    let answer = ask(connect(address).await, "GET /healthz").await;
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    drop(first);
    let answer = ask(connect(address).await, "GET /readyz?verbose").await;
    assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with(r#"{"status":"ok"}"#), "{answer}");
    serving.abort();
}

#[tokio::test]
async fn each_transport_answers_its_own_routes_only() {
    let (admin, _first) = admin();
    let of_the_socket = ["GET /status", "POST /explain", "POST /audit", "POST /flush"].map(|question| (question, 404));
    let cases = [
        (Routes::Health, [("GET /healthz", 200), ("GET /metrics", 404), ("POST /healthz", 405)]),
        (Routes::Metrics, [("GET /healthz", 404), ("GET /metrics", 200), ("DELETE /metrics", 405)]),
    ];
    for (routes, questions) in cases {
        let (address, serving) = serve(admin.clone(), routes).await;
        for (question, status) in questions.into_iter().chain(of_the_socket) {
            let answer = ask(connect(address).await, question).await;
            assert!(answer.starts_with(&format!("HTTP/1.0 {status}")), "{routes:?} {question}: {answer}");
        }
        serving.abort();
    }
}

#[tokio::test]
async fn metrics_come_as_prometheus_text() {
    let (admin, _first) = admin();
    let (address, serving) = serve(admin, Routes::Metrics).await;
    let answer = ask(connect(address).await, "GET /metrics").await;
    assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
    assert!(answer.contains("\npod_identity_grants_total 0\n"), "{answer}");
    serving.abort();
}

#[tokio::test]
async fn an_address_that_is_taken_is_served_when_it_becomes_free() {
    let (admin, _first) = admin();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    tokio::time::pause();
    let serving = tokio::spawn(admin.serve_tcp(address, Routes::Health));
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert!(!serving.is_finished());
    drop(taken);
    tokio::time::sleep(BIND_AGAIN).await;
    tokio::time::resume();
    // It binds right after its last sleep, in a step of its own.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let answer = ask(connect(address).await, "GET /healthz").await;
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_loses_its_place() {
    let (admin, _first) = admin();
    let (silent, served) = tokio::io::duplex(64);
    let begun = tokio::time::Instant::now();
    admin.serve(served, Routes::Health).await;
    assert_eq!(begun.elapsed().as_secs(), HEAD_TIMEOUT.as_secs());
    drop(silent);
}

#[tokio::test]
async fn more_clients_than_places_wait_for_one() {
    let (admin, _first) = admin();
    let (address, serving) = serve(admin, Routes::Health).await;
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        silent.push(connect(address).await);
    }
    let waiting = tokio::spawn(ask(connect(address).await, "GET /healthz"));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    silent.pop();
    assert!(waiting.await.unwrap().starts_with("HTTP/1.0 200"));
    serving.abort();
}

#[tokio::test]
async fn the_socket_is_the_owners_alone_and_goes_with_the_agent() {
    let directory = tempfile::tempdir().unwrap();
    let run_dir = directory.path().join("run/agent");
    let path = socket_path(&run_dir);
    let (admin, _first) = admin();
    let serving = tokio::spawn(admin.serve_unix(AdminSocket::bind(&run_dir).unwrap()));
    let metadata = std::fs::symlink_metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&run_dir).unwrap().permissions().mode() & 0o777, 0o700);
    for question in ["GET /healthz", "GET /metrics"] {
        assert!(ask(UnixStream::connect(&path).await.unwrap(), question).await.starts_with("HTTP/1.0 200"));
    }
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    assert_eq!(std::fs::read_dir(&run_dir).unwrap().count(), 0);
}

#[tokio::test]
async fn the_next_agent_takes_the_name_over_and_the_last_one_leaves_it() {
    let run_dir = tempfile::tempdir().unwrap();
    let path = socket_path(run_dir.path());
    let (ready, first) = admin();
    drop(first);
    let (starting, _first) = admin();
    let old = tokio::spawn(ready.serve_unix(AdminSocket::bind(run_dir.path()).unwrap()));
    assert!(ask(UnixStream::connect(&path).await.unwrap(), "GET /readyz").await.starts_with("HTTP/1.0 200"));
    let new = tokio::spawn(starting.serve_unix(AdminSocket::bind(run_dir.path()).unwrap()));
    assert!(ask(UnixStream::connect(&path).await.unwrap(), "GET /readyz").await.starts_with("HTTP/1.0 503"));
    old.abort();
    assert!(old.await.unwrap_err().is_cancelled());
    assert!(ask(UnixStream::connect(&path).await.unwrap(), "GET /readyz").await.starts_with("HTTP/1.0 503"));
    new.abort();
}

#[tokio::test]
async fn a_dead_agents_socket_is_replaced() {
    let run_dir = tempfile::tempdir().unwrap();
    let path = socket_path(run_dir.path());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let socket = AdminSocket::bind(run_dir.path()).unwrap();
    UnixStream::connect(&path).await.unwrap();
    drop(socket);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_run_directory_that_cannot_be_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = AdminSocket::bind(file.path()).unwrap_err().to_string();
    assert!(error.contains("admin.sock") && error.contains("--run-dir"), "{error}");
}
