//! One client: a connection, and the request on it.
use std::{net::SocketAddr, os::fd::OwnedFd, time::Instant};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt::socket_error},
};

use crate::Connections;

/// More than any answer.
const ANSWER_BYTES: usize = 16 * 1024;

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    socket: Option<OwnedFd>,
    /// Whether the request that is under way is not the first on its connection.
    reused: bool,
    request: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
    /// When the request that is under way, or the next one, is due.
    pub(crate) due: Instant,
    /// When the request that is under way was started.
    pub(crate) started: Option<Instant>,
}

/// How a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The kernel will tell when there is more to do.
    Waits,
    /// Answered with this status.
    Answered(u16),
    /// No answer.
    Failed(&'static str),
}

impl Client {
    /// Not connected yet.
    pub(crate) fn new(host: &str, token: &str, kind: Connections, due: Instant) -> Self {
        let close = if kind == Connections::New { "Connection: close\r\n" } else { "" };
        let request =
            format!("GET /v1/credentials HTTP/1.1\r\nHost: {host}\r\nAuthorization: {token}\r\n{close}\r\n").into();
        Self {
            socket: None,
            reused: false,
            request,
            sent: 0,
            answer: Vec::with_capacity(ANSWER_BYTES),
            due,
            started: None,
        }
    }

    /// The connection, if there is one.
    pub(crate) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Whether all of the request is on its way.
    pub(crate) fn has_sent(&self) -> bool {
        self.sent >= self.request.len()
    }

    /// Begins a request. `true` if the connection is a new one, which the kernel has to be asked about.
    pub(crate) fn start(&mut self, to: SocketAddr, now: Instant) -> Result<bool, Errno> {
        (self.sent, self.started) = (0, Some(now));
        self.answer.clear();
        self.reused = self.socket.is_some();
        if self.reused {
            return Ok(false);
        }
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(errno),
        }
        self.socket = Some(socket);
        Ok(true)
    }

    /// Does what can be done now.
    pub(crate) fn advance(&mut self, kind: Connections) -> Progress {
        let progress = match self.exchange() {
            Ok(progress) => progress,
            Err(Errno::AGAIN | Errno::NOTCONN) => Progress::Waits,
            Err(errno) => Progress::Failed(name(errno)),
        };
        match progress {
            Progress::Waits => {}
            Progress::Answered(_) if kind == Connections::Kept => self.started = None,
            Progress::Answered(_) | Progress::Failed(_) => self.hang_up(),
        }
        progress
    }

    /// Whether a request without an answer was made on a connection that the server had meanwhile closed, as it may at
    /// any time: clients that keep connections then take a new one.
    pub(crate) fn crossed(&self) -> bool {
        self.reused && self.answer.is_empty()
    }

    /// Gives up the request and the connection.
    pub(crate) fn hang_up(&mut self) {
        (self.socket, self.started) = (None, None);
    }

    fn exchange(&mut self) -> Result<Progress, Errno> {
        let Some(socket) = &self.socket else { return Ok(Progress::Failed("not connected")) };
        if self.sent < self.request.len() {
            socket_error(socket)??;
            let rest = self.request.get(self.sent..).unwrap_or_default();
            self.sent += rustix::net::send(socket, rest, SendFlags::NOSIGNAL)?;
            // Its answer takes longer than to ask for it.
            return Ok(Progress::Waits);
        }
        let mut bytes = [0; ANSWER_BYTES];
        let (received, _) = rustix::net::recv(socket, &mut bytes, RecvFlags::empty())?;
        if received == 0 {
            return Ok(Progress::Failed("closed without an answer"));
        }
        self.answer.extend_from_slice(bytes.get(..received).unwrap_or_default());
        Ok(status_if_whole(&self.answer).map_or(Progress::Waits, Progress::Answered))
    }
}

/// The status of an answer that is there as a whole.
fn status_if_whole(answer: &[u8]) -> Option<u16> {
    let head_ends = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(answer.get(..head_ends)?).ok()?;
    let length = head.lines().find_map(content_length).unwrap_or(0);
    let status = head.get(9..12)?.parse().ok()?;
    (answer.len() >= head_ends + length).then_some(status)
}

/// Other agents write the name otherwise.
fn content_length(line: &str) -> Option<usize> {
    let (name, value) = line.split_once(':')?;
    name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
}

pub(crate) fn name(errno: Errno) -> &'static str {
    match errno {
        Errno::CONNREFUSED => "connection refused",
        Errno::CONNRESET | Errno::PIPE => "connection reset",
        Errno::TIMEDOUT => "connection timed out",
        Errno::ADDRNOTAVAIL => "no free port",
        _ => "other",
    }
}
