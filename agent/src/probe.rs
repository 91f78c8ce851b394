//! `probe`: asks the agent in the same container whether it lives or is ready, for the kubelet's exec probes.
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::admin::socket_path;

#[cfg(test)]
mod tests;

/// For connection, question and answer together.
const TIMEOUT: Duration = Duration::from_secs(1);

/// More than any answer is long.
const MAX_ANSWER: u64 = 64 * 1024;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Does it live?
    Live,
    /// May it serve?
    Ready,
}

impl Question {
    fn path(self) -> &'static str {
        match self {
            Self::Live => "/healthz",
            Self::Ready => "/readyz",
        }
    }
}

/// Why the answer is no.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is no agent to ask.
    #[error("cannot reach the agent at {}: {cause}", socket.display())]
    Unreachable {
        /// Where it was looked for.
        socket: PathBuf,
        /// What failed.
        cause: io::Error,
    },
    /// The agent did not answer in time.
    #[error("the agent did not answer within 1 s")]
    Timeout,
    /// It answered something that is no answer.
    #[error("the agent's answer is not HTTP")]
    NotHttp,
    /// It says no.
    #[error("{0}")]
    No(String),
}

/// Asks the agent whose admin socket is in `run_dir`; takes 1 s at most.
pub fn ask(run_dir: &Path, question: Question) -> Result<(), Failure> {
    let socket = socket_path(run_dir);
    let (answer, answered) = mpsc::channel();
    // A thread, because connecting to a socket whose queue is full blocks without a limit. If it does, it ends with the
    // process, right after this returns.
    thread::spawn(move || answer.send(exchange(&socket, question).map_err(|cause| (socket, cause))));
    match answered.recv_timeout(TIMEOUT) {
        Ok(Ok(text)) => judge(&text),
        Ok(Err((socket, cause))) => Err(Failure::Unreachable { socket, cause }),
        Err(_) => Err(Failure::Timeout),
    }
}

fn exchange(socket: &Path, question: Question) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    // HTTP/1.0: the answer ends with the connection.
    let asked = format!("GET {} HTTP/1.0\r\nHost: localhost\r\n\r\n", question.path());
    stream.write_all(asked.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn judge(answer: &str) -> Result<(), Failure> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(Failure::NotHttp)?;
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)).ok_or(Failure::NotHttp)?;
    if status == "200" { Ok(()) } else { Err(Failure::No(format!("{status} {body}"))) }
}
