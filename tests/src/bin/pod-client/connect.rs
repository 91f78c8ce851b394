//! Every way to connect that an application may use.
use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use nix::sys::socket::{setsockopt, sockopt};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, SendFlags, SocketFlags, SocketType, connect, connect_unspec, ipproto,
        sockopt::{Timeout, set_ipv6_v6only, set_socket_reuseaddr, set_socket_timeout, socket_error},
    },
};

use pod_identity_tests::sockets;

use crate::{forge, uring};

/// How to connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// socket, connect
    #[default]
    Plain,
    /// Non-blocking, and polled
    Nonblock,
    /// Bound to an address first (--bind)
    Bound,
    /// Bound with `SO_REUSEADDR` to an address and port first (--bind)
    BoundPort,
    /// Bound to the device lo
    DeviceLo,
    /// Bound to the device eth0: nothing can be steered to a loopback listener from there
    DeviceEth0,
    /// TCP Fast Open: the first bytes go with sendto
    TfoSendto,
    /// TCP Fast Open: connect returns at once
    TfoConnect,
    /// Multipath TCP
    Mptcp,
    /// Multipath TCP on an IPv6 socket
    MptcpV6,
    /// An IPv6 socket, also to a v4-mapped address
    V6,
    /// An IPv6 socket with `IPV6_V6ONLY`
    V6only,
    /// Connected, disconnected with `AF_UNSPEC`, and connected again
    Reconnect,
    /// Connected through `io_uring`
    IoUring,
    /// Connected through an `io_uring` worker thread
    IoUringAsync,
    /// Connected through an `io_uring` with a kernel thread of its own
    IoUringSqpoll,
    /// Closed as soon as the request is sent
    CloseEarly,
    /// Its sending direction closed after the request
    ShutWr,
    /// A datagram socket: nothing is sent
    Udp,
    /// A socket that another process made and gives over a unix socket (--unix)
    TakenSocket,
    /// The process that makes such sockets and gives them away, until it is killed
    GiveSocket,
    /// Not connected: the address is listened on for a moment, and the exit code says whether that worked
    Listen,
    /// Bound (--bind), and the agent told in the kernel's name that the socket was made in another cgroup (--cgroup-id)
    ForgedAnswer,
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Connection {
    /// A connection.
    Stream(TcpStream),
    /// A connected datagram socket.
    Datagram {
        /// With whom.
        peer: SocketAddr,
        /// From where.
        local: SocketAddr,
    },
}

/// Connects in the given way.
pub(crate) fn open(
    mode: Mode,
    to: SocketAddr,
    bind: Option<SocketAddr>,
    unix: Option<&Path>,
    cgroup_id: Option<u64>,
    timeout: Duration,
) -> Result<Connection> {
    if mode == Mode::Udp {
        let socket = UdpSocket::bind(SocketAddr::new(unspecified(to), 0))?;
        socket.connect(to)?;
        return Ok(Connection::Datagram { peer: socket.peer_addr()?, local: socket.local_addr()? });
    }
    let socket = match mode {
        Mode::TakenSocket => sockets::take(unix.context("--unix is missing")?)?,
        _ => make(mode, to)?,
    };
    set_socket_timeout(&socket, Timeout::Recv, Some(timeout))?;
    // This is what bounds connect.
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    prepare(mode, &socket, bind)?;
    match mode {
        Mode::ForgedAnswer => {
            let (Some(SocketAddr::V4(client)), SocketAddr::V4(server)) = (bind, to) else {
                bail!("--bind and the address must be IPv4");
            };
            forge::answers(client, server, cgroup_id.context("--cgroup-id is missing")?)?;
            connect(&socket, &to)?;
        }
        Mode::Nonblock => connect_polled(&socket, to, timeout)?,
        Mode::TfoSendto => send_first(&socket, to)?,
        Mode::Reconnect => {
            connect(&socket, &to)?;
            connect_unspec(&socket)?;
            connect(&socket, &to)?;
        }
        Mode::IoUring => uring::connect(&socket, to, uring::How::Inline)?,
        Mode::IoUringAsync => uring::connect(&socket, to, uring::How::Worker)?,
        Mode::IoUringSqpoll => uring::connect(&socket, to, uring::How::KernelThread)?,
        _ => connect(&socket, &to)?,
    }
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(Connection::Stream(stream))
}

fn unspecified(to: SocketAddr) -> IpAddr {
    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn make(mode: Mode, to: SocketAddr) -> Result<OwnedFd> {
    let family = match mode {
        Mode::V6 | Mode::V6only | Mode::MptcpV6 => AddressFamily::INET6,
        _ if to.is_ipv6() => AddressFamily::INET6,
        _ => AddressFamily::INET,
    };
    let protocol = matches!(mode, Mode::Mptcp | Mode::MptcpV6).then_some(ipproto::MPTCP);
    let flags = if mode == Mode::Nonblock { SocketFlags::NONBLOCK } else { SocketFlags::empty() };
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags | SocketFlags::CLOEXEC, protocol)?)
}

fn prepare(mode: Mode, socket: &OwnedFd, bind: Option<SocketAddr>) -> Result<()> {
    match mode {
        Mode::BoundPort => set_socket_reuseaddr(socket, true)?,
        Mode::DeviceLo => setsockopt(socket, sockopt::BindToDevice, &OsString::from("lo"))?,
        Mode::DeviceEth0 => setsockopt(socket, sockopt::BindToDevice, &OsString::from("eth0"))?,
        Mode::TfoConnect => setsockopt(socket, sockopt::TcpFastOpenConnect, &true)?,
        Mode::V6only => set_ipv6_v6only(socket, true)?,
        _ => {}
    }
    if matches!(mode, Mode::Bound | Mode::BoundPort | Mode::ForgedAnswer) {
        rustix::net::bind(socket, &bind.context("--bind is missing")?)?;
    }
    Ok(())
}

fn connect_polled(socket: &OwnedFd, to: SocketAddr, timeout: Duration) -> Result<()> {
    match connect(socket, &to) {
        Err(Errno::INPROGRESS) => {}
        done => return Ok(done?),
    }
    let timeout = Timespec::try_from(timeout)?;
    let ready = poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&timeout))?;
    ensure!(ready == 1, "connecting took too long");
    Ok(socket_error(socket)??)
}

/// The connection is made by sendto, not by connect, and an empty line, which HTTP servers skip before a request, goes
/// with the SYN if the kernel has a cookie.
fn send_first(socket: &OwnedFd, to: SocketAddr) -> Result<()> {
    let fast_open = SendFlags::from_bits_retain(u32::try_from(libc::MSG_FASTOPEN)?);
    rustix::net::sendto(socket, b"\r\n", fast_open, &to)?;
    Ok(())
}
