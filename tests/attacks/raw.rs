//! Sockets of pods in the test's own hand: the order of system calls of two pods is what these attacks are about.
use std::{
    ffi::OsString,
    io::{BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use pod_identity_tests::{
    client::{Answer, Tally},
    http1,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::SendFlags,
    net::sockopt::{set_socket_linger, set_socket_reuseaddr, socket_error},
};

/// For an answer or a connection. A SYN that finds another connection on its 4-tuple is answered at a limited rate, and
/// sent again after 1, 3, 7 and 15 s.
const COMES: Duration = Duration::from_secs(20);

/// An address on the loopback interface.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Binds to a port that others may have, or have had.
pub(crate) fn bind(socket: &OwnedFd, port: u16) -> Result<()> {
    set_socket_reuseaddr(socket, true)?;
    rustix::net::bind(socket, &loopback(port)).with_context(|| format!("cannot bind port {port}"))
}

/// Has connect take just this port, as one that nobody bound (`IP_LOCAL_PORT_RANGE`, Linux 6.3).
#[expect(unsafe_code, reason = "neither rustix nor nix has this option")]
pub(crate) fn take_only(socket: &OwnedFd, port: u16) -> Result<()> {
    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    // First and last, 16 bits each.
    let both = u32::from(port) << 16 | u32::from(port);
    let length = libc::socklen_t::try_from(size_of_val(&both))?;
    // SAFETY: the descriptor is open, and `both` is a live integer of the length given.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, (&raw const both).cast(), length)
    };
    ensure!(result == 0, "IP_LOCAL_PORT_RANGE: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Binds to the loopback device, which needs no privilege since Linux 5.7.
pub(crate) fn bind_to_loopback_device(socket: &OwnedFd) -> Result<()> {
    Ok(setsockopt(socket, BindToDevice, &OsString::from("lo"))?)
}

/// Connects.
pub(crate) fn connect(socket: OwnedFd, to: SocketAddr) -> Result<TcpStream> {
    rustix::net::connect(&socket, &to).with_context(|| format!("cannot connect to {to}"))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(COMES))?;
    Ok(stream)
}

/// Begins to connect.
pub(crate) fn begin_to_connect(socket: OwnedFd, to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    match rustix::net::connect(&stream, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(stream),
        Err(errno) => Err(errno).context("cannot begin to connect"),
    }
}

/// Begins to connect, with the first bytes in the SYN, where the namespace needs no cookie for that.
pub(crate) fn begin_with(socket: OwnedFd, to: SocketAddr, first: &[u8]) -> Result<TcpStream> {
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    let fast_open = SendFlags::from_bits_retain(u32::try_from(libc::MSG_FASTOPEN)?);
    match rustix::net::sendto(&stream, first, fast_open, &to) {
        Ok(_) | Err(Errno::INPROGRESS) => Ok(stream),
        Err(errno) => Err(errno).context("cannot begin to connect with a first byte"),
    }
}

/// Waits until what was begun is done.
pub(crate) fn finish_connecting(stream: &TcpStream) -> Result<()> {
    let timeout = Timespec::try_from(COMES)?;
    ensure!(poll(&mut [PollFd::new(stream, PollFlags::OUT)], Some(&timeout))? == 1, "not connected within {COMES:?}");
    socket_error(stream)?.context("not connected")?;
    stream.set_nonblocking(false)?;
    Ok(stream.set_read_timeout(Some(COMES))?)
}

/// Ends a connection with a reset.
pub(crate) fn reset(stream: TcpStream) -> Result<()> {
    set_socket_linger(stream.as_fd(), Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// Sends a request.
pub(crate) fn send(stream: &TcpStream, token: &str) -> Result<()> {
    let mut stream = stream;
    Ok(stream.write_all(http1::credentials_request(token).as_bytes())?)
}

/// Reads its answer.
pub(crate) fn receive(stream: &TcpStream) -> Answer {
    match http1::read_response(&mut BufReader::new(stream), false) {
        Ok(response) => Answer { status: Some(response.status), body: response.text(), ..Answer::default() },
        Err(error) => Answer { error: Some(format!("{error:#}")), ..Answer::default() },
    }
}

/// The answers to requests that were sent.
pub(crate) fn receive_all<'a>(streams: impl IntoIterator<Item = &'a TcpStream>) -> Tally {
    let mut tally = Tally::default();
    streams.into_iter().for_each(|stream| tally.add(&receive(stream)));
    tally
}

/// Whether nothing came, up to now.
pub(crate) fn heard_nothing(stream: &TcpStream) -> Result<bool> {
    stream.set_nonblocking(true)?;
    let mut stream = stream;
    // An end and a reset are no answers.
    Ok(stream.read(&mut [0; 64]).map_or(true, |length| length == 0))
}
