//! Asks the kernel for one exact TCP socket of a namespace (`NETLINK_SOCK_DIAG`), and for the cgroup it was created in.
//!
//! The kernel answers an exact request while it handles the `send`, so the answer is there when `send` returns: no
//! waiting, 2.5 µs for both calls. Layouts: `include/uapi/linux/` `netlink.h`, `sock_diag.h`, `inet_diag.h`.
use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    os::fd::OwnedFd,
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
        netlink::{self, SocketAddrNetlink},
    },
};

use crate::cgroup::CgroupId;

const REQUEST_BYTES: usize = 72;
const REQUEST_LENGTH: u32 = 72;
const HEADER_BYTES: usize = 16;
/// Where a message has its sequence number.
const SEQUENCE_AT: usize = 8;
/// The kernel's own netlink address.
const KERNEL: u32 = 0;
/// Messages thrown away in one look-up.
const MAX_STRAY: usize = 16;
/// `struct inet_diag_msg`, after the header.
const MESSAGE_BYTES: usize = 72;
/// Header, message and the few attributes asked for are below 200 bytes.
const ANSWER_BYTES: usize = 1024;

/// `AF_INET`, `AF_INET6` and `IPPROTO_TCP` as bytes of the messages.
const INET: u8 = 2;
const INET6: u8 = 10;
const TCP: u8 = 6;

const SHORT: DiagError = DiagError::Malformed("shorter than its header says");
const FAMILY: DiagError = DiagError::Malformed("neither IPv4 nor IPv6");

const NLMSG_ERROR: u16 = 2;
/// The kernel's error numbers (`include/linux/err.h`).
const ERRNOS: RangeInclusive<i32> = 1..=4095;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
/// Asking for the traffic class also brings the cgroup id (`inet_diag_msg_attrs_fill`, `net/ipv4/inet_diag.c`); the id
/// has no request bit of its own.
const EXT_TCLASS: u8 = 1 << (6 - 1);
const INET_DIAG_CGROUP_ID: u16 = 21;
const ALL_STATES: u32 = u32::MAX;
/// "Any cookie" (`INET_DIAG_NOCOOKIE`).
const NO_COOKIE: [u8; 8] = [0xff; 8];
/// The index of `lo`, in every namespace. Matches sockets bound to that device and to none.
const LOOPBACK_INDEX: u32 = 1;

/// A socket of the kind that attests callers, opened in a namespace and asking about that namespace for ever after.
#[derive(Debug)]
pub struct DiagSocket {
    socket: OwnedFd,
    /// Of the next question.
    sequence: AtomicU32,
}

/// What the kernel says about a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketInfo {
    /// Its own address, v4-mapped addresses as IPv4.
    pub local: SocketAddr,
    /// Its peer's.
    pub peer: SocketAddr,
    /// TCP state (`include/net/tcp_states.h`).
    pub state: u8,
    /// The cgroup it was created in; sockets that only wait out their time have none.
    pub cgroup: Option<CgroupId>,
    /// The user who owns it.
    pub uid: u32,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum DiagError {
    /// The kernel says that there is no such socket.
    #[error("no such socket")]
    NotFound,
    /// The kernel could not answer.
    #[error("sock_diag: {0}")]
    Failed(#[source] io::Error),
    /// The kernel's answer is not one to this question.
    #[error("sock_diag: the kernel's answer cannot be read: {0}")]
    Malformed(&'static str),
}

impl DiagSocket {
    /// Opens one in the current namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::SOCK_DIAG))?;
        // Whoever has CAP_NET_ADMIN over this namespace may send messages to netlink sockets in it, and so write answers
        // of their own. A connected socket takes none but the kernel's (`netlink_getsockbyportid`).
        rustix::net::connect(&socket, &SocketAddrNetlink::new(KERNEL, 0))?;
        Ok(Self { socket, sequence: AtomicU32::new(0) })
    }

    /// The socket whose own address is `local` and whose peer is `peer`, both of one family.
    ///
    /// The lookup may fall back to a listener, so the caller must compare the addresses in the answer.
    pub fn lookup(&self, local: SocketAddr, peer: SocketAddr) -> Result<SocketInfo, DiagError> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let failed = |errno: Errno| DiagError::Failed(errno.into());
        rustix::net::send(&self.socket, &request(local, peer, sequence), SendFlags::empty()).map_err(failed)?;
        let mut answer = [0_u8; ANSWER_BYTES];
        // What is not the kernel's answer to this very question is thrown away: a message sent before the socket was
        // connected, or an answer that a former look-up did not wait for.
        for _ in 0..MAX_STRAY {
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            let (_, length, from) = rustix::net::recvfrom(&self.socket, &mut answer, flags).map_err(failed)?;
            let answer = answer.get(..length).ok_or(DiagError::Malformed("longer than expected"))?;
            let from_kernel =
                from.and_then(|from| SocketAddrNetlink::try_from(from).ok()).is_some_and(|from| from.pid() == KERNEL);
            if from_kernel && read_u32(answer, SEQUENCE_AT) == Some(sequence) {
                return parse(answer);
            }
        }
        Err(DiagError::Malformed("too many messages that nobody asked for"))
    }
}

fn request(local: SocketAddr, peer: SocketAddr, sequence: u32) -> [u8; REQUEST_BYTES] {
    let family = if local.is_ipv4() { INET } else { INET6 };
    let mut bytes = [0_u8; REQUEST_BYTES];
    let mut writer = Writer { bytes: &mut bytes, at: 0 };
    // struct nlmsghdr
    writer.put(&REQUEST_LENGTH.to_ne_bytes());
    writer.put(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    writer.put(&NLM_F_REQUEST.to_ne_bytes());
    writer.put(&sequence.to_ne_bytes());
    writer.put(&KERNEL.to_ne_bytes());
    // struct inet_diag_req_v2
    writer.put(&[family, TCP, EXT_TCLASS, 0]);
    writer.put(&ALL_STATES.to_ne_bytes());
    // struct inet_diag_sockid
    writer.put(&local.port().to_be_bytes());
    writer.put(&peer.port().to_be_bytes());
    writer.put(&octets(local.ip()));
    writer.put(&octets(peer.ip()));
    writer.put(&LOOPBACK_INDEX.to_ne_bytes());
    writer.put(&NO_COOKIE);
    bytes
}

struct Writer<'a> {
    bytes: &'a mut [u8; REQUEST_BYTES],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, part: &[u8]) {
        let end = self.at + part.len();
        if let Some(room) = self.bytes.get_mut(self.at..end) {
            room.copy_from_slice(part);
        }
        debug_assert!(end <= REQUEST_BYTES, "the parts add up to the request");
        self.at = end;
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let mut octets = [0; 16];
            let (head, _) = octets.split_at_mut(4);
            head.copy_from_slice(&v4.octets());
            octets
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Reads an answer of the kernel.
pub fn parse(answer: &[u8]) -> Result<SocketInfo, DiagError> {
    let length = read_u32(answer, 0).ok_or(SHORT)? as usize;
    let kind = read_u16(answer, 4).ok_or(SHORT)?;
    let message = answer.get(HEADER_BYTES..length).ok_or(SHORT)?;
    if kind == NLMSG_ERROR {
        let errno = read_u32(message, 0).ok_or(SHORT)?.cast_signed().wrapping_neg();
        // Zero acknowledges what was not asked for; what is no error number must not become one.
        if !ERRNOS.contains(&errno) {
            return Err(DiagError::Malformed("an error without a number"));
        }
        return Err(match Errno::from_raw_os_error(errno) {
            Errno::NOENT => DiagError::NotFound,
            other => DiagError::Failed(other.into()),
        });
    }
    if kind != SOCK_DIAG_BY_FAMILY {
        return Err(DiagError::Malformed("not an answer to a lookup"));
    }
    if message.len() < MESSAGE_BYTES {
        return Err(SHORT);
    }
    // struct inet_diag_msg: family, state, timer, retransmits, sockid {sport, dport, src, dst, if, cookie}, expires,
    // rqueue, wqueue, uid, inode.
    let family = message.first().copied().ok_or(SHORT)?;
    let state = message.get(1).copied().ok_or(SHORT)?;
    let address = |port_at: usize, ip_at: usize| -> Option<SocketAddr> {
        let port = u16::from_be_bytes(message.get(port_at..port_at + 2)?.try_into().ok()?);
        Some(SocketAddr::new(read_ip(family, message.get(ip_at..ip_at + 16)?)?, port))
    };
    Ok(SocketInfo {
        local: address(4, 8).ok_or(FAMILY)?,
        peer: address(6, 24).ok_or(FAMILY)?,
        state,
        uid: read_u32(message, 64).ok_or(SHORT)?,
        cgroup: cgroup_attribute(message.get(MESSAGE_BYTES..).ok_or(SHORT)?),
    })
}

fn read_ip(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    let octets: [u8; 16] = bytes.try_into().ok()?;
    if family == INET {
        let [a, b, c, d, ..] = octets;
        Some(IpAddr::from([a, b, c, d]))
    } else if family == INET6 {
        // An IPv6 socket that talks IPv4 is found by its IPv4 addresses and answers with the mapped ones.
        Some(IpAddr::from(octets).to_canonical())
    } else {
        None
    }
}

/// Walks the attributes (length, type, value, padding to four bytes) to the cgroup id.
fn cgroup_attribute(mut attributes: &[u8]) -> Option<CgroupId> {
    loop {
        let length = usize::from(read_u16(attributes, 0)?);
        let kind = read_u16(attributes, 2)?;
        let value = attributes.get(4..length)?;
        if kind == INET_DIAG_CGROUP_ID {
            // 0 is no cgroup: the kernel says it for a socket whose cgroup it does not know.
            return value.try_into().ok().map(u64::from_ne_bytes).filter(|&id| id != 0).map(CgroupId);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
