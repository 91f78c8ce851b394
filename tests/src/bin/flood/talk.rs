//! Connections with requests: as many as fit, and as costly as they get.
use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags},
};

use crate::{
    Args,
    connections::{open, per_thread},
};

/// A connection that is made anew when it ends.
struct Line {
    socket: Option<OwnedFd>,
    /// Of what is being sent.
    sent: usize,
    waits_for_answer: bool,
    next_at: Instant,
}

impl Line {
    fn some(args: &Args) -> Vec<Self> {
        let now = Instant::now();
        (0..per_thread(args)).map(|_| Self { socket: None, sent: 0, waits_for_answer: false, next_at: now }).collect()
    }

    /// The connection, new if there was none.
    fn socket(&mut self, args: &Args) -> Option<&OwnedFd> {
        if self.socket.is_none() {
            (self.socket, self.sent, self.waits_for_answer) = (open(args), 0, false);
            if let Some(socket) = &self.socket {
                // Each byte for itself.
                let _ = rustix::net::sockopt::set_tcp_nodelay(socket, true);
            }
        }
        self.socket.as_ref()
    }

    /// Sends what it can of `bytes`, at most `most` of them. `true` when all are sent.
    fn send(&mut self, bytes: &[u8], most: usize) -> bool {
        let Some(socket) = &self.socket else { return false };
        let until = bytes.len().min(self.sent.saturating_add(most));
        match rustix::net::send(socket, bytes.get(self.sent..until).unwrap_or_default(), SendFlags::NOSIGNAL) {
            Ok(sent) => self.sent += sent,
            Err(Errno::AGAIN | Errno::NOTCONN) => {}
            Err(_) => self.socket = None,
        }
        let all = self.sent >= bytes.len();
        if all {
            self.sent = 0;
        }
        all
    }

    /// Throws away what has come. `true` when something has.
    fn read(&mut self, buffer: &mut [u8]) -> bool {
        let Some(socket) = &self.socket else { return false };
        match rustix::net::recv(socket, buffer, RecvFlags::empty()) {
            Ok((received, _)) if received > 0 => return true,
            Err(Errno::AGAIN | Errno::NOTCONN) => {}
            Ok(_) | Err(_) => self.socket = None,
        }
        false
    }
}

/// A request with the pod's own token on each connection, and the next as soon as it is answered.
pub(crate) fn requests(args: &Args, ends: Instant) -> u64 {
    converse(args, ends, |_| request(&args.token))
}

/// The same, each with another token: the pod's own with another signature, padded.
pub(crate) fn tokens(args: &Args, thread: usize, ends: Instant) -> u64 {
    let claims = args.token.rsplit_once('.').map_or(args.token.as_str(), |(claims, _)| claims);
    converse(args, ends, |number| {
        let number = format!("{thread:08}{number:08}");
        let padding = args.token_bytes.saturating_sub(claims.len() + 1 + number.len());
        request(&format!("{claims}.{number}{}", "A".repeat(padding)))
    })
}

fn converse(args: &Args, ends: Instant, next: impl Fn(u64) -> Vec<u8>) -> u64 {
    let mut lines: Vec<(Line, Vec<u8>)> = Line::some(args).into_iter().map(|line| (line, next(0))).collect();
    let mut buffer = vec![0; 16 * 1024];
    let mut attempts = 0;
    while Instant::now() < ends {
        for (line, request) in &mut lines {
            if line.socket(args).is_none() {
                continue;
            }
            if line.waits_for_answer {
                line.waits_for_answer = !line.read(&mut buffer);
            } else if line.send(request, usize::MAX) {
                line.waits_for_answer = true;
                attempts += 1;
                *request = next(attempts);
            }
        }
    }
    attempts
}

/// The shortest requests there are, sent without an end.
pub(crate) fn pipelined(args: &Args, ends: Instant) -> u64 {
    let many = b"GET / HTTP/1.1\r\n\r\n".repeat(1024);
    let mut lines = Line::some(args);
    let mut buffer = vec![0; 64 * 1024];
    let mut attempts = 0;
    while Instant::now() < ends {
        for line in &mut lines {
            if line.socket(args).is_none() {
                continue;
            }
            attempts += if line.send(&many, usize::MAX) { 1024 } else { 0 };
            line.read(&mut buffer);
        }
    }
    attempts
}

/// A head that never ends, a byte at a time.
pub(crate) fn bytes(args: &Args, pause: Duration, ends: Instant) -> u64 {
    let head = [b"GET /v1/credentials HTTP/1.1\r\nX: ".as_slice(), &vec![b'x'; 64 * 1024]].concat();
    let mut lines = Line::some(args);
    let mut buffer = vec![0; 4096];
    let mut attempts = 0;
    loop {
        let now = Instant::now();
        if now >= ends {
            return attempts;
        }
        for line in &mut lines {
            if now < line.next_at || line.socket(args).is_none() {
                continue;
            }
            line.next_at = now + pause;
            line.send(&head, 1);
            line.read(&mut buffer);
            attempts += 1;
        }
    }
}

fn request(token: &str) -> Vec<u8> {
    format!("GET /v1/credentials HTTP/1.1\r\nHost: 169.254.170.23\r\nAuthorization: {token}\r\n\r\n").into_bytes()
}
