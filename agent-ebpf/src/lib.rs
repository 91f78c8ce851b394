//! Types and names shared by the programs and the agent.
//!
//! Every layout here is read by the kernel, by the agent and by `bpftool`, so sizes and padding are asserted.
#![no_std]

/// The IPv4 target address that SDKs aim at, in host byte order: 169.254.170.23.
pub const TARGET_V4: u32 = u32::from_be_bytes([169, 254, 170, 23]);

/// The IPv6 target address that SDKs aim at, in four words of host byte order: `fd00:ec2::23`.
pub const TARGET_V6: [u32; 4] = [0xfd00_0ec2, 0, 0, 0x23];

/// How many namespaces can have a listener of one family at the same time. The kernel allocates entries as they are
/// inserted; the number only bounds them (and sizes the bucket table, 16 bytes each).
pub const MAX_LISTENERS: usize = 16_384;

/// Bytes of the ring buffer of [`Miss`] events. A full buffer drops events, never connections.
pub const MISS_BUFFER_BYTES: usize = 64 * 1024;

/// At most one [`Miss`] event is sent for a namespace in this time, in nanoseconds.
pub const MISS_INTERVAL_NS: u64 = 100_000_000;

/// In the host netns a container may connect to the agent once in this time, in nanoseconds, and more often as far as
/// [`PACE_BURST_NS`] allows: pods of the host network share a listener and its queue, which one of them could else fill
/// faster than anybody can empty it.
pub const PACE_INTERVAL_NS: u64 = 5_000_000;

/// How far a container may be ahead of its pace: 512 connections.
pub const PACE_BURST_NS: u64 = 512 * PACE_INTERVAL_NS;

/// A connection aimed at a target address was refused because its namespace has no listener.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// The network namespace of the socket (`SO_NETNS_COOKIE`).
    pub netns_cookie: u64,
    /// The cgroup of the connecting task.
    pub cgroup_id: u64,
    /// The connecting thread, numbered as the initial PID namespace does.
    pub tid: u32,
    /// Always zero: makes the padding explicit.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Miss>() == 24 && align_of::<Miss>() == 8);

/// What the programs counted on one CPU since they were loaded.
///
/// Plain additions on per-CPU memory: a count is lost only when a task is preempted between load and store by another
/// matching connect on the same CPU, which is worth less than an atomic on this path.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// `connect4`: connections rewritten to a listener.
    pub connect4_steered: u64,
    /// `connect4`: connections refused for lack of a listener.
    pub connect4_missed: u64,
    /// `connect4`: connections refused because their container makes too many in the host netns.
    pub connect4_paced: u64,
    /// `connect6`: connections rewritten to a listener, the v4-mapped among them.
    pub connect6_steered: u64,
    /// `connect6`: connections refused for lack of a listener.
    pub connect6_missed: u64,
    /// `connect6`: connections refused because their container makes too many in the host netns.
    pub connect6_paced: u64,
    /// `getpeername4`: answers in which the listener's address was replaced by the target address.
    pub getpeername4_rewritten: u64,
    /// `getpeername6`: the same for IPv6 and v4-mapped sockets.
    pub getpeername6_rewritten: u64,
    /// Miss events that did not fit the ring buffer.
    pub miss_events_dropped: u64,
}

const _: () = assert!(size_of::<Counters>() == 9 * 8 && align_of::<Counters>() == 8);

/// Names of programs, maps and globals as they stand in the object.
pub mod names {
    /// The programs; each is named for its hook.
    pub const PROGRAMS: [&str; 4] = ["connect4", "connect6", "getpeername4", "getpeername6"];
    /// Map: netns cookie → the agent's IPv4 listener.
    pub const LISTENERS4: &str = "LISTENERS4";
    /// Map: netns cookie → the agent's IPv6 listener.
    pub const LISTENERS6: &str = "LISTENERS6";
    /// Map: one [`Counters`](super::Counters) for each CPU.
    pub const COUNTERS: &str = "COUNTERS";
    /// Map: ring buffer of [`Miss`](super::Miss).
    pub const MISSES: &str = "MISSES";
    /// Global, `u16`, host byte order: the port of the target addresses.
    pub const TARGET_PORT: &str = "TARGET_PORT";
    /// Global, `u64`: the cookie of the host netns, if containers have a pace there; 0 otherwise.
    pub const PACED_NETNS: &str = "PACED_NETNS";
    /// Global, `u16`, host byte order: the first port that a listener may have.
    pub const FIRST_LISTENER_PORT: &str = "FIRST_LISTENER_PORT";
    /// Global, `u16`, host byte order: the last one.
    pub const LAST_LISTENER_PORT: &str = "LAST_LISTENER_PORT";
    /// Global, `u8`: whether the IPv4 target address is steered.
    pub const STEER_V4: &str = "STEER_V4";
    /// Global, `u8`: whether the IPv6 target address is steered.
    pub const STEER_V6: &str = "STEER_V6";
}

#[cfg(feature = "user")]
mod user {
    #![expect(unsafe_code, reason = "aya's Pod is an unsafe marker trait, and only this crate may implement it here")]
    use super::{Counters, Miss};

    // SAFETY: `repr(C)` structs of integers without padding (asserted above): every bit pattern is valid.
    unsafe impl aya::Pod for Miss {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counters {}
}
