//! Connecting through `io_uring`: the kernel makes the call on the caller's behalf, on its thread or on another.
#![expect(unsafe_code, reason = "the kernel reads the address through a pointer; nothing safe offers that")]
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use io_uring::{IoUring, opcode, squeue, types};
use nix::sys::socket::{SockaddrLike as _, SockaddrStorage};

/// Who makes the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// The submitting thread.
    Inline,
    /// A worker thread of the ring.
    Worker,
    /// The kernel thread that polls the ring.
    KernelThread,
}

/// Connects a socket.
pub(crate) fn connect(socket: &OwnedFd, to: SocketAddr, how: How) -> Result<()> {
    let mut builder: io_uring::Builder = IoUring::builder();
    if how == How::KernelThread {
        builder.setup_sqpoll(50);
    }
    let mut ring = builder.build(8).context("cannot set up an io_uring")?;
    let address = SockaddrStorage::from(to);
    let mut entry = opcode::Connect::new(types::Fd(socket.as_raw_fd()), address.as_ptr(), address.len()).build();
    if how == How::Worker {
        entry = entry.flags(squeue::Flags::ASYNC);
    }
    // SAFETY: `address` and `socket` outlive the operation: its completion is waited for below.
    unsafe { ring.submission().push(&entry) }.context("the ring is full")?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().context("the ring did not complete")?.result();
    if result < 0 { Err(io::Error::from_raw_os_error(-result).into()) } else { Ok(()) }
}
