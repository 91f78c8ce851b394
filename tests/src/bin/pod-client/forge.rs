//! Answers of the kernel that the kernel never gave: whoever has `CAP_NET_ADMIN` over a network namespace may send
//! netlink messages to the sockets in it.
use std::{fs, net::SocketAddrV4, os::fd::OwnedFd};

use anyhow::{Context as _, Result, ensure};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{self, SocketAddrNetlink},
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// Guesses at the sequence number of the question that comes next.
const SEQUENCES: u32 = 32;

/// Sends every `sock_diag` socket of this namespace the answer that `client`, connected to `server`, was made in a
/// cgroup. Fails unless a socket of our own, which takes messages from anybody, got it.
pub(crate) fn answers(client: SocketAddrV4, server: SocketAddrV4, cgroup_id: u64) -> Result<()> {
    let sender = diag_socket()?;
    let control = diag_socket()?;
    // Bound by the kernel to an address of its choice.
    rustix::net::bind(&control, &SocketAddrNetlink::new(0, 0))?;
    for address in addresses()? {
        for sequence in 0..SEQUENCES {
            let forged = answer(client, server, cgroup_id, sequence);
            // Refused by sockets that are connected to the kernel: that is what is to be shown, elsewhere. Others may be full.
            let _ = rustix::net::sendto(&sender, &forged, SendFlags::DONTWAIT, &SocketAddrNetlink::new(address, 0));
        }
    }
    let mut got = [0_u8; 512];
    let (length, _) = rustix::net::recv(&control, &mut got, RecvFlags::DONTWAIT).context("the control got nothing")?;
    ensure!(got.get(..length) == Some(&answer(client, server, cgroup_id, 0)[..]), "the control got something else");
    Ok(())
}

fn diag_socket() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::SOCK_DIAG))?)
}

/// The netlink addresses of this namespace's `sock_diag` sockets.
fn addresses() -> Result<Vec<u32>> {
    const SOCK_DIAG: &str = "4";
    let table = fs::read_to_string("/proc/thread-self/net/netlink")?;
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let found: Vec<u32> = rows
        .filter(|row| row.get(1) == Some(&SOCK_DIAG))
        .filter_map(|row| row.get(2)?.parse().ok())
        .filter(|address| *address != 0)
        .collect();
    // The agent's, of this namespace, and the control.
    ensure!(found.len() >= 2, "no socket to send to: {table}");
    Ok(found)
}

fn answer(client: SocketAddrV4, server: SocketAddrV4, cgroup_id: u64, sequence: u32) -> Vec<u8> {
    // struct inet_diag_msg: family, state, timer, retransmits, ports, addresses, interface, cookie, four numbers, inode
    let mut message = vec![2, 1, 0, 0];
    for port in [client.port(), server.port()] {
        message.extend(port.to_be_bytes());
    }
    for address in [client, server] {
        message.extend(address.ip().octets());
        message.extend([0; 12]);
    }
    message.extend([0; 32]);
    message.extend(12_u16.to_ne_bytes());
    message.extend(INET_DIAG_CGROUP_ID.to_ne_bytes());
    message.extend(cgroup_id.to_ne_bytes());
    // struct nlmsghdr: length, type, flags, sequence, address
    let length = u32::try_from(message.len() + 16).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend([0; 2]);
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(message);
    bytes
}
