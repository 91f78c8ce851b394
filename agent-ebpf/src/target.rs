//! What of a `bpf_sock_addr` is aimed at, and how it is spelled: the kernel keeps addresses and ports in network byte
//! order, ports in the lower half of a word.
use agent_ebpf::{TARGET_V4, TARGET_V6};
use aya_ebpf::bindings::bpf_sock_addr;

use crate::maps::{FIRST_LISTENER_PORT, LAST_LISTENER_PORT, STEER_V4, STEER_V6, TARGET_PORT};

/// `SOCK_STREAM`: TCP and MPTCP. A UDP socket that connects to the same address is not ours.
const STREAM: u32 = 1;
pub(crate) const LOOPBACK_V4_BE: u32 = 0x7f00_0001_u32.to_be();
pub(crate) const LOOPBACK_V6_LAST_BE: u32 = 1_u32.to_be();
const TARGET_V4_BE: u32 = TARGET_V4.to_be();
const TARGET_V6_BE: [u32; 4] = [TARGET_V6[0].to_be(), TARGET_V6[1].to_be(), TARGET_V6[2].to_be(), TARGET_V6[3].to_be()];
/// The third word of `::ffff:a.b.c.d`.
const MAPPED_BE: u32 = 0xffff_u32.to_be();

/// An IPv6 address that means something to us.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Address6 {
    /// As an IPv6 socket spells it.
    Native,
    /// `::ffff:a.b.c.d`: an IPv6 socket that talks IPv4 (Java's and Node's usual kind).
    Mapped,
}

#[inline(always)]
fn port_be(host_order: u16) -> u32 {
    u32::from(host_order.to_be())
}

/// Whether a TCP connect is aimed at the target port; the cheapest test, so it comes first.
#[inline(always)]
fn aims_at_port(addr: &bpf_sock_addr) -> bool {
    addr.user_port == port_be(TARGET_PORT.load()) && addr.type_ == STREAM
}

/// Whether this `connect4` is aimed at the target address.
#[inline(always)]
pub(crate) fn aimed4(addr: &bpf_sock_addr) -> bool {
    addr.user_ip4 == TARGET_V4_BE && aims_at_port(addr) && STEER_V4.load() != 0
}

/// Which target address, if any, this `connect6` is aimed at.
#[inline(always)]
pub(crate) fn aimed6(addr: &bpf_sock_addr) -> Option<Address6> {
    if !aims_at_port(addr) {
        return None;
    }
    match classify(addr.user_ip6, TARGET_V6_BE, TARGET_V4_BE)? {
        Address6::Native => (STEER_V6.load() != 0).then_some(Address6::Native),
        Address6::Mapped => (STEER_V4.load() != 0).then_some(Address6::Mapped),
    }
}

/// Whether a TCP connect is aimed at a port that a listener of ours could have. Applications talk to themselves over the
/// loopback address all the time: theirs leave here, before any helper is asked where they are.
#[inline(always)]
fn aims_at_listener_port(addr: &bpf_sock_addr) -> bool {
    // The other half of the word is zero.
    let port = u32::from_be(addr.user_port) >> 16;
    port >= u32::from(FIRST_LISTENER_PORT.load())
        && port <= u32::from(LAST_LISTENER_PORT.load())
        && addr.type_ == STREAM
}

/// Whether this `connect4` is aimed at the loopback address of our listeners, which the kernel also takes 0.0.0.0 for.
#[inline(always)]
pub(crate) fn direct4(addr: &bpf_sock_addr) -> bool {
    (addr.user_ip4 == LOOPBACK_V4_BE || addr.user_ip4 == 0) && aims_at_listener_port(addr)
}

/// The same for this `connect6`.
#[inline(always)]
pub(crate) fn direct6(addr: &bpf_sock_addr) -> Option<Address6> {
    if !aims_at_listener_port(addr) {
        return None;
    }
    loopback6(addr).or_else(|| classify(addr.user_ip6, [0; 4], 0))
}

/// Whether an address that `getpeername` is about to return is a loopback address our listeners could have.
#[inline(always)]
pub(crate) fn loopback6(addr: &bpf_sock_addr) -> Option<Address6> {
    classify(addr.user_ip6, [0, 0, 0, LOOPBACK_V6_LAST_BE], LOOPBACK_V4_BE)
}

#[inline(always)]
fn classify(address: [u32; 4], native: [u32; 4], mapped: u32) -> Option<Address6> {
    let [a, b, c, d] = address;
    if a == native[0] && b == native[1] && c == native[2] && d == native[3] {
        Some(Address6::Native)
    } else if a == 0 && b == 0 && c == MAPPED_BE && d == mapped {
        Some(Address6::Mapped)
    } else {
        None
    }
}

/// Rewrites an IPv4 destination to the listener.
#[inline(always)]
pub(crate) fn to_listener4(addr: &mut bpf_sock_addr, port: u16) {
    addr.user_ip4 = LOOPBACK_V4_BE;
    addr.user_port = port_be(port);
}

/// Rewrites an IPv6 destination to the listener.
#[inline(always)]
pub(crate) fn to_listener6(addr: &mut bpf_sock_addr, kind: Address6, port: u16) {
    match kind {
        Address6::Native => {
            addr.user_ip6[0] = 0;
            addr.user_ip6[3] = LOOPBACK_V6_LAST_BE;
        }
        Address6::Mapped => addr.user_ip6[3] = LOOPBACK_V4_BE,
    }
    addr.user_port = port_be(port);
}

/// Whether the address carries this listener's port.
#[inline(always)]
pub(crate) fn has_port(addr: &bpf_sock_addr, port: u16) -> bool {
    addr.user_port == port_be(port)
}

/// Puts the IPv4 target address back.
#[inline(always)]
pub(crate) fn to_target4(addr: &mut bpf_sock_addr) {
    addr.user_ip4 = TARGET_V4_BE;
    addr.user_port = port_be(TARGET_PORT.load());
}

/// Puts the IPv6 target address back.
#[inline(always)]
pub(crate) fn to_target6(addr: &mut bpf_sock_addr, kind: Address6) {
    match kind {
        Address6::Native => {
            addr.user_ip6[0] = TARGET_V6_BE[0];
            addr.user_ip6[3] = TARGET_V6_BE[3];
        }
        Address6::Mapped => addr.user_ip6[3] = TARGET_V4_BE,
    }
    addr.user_port = port_be(TARGET_PORT.load());
}
