//! A question to the agent's admin socket, for commands that run beside the agent.
use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::socket_path;

/// More than any answer is long: some hundred bytes for each of a few thousand pods.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// There is no agent to ask.
    #[error("cannot reach the agent at {}: {cause} (run this in the agent's container, as its user; --run-dir names the socket's directory)", socket.display())]
    Unreachable {
        /// Where it was looked for.
        socket: PathBuf,
        /// What failed.
        #[source]
        cause: io::Error,
    },
    /// The agent did not answer in time.
    #[error("the agent did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// It answered something that is no answer.
    #[error("the agent's answer is not HTTP")]
    NotHttp,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: String,
}

/// Asks the agent whose admin socket is in `run_dir`: GET without a body, POST of JSON with one. Takes `timeout` at most.
pub fn ask(run_dir: &Path, path: &str, body: Option<&str>, timeout: Duration) -> Result<Answer, NoAnswer> {
    let socket = socket_path(run_dir);
    // HTTP/1.0: the answer ends with the connection.
    let question = match body {
        None => format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"),
        Some(body) => format!(
            "POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    };
    let (answer, answered) = mpsc::channel();
    // A thread, because connecting to a socket whose queue is full blocks without a limit. If it does, it ends with the
    // process, right after this returns.
    thread::spawn(move || answer.send(exchange(&socket, &question).map_err(|cause| (socket, cause))));
    match answered.recv_timeout(timeout) {
        Ok(Ok(text)) => read(&text).ok_or(NoAnswer::NotHttp),
        Ok(Err((socket, cause))) => Err(NoAnswer::Unreachable { socket, cause }),
        Err(_) => Err(NoAnswer::Timeout(timeout)),
    }
}

fn exchange(socket: &Path, question: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(question.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn read(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}
