//! `connect4` and `connect6`: rewrites a destination that is a target address to the listener of the caller's
//! namespace. Everything else leaves after a few compares.
use agent_ebpf::{Counters, MISS_INTERVAL_NS, Miss};
use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_get_retval, bpf_ktime_get_ns,
        bpf_set_retval,
    },
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;

use crate::{
    maps::{LAST_MISS, LISTENERS4, LISTENERS6, MISSES, count, listener_port},
    target::{self, Address6},
};

const ECONNREFUSED: i32 = 111;

/// The namespace has no listener: the connection is refused, counted and reported.
pub(crate) struct NoListener;

#[inline(always)]
pub(crate) fn connect4(ctx: &SockAddrContext) -> Result<(), NoListener> {
    // SAFETY: the context is valid for the run of the program, and nobody else writes to it meanwhile.
    let addr = unsafe { &mut *ctx.sock_addr };
    if !target::aimed4(addr) {
        return Ok(());
    }
    let netns_cookie = netns_cookie(ctx);
    let Some(port) = listener_port(&LISTENERS4, netns_cookie) else {
        return Err(refuse(ctx, netns_cookie, |c| &mut c.connect4_missed));
    };
    target::to_listener4(addr, port);
    clear_own_refusal();
    count(|c| &mut c.connect4_steered);
    Ok(())
}

#[inline(always)]
pub(crate) fn connect6(ctx: &SockAddrContext) -> Result<(), NoListener> {
    // SAFETY: as in `connect4`.
    let addr = unsafe { &mut *ctx.sock_addr };
    let Some(kind) = target::aimed6(addr) else {
        return Ok(());
    };
    let netns_cookie = netns_cookie(ctx);
    let listener = match kind {
        Address6::Native => listener_port(&LISTENERS6, netns_cookie),
        Address6::Mapped => listener_port(&LISTENERS4, netns_cookie),
    };
    let Some(port) = listener else {
        return Err(refuse(ctx, netns_cookie, |c| &mut c.connect6_missed));
    };
    target::to_listener6(addr, kind, port);
    clear_own_refusal();
    count(|c| &mut c.connect6_steered);
    Ok(())
}

#[inline(always)]
fn netns_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes this program type's context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// During an upgrade two agents are attached and every program of the chain runs: the older one may have refused this
/// very connect for lack of a listener that we do have. Only our own refusal is taken back, never somebody's EPERM.
///
/// A program of somebody else that refuses connects to the target address with just this error, and runs before ours
/// (attached to kubepods or below it, earlier), cannot be told from an older agent, and is overruled: the caller reaches
/// its own pod's credentials, which it was to be kept from. One that answers with EPERM, the kernel's default, is not,
/// nor is one further up, which runs after ours.
#[inline(always)]
fn clear_own_refusal() {
    // SAFETY: plain helper calls on this run's return value.
    unsafe {
        if bpf_get_retval() == -ECONNREFUSED {
            bpf_set_retval(0);
        }
    }
}

/// ECONNREFUSED rather than EPERM: every SDK tries again after it.
#[inline(always)]
fn refuse(ctx: &SockAddrContext, netns_cookie: u64, counter: impl FnOnce(&mut Counters) -> &mut u64) -> NoListener {
    count(counter);
    report(netns_cookie);
    // Removed by the verifier unless the agent runs at debug level.
    debug!(ctx, "no listener in namespace {}: connection refused", netns_cookie);
    // SAFETY: a plain helper call on this run's return value.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    NoListener
}

/// Tells the agent, at most once in `MISS_INTERVAL_NS` for each namespace.
#[inline(always)]
fn report(netns_cookie: u64) {
    // SAFETY: plain helper calls; a map value is only read, and a torn or replaced one costs an event more or less.
    let (now, last) = unsafe { (bpf_ktime_get_ns(), LAST_MISS.get(netns_cookie)) };
    if last.is_some_and(|last| now.wrapping_sub(*last) < MISS_INTERVAL_NS) {
        return;
    }
    // Failing to remember costs another event; the ring buffer is the bound.
    let _ = LAST_MISS.insert(netns_cookie, now, 0);
    let miss = Miss {
        netns_cookie,
        // SAFETY: plain helper calls about the current task.
        cgroup_id: unsafe { bpf_get_current_cgroup_id() },
        // The lower half is the thread.
        tid: u32::try_from(bpf_get_current_pid_tgid() & u64::from(u32::MAX)).unwrap_or_default(),
        reserved: 0,
    };
    if MISSES.output(miss, 0).is_err() {
        count(|c| &mut c.miss_events_dropped);
    }
}
