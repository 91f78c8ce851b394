//! Maps and globals. `bpftool map` shows them by these names.
use core::ptr::from_ref;

use agent_ebpf::{Counters, MAX_LISTENERS, MISS_BUFFER_BYTES, Miss};
use aya_ebpf::{
    Global,
    bindings::bpf_sock,
    btf_maps::{LruHashMap, PerCpuArray, RingBuf, SockHash},
    helpers::{bpf_map_lookup_elem, bpf_sk_release},
    macros::btf_map,
};

/// Netns cookie → listener. The value is the listening socket itself: when it closes the kernel removes the entry, so
/// a dead agent cannot leave a port behind for somebody else to bind.
#[btf_map]
pub(crate) static LISTENERS4: SockHash<u64, MAX_LISTENERS> = SockHash::new();
/// The same for `[::1]`.
#[btf_map]
pub(crate) static LISTENERS6: SockHash<u64, MAX_LISTENERS> = SockHash::new();
/// One entry: what was counted on each CPU.
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();
/// Tells the agent of namespaces that want a listener.
#[btf_map]
pub(crate) static MISSES: RingBuf<Miss, MISS_BUFFER_BYTES> = RingBuf::new();
/// Netns cookie → when its last miss event was sent (`bpf_ktime_get_ns`). A pod that makes namespaces pushes out the
/// oldest entries, which costs one event more for those; the ring buffer bounds the total.
#[btf_map]
pub(crate) static LAST_MISS: LruHashMap<u64, u64, 1024> = LruHashMap::new();

/// Cgroup id → when its container is back at its pace (`bpf_ktime_get_ns`). Only of connections in the host netns; whoever
/// pushes others out gives them their burst anew.
#[btf_map]
pub(crate) static PACES: LruHashMap<u64, u64, 4096> = LruHashMap::new();

/// The cookie of the host netns, if containers have a pace there; 0, which no namespace has, otherwise.
#[unsafe(no_mangle)]
pub(crate) static PACED_NETNS: Global<u64> = Global::new(0);
/// The port of the target addresses, host byte order.
#[unsafe(no_mangle)]
pub(crate) static TARGET_PORT: Global<u16> = Global::new(80);
/// The ports that listeners may have, host byte order.
#[unsafe(no_mangle)]
pub(crate) static FIRST_LISTENER_PORT: Global<u16> = Global::new(0);
/// The last of them.
#[unsafe(no_mangle)]
pub(crate) static LAST_LISTENER_PORT: Global<u16> = Global::new(u16::MAX);
/// Whether the IPv4 target address is steered.
#[unsafe(no_mangle)]
pub(crate) static STEER_V4: Global<u8> = Global::new(1);
/// Whether the IPv6 target address is steered.
#[unsafe(no_mangle)]
pub(crate) static STEER_V6: Global<u8> = Global::new(1);

/// `TCP_LISTEN` of `include/net/tcp_states.h`.
const TCP_LISTEN: u32 = 10;

/// The port, in host byte order, of the listener that `map` holds for this namespace.
///
/// The socket's reference is held only for the read: a listener that closes right after it makes the connection
/// fail with ECONNREFUSED, as any connection to a server that just closed.
///
/// A socket that somebody destroyed (`SOCK_DESTROY`, `CAP_NET_ADMIN` over the namespace) stays in the map until the agent
/// has closed it, with its port, which others may have taken by then: only one that still listens counts.
#[inline(always)]
pub(crate) fn listener_port(map: &'static SockHash<u64, MAX_LISTENERS>, netns_cookie: u64) -> Option<u16> {
    // SAFETY: the map and the key outlive the call; a socket that is found is released before the function returns,
    // as the verifier demands on every path.
    unsafe {
        let sk =
            bpf_map_lookup_elem(from_ref(map).cast_mut().cast(), from_ref(&netns_cookie).cast()).cast::<bpf_sock>();
        if sk.is_null() {
            return None;
        }
        // Volatile, or LLVM may sink the load below the release.
        let port = core::ptr::read_volatile(&raw const (*sk).src_port);
        let state = core::ptr::read_volatile(&raw const (*sk).state);
        bpf_sk_release(sk.cast());
        if state == TCP_LISTEN { u16::try_from(port).ok() } else { None }
    }
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub(crate) fn count(field: impl FnOnce(&mut Counters) -> &mut u64) {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: the entry is this CPU's own and lives as long as the map.
        let value = field(unsafe { &mut *counters });
        *value = value.wrapping_add(1);
    }
}
