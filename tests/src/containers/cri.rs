//! Calls of the CRI: gRPC with one message there and one back, each on a connection of its own.
use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

/// For whatever a runtime is asked to do, on a machine that may be busy.
const ANSWERS: Duration = Duration::from_secs(40);

/// A byte that says whether it is compressed, then its length: what a message begins with.
const PREFIX: usize = 5;

/// Calls `RuntimeService/METHOD` or `ImageService/METHOD`.
pub(super) fn call<A: Message + Default>(socket: &Path, method: &str, request: &impl Message) -> Result<A> {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(request.encoded_len().try_into()?);
    request.encode(&mut framed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async {
        let exchanged = tokio::time::timeout(ANSWERS, exchange(socket, method, framed.freeze())).await;
        exchanged.map_err(|_| anyhow!("no answer within {ANSWERS:?}"))?
    });
    let answer = answer.with_context(|| method.to_owned())?;
    ensure!(answer.len() >= PREFIX, "{method}: an answer of {} bytes", answer.len());
    A::decode(answer.slice(PREFIX..)).with_context(|| format!("{method}: an answer that cannot be read"))
}

async fn exchange(socket: &Path, method: &str, framed: Bytes) -> Result<Bytes> {
    let stream = tokio::net::UnixStream::connect(socket).await.context("no runtime listens")?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::post(format!("http://localhost/runtime.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(framed))?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?;
    // A failure may come in the headers, when nothing else does.
    let trailers = body.trailers().filter(|fields| fields.contains_key("grpc-status")).unwrap_or(&head.headers);
    let field = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    if field("grpc-status") != "0" {
        bail!("the runtime refuses with status {}: {}", field("grpc-status"), field("grpc-message"));
    }
    Ok(body.to_bytes())
}
