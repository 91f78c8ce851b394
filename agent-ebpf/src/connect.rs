//! `connect4` and `connect6`: rewrites a destination that is a target address to the listener of the caller's
//! namespace. Everything else leaves after a few compares.
use agent_ebpf::{Counters, MAX_LISTENERS, MISS_INTERVAL_NS, Miss, PACE_BURST_NS, PACE_INTERVAL_NS};
use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    btf_maps::SockHash,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_get_retval, bpf_ktime_get_ns,
        bpf_set_retval,
    },
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;

use crate::{
    maps::{LAST_MISS, LISTENERS4, LISTENERS6, MISSES, PACED_NETNS, PACES, count, listener_port},
    target::{self, Address6},
};

const ECONNREFUSED: i32 = 111;

/// The connection is refused, and that is counted.
pub(crate) enum Refused {
    /// The namespace has no listener, which is reported.
    NoListener,
    /// The container makes too many.
    Paced,
}

#[inline(always)]
pub(crate) fn connect4(ctx: &SockAddrContext) -> Result<(), Refused> {
    // SAFETY: the context is valid for the run of the program, and nobody else writes to it meanwhile.
    let addr = unsafe { &mut *ctx.sock_addr };
    if !target::aimed4(addr) {
        if target::direct4(addr) {
            return direct(ctx, addr, &LISTENERS4, |c| &mut c.connect4_paced);
        }
        return Ok(());
    }
    let netns_cookie = netns_cookie(ctx);
    let Some(port) = listener_port(&LISTENERS4, netns_cookie) else {
        return Err(refuse(ctx, netns_cookie, |c| &mut c.connect4_missed));
    };
    keep_pace(netns_cookie, |c| &mut c.connect4_paced)?;
    target::to_listener4(addr, port);
    clear_own_refusal();
    count(|c| &mut c.connect4_steered);
    Ok(())
}

#[inline(always)]
pub(crate) fn connect6(ctx: &SockAddrContext) -> Result<(), Refused> {
    // SAFETY: as in `connect4`.
    let addr = unsafe { &mut *ctx.sock_addr };
    let Some(kind) = target::aimed6(addr) else {
        return match target::direct6(addr) {
            Some(Address6::Native) => direct(ctx, addr, &LISTENERS6, |c| &mut c.connect6_paced),
            Some(Address6::Mapped) => direct(ctx, addr, &LISTENERS4, |c| &mut c.connect6_paced),
            None => Ok(()),
        };
    };
    let netns_cookie = netns_cookie(ctx);
    let listener = match kind {
        Address6::Native => listener_port(&LISTENERS6, netns_cookie),
        Address6::Mapped => listener_port(&LISTENERS4, netns_cookie),
    };
    let Some(port) = listener else {
        return Err(refuse(ctx, netns_cookie, |c| &mut c.connect6_missed));
    };
    keep_pace(netns_cookie, |c| &mut c.connect6_paced)?;
    target::to_listener6(addr, kind, port);
    clear_own_refusal();
    count(|c| &mut c.connect6_steered);
    Ok(())
}

/// A connection to a listener of ours without the target address: it keeps the same pace, or there would be a way round.
#[inline(always)]
fn direct(
    ctx: &SockAddrContext,
    addr: &bpf_sock_addr,
    listeners: &'static SockHash<u64, MAX_LISTENERS>,
    counter: impl FnOnce(&mut Counters) -> &mut u64,
) -> Result<(), Refused> {
    if PACED_NETNS.load() == 0 {
        return Ok(());
    }
    let netns_cookie = netns_cookie(ctx);
    if netns_cookie != PACED_NETNS.load() {
        return Ok(());
    }
    match listener_port(listeners, netns_cookie) {
        Some(port) if target::has_port(addr, port) => keep_pace(netns_cookie, counter),
        _ => Ok(()),
    }
}

/// Refuses a connection in the host netns when its container is ahead of its pace. The refusal costs the caller's time
/// and nobody else's; a connection in the listener's queue would cost the queue.
///
/// The entry is read and written without a lock: of connects on several CPUs at the same moment some are not counted,
/// which is a small part of what a connect takes.
#[inline(always)]
fn keep_pace(netns_cookie: u64, counter: impl FnOnce(&mut Counters) -> &mut u64) -> Result<(), Refused> {
    if netns_cookie != PACED_NETNS.load() {
        return Ok(());
    }
    // SAFETY: plain helper calls about the current task and the clock.
    let (now, cgroup_id) = unsafe { (bpf_ktime_get_ns(), bpf_get_current_cgroup_id()) };
    // SAFETY: the value is only read; a torn or replaced one costs a connection more or less.
    let ahead_until = unsafe { PACES.get(cgroup_id) }.copied().unwrap_or_default();
    let from = ahead_until.max(now.saturating_sub(PACE_BURST_NS));
    if from > now {
        count(counter);
        // SAFETY: a plain helper call on this run's return value.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
        return Err(Refused::Paced);
    }
    // Failing to remember costs a connection more.
    let _ = PACES.insert(cgroup_id, from + PACE_INTERVAL_NS, 0);
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
fn refuse(ctx: &SockAddrContext, netns_cookie: u64, counter: impl FnOnce(&mut Counters) -> &mut u64) -> Refused {
    count(counter);
    report(netns_cookie);
    // Removed by the verifier unless the agent runs at debug level.
    debug!(ctx, "no listener in namespace {}: connection refused", netns_cookie);
    // SAFETY: a plain helper call on this run's return value.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    Refused::NoListener
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
