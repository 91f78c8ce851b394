//! Sockets made in a pod and used elsewhere: a socket carries the cgroup and the namespace of the process that made it.
use std::{
    io::{IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use crate::{
    pod::Pod,
    process::{Process, binary, eventually},
    token::random_hex,
};

/// For the maker to be there.
const STARTS: Duration = Duration::from_secs(10);

/// A process in a pod that makes TCP sockets and gives them away.
#[derive(Debug)]
pub struct Maker {
    _process: Process,
    unix: PathBuf,
    stream: Mutex<UnixStream>,
}

impl Maker {
    /// Starts one in the pod's container `app`, with its unix socket in `dir`.
    pub fn start(pod: &Pod, dir: &Path) -> Result<Self> {
        let mut command = pod.container("app")?.command_line()?;
        command.arg(binary("pod-client")?);
        Self::start_with(command, dir)
    }

    /// Starts one with a command line that ends in `pod-client`.
    pub fn start_with(mut command: Command, dir: &Path) -> Result<Self> {
        let unix = dir.join(format!("{}.sock", random_hex(3)));
        command.arg("--mode=give-socket").arg(format!("--unix={}", unix.display()));
        let process = Process::start("a maker of sockets", &mut command, &dir.join("makers.log"))?;
        let stream = eventually("the maker of sockets to listen", STARTS, || Ok(UnixStream::connect(&unix).ok()))?;
        Ok(Self { _process: process, unix, stream: Mutex::new(stream) })
    }

    /// A TCP socket of that pod.
    pub fn make(&self) -> Result<OwnedFd> {
        let stream = self.stream.lock().map_err(|_| anyhow!("another user of the maker panicked"))?;
        take_from(&stream)
    }

    /// Where other processes take sockets.
    #[must_use]
    pub fn unix(&self) -> &Path {
        &self.unix
    }
}

/// Asks a maker for a socket.
pub fn take(unix: &Path) -> Result<OwnedFd> {
    take_from(&UnixStream::connect(unix).context("no maker of sockets")?)
}

fn take_from(mut stream: &UnixStream) -> Result<OwnedFd> {
    stream.write_all(b"s")?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8];
    rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut sockets) = message
            && let Some(socket) = sockets.next()
        {
            stream.read_exact(&mut byte)?;
            return Ok(socket);
        }
    }
    bail!("nothing was given")
}

/// Gives a socket for each byte that comes, until none does.
pub fn give(mut stream: &UnixStream, mut make: impl FnMut() -> Result<OwnedFd>) -> Result<()> {
    let mut byte = [0_u8];
    while stream.read(&mut byte)? > 0 {
        let socket = make()?;
        let given = [socket.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&given));
        rustix::net::sendmsg(stream, &[IoSlice::new(&byte)], &mut ancillary, SendFlags::empty())?;
        // When its new owner closes it, it must be closed.
        drop(socket);
        stream.write_all(&byte)?;
    }
    Ok(())
}
