//! What a server can hardly do less than: one thread, epoll, and the same bytes for whoever sends a request's head. It
//! asks nobody who the caller is, and looks at nothing but where the head ends and whether the connection is to be kept.
//!
//! Its listener is its standard input, so whoever starts it decides about the namespace.
use std::{
    collections::HashMap,
    fs, io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use rustix::{
    event::epoll::{self, CreateFlags, Event, EventData, EventFlags},
    io::Errno,
    net::{RecvFlags, SendFlags, SocketFlags, accept_with},
};

/// More than any request's head.
const HEAD_BYTES: usize = 16 * 1024;
const EVENTS: usize = 256;
/// The event of the listener.
const LISTENER: u64 = u64::MAX;

/// Answers every request with the same bytes
#[derive(Debug, Parser)]
struct Args {
    /// File with the answer on a connection that is kept
    #[arg(long)]
    kept: PathBuf,
    /// File with the answer after which the connection is closed
    #[arg(long)]
    closed: PathBuf,
}

/// A connection, and what came of a head that is not whole.
struct Connection {
    socket: OwnedFd,
    head: Vec<u8>,
}

/// What becomes of a connection.
#[derive(PartialEq, Eq)]
enum Next {
    Keep,
    Close,
}

struct Floor {
    kept: Vec<u8>,
    closed: Vec<u8>,
    epoll: OwnedFd,
    connections: HashMap<u64, Connection>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::io::ioctl_fionbio(&listener, true)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let read = |path: &PathBuf| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut floor = Floor { kept: read(&args.kept)?, closed: read(&args.closed)?, epoll, connections: HashMap::new() };
    loop {
        let mut events = [MaybeUninit::<Event>::uninit(); EVENTS];
        let (events, _) = match epoll::wait(&floor.epoll, &mut events, None) {
            Ok(events) => events,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        for event in events {
            match event.data.u64() {
                LISTENER => floor.accept(&listener)?,
                number => floor.ready(number),
            }
        }
    }
}

impl Floor {
    fn accept(&mut self, listener: &OwnedFd) -> Result<()> {
        match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(socket) => {
                let number = u64::try_from(socket.as_raw_fd())?;
                epoll::add(&self.epoll, &socket, EventData::new_u64(number), EventFlags::IN | EventFlags::ET)?;
                self.connections.insert(number, Connection { socket, head: Vec::new() });
                Ok(())
            }
            Err(Errno::AGAIN | Errno::CONNABORTED) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn ready(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if connection.exchange(&self.kept, &self.closed) == Next::Close {
            self.connections.remove(&number);
        }
    }
}

impl Connection {
    fn exchange(&mut self, kept: &[u8], closed: &[u8]) -> Next {
        let mut bytes = [MaybeUninit::<u8>::uninit(); HEAD_BYTES];
        let received = match rustix::net::recv(&self.socket, &mut bytes, RecvFlags::empty()) {
            Ok(((received, _), _)) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Next::Keep,
            Err(_) => return Next::Close,
        };
        if received.is_empty() {
            return Next::Close;
        }
        let whole: &[u8] = if self.head.is_empty() && received.ends_with(b"\r\n\r\n") {
            received
        } else {
            self.head.extend_from_slice(received);
            &self.head
        };
        if !whole.ends_with(b"\r\n\r\n") {
            return Next::Keep;
        }
        let is_last = whole.ends_with(b"close\r\n\r\n");
        // Its answer fits into the socket's buffer: whoever does not take it is not waited for.
        let sent = rustix::net::send(&self.socket, if is_last { closed } else { kept }, SendFlags::NOSIGNAL);
        self.head.clear();
        if is_last || sent.is_err() { Next::Close } else { Next::Keep }
    }
}
