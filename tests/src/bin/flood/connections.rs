//! Connections without requests.
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SocketFlags, SocketType},
};

use crate::Args;

/// A connection that is being made; `None` when the kernel refuses at once.
pub(crate) fn open(args: &Args) -> Option<OwnedFd> {
    connect(args.to)
}

fn connect(to: SocketAddr) -> Option<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).ok()?;
    // Its end is a reset: nothing waits out its time, so there are ports without end.
    let _ = rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Some(socket),
        Err(_) => None,
    }
}

/// How many connections one thread has.
pub(crate) fn per_thread(args: &Args) -> usize {
    (args.connections / args.threads).max(1)
}

/// Makes connections and resets each at once.
pub(crate) fn connects(args: &Args, ends: Instant) -> u64 {
    let mut attempts = 0;
    while Instant::now() < ends {
        drop(open(args));
        attempts += 1;
    }
    attempts
}

/// Makes connections to a listener of its own on the loopback address of the same kind, and resets each at once.
pub(crate) fn own_connects(args: &Args, ends: Instant) -> u64 {
    let loopback = if args.to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let Ok(listener) = TcpListener::bind(SocketAddr::new(loopback, 0)) else { return 0 };
    let (Ok(()), Ok(to)) = (listener.set_nonblocking(true), listener.local_addr()) else { return 0 };
    let mut attempts = 0;
    while Instant::now() < ends {
        drop(connect(to));
        drop(listener.accept());
        attempts += 1;
    }
    attempts
}

/// Keeps connections on which nothing is sent, and makes a new one for each that ends.
pub(crate) fn idle(args: &Args, ends: Instant) -> u64 {
    let mut attempts = 0;
    let mut held: Vec<Option<OwnedFd>> = (0..per_thread(args)).map(|_| None).collect();
    while Instant::now() < ends {
        for slot in &mut held {
            let ended = slot.as_ref().is_none_or(|socket| {
                let mut byte = [0; 1];
                let received = rustix::net::recv(socket, &mut byte, RecvFlags::empty());
                !matches!(received, Err(Errno::AGAIN | Errno::NOTCONN))
            });
            if ended {
                *slot = open(args);
                attempts += 1;
            }
        }
    }
    attempts
}
