//! `getpeername4` and `getpeername6`: the caller sees the address it dialled. Stateless: a peer on loopback that has
//! the port of this namespace's listener is the agent.
use aya_ebpf::{EbpfContext as _, helpers::bpf_get_netns_cookie, programs::SockAddrContext};

use crate::{
    maps::{LISTENERS4, LISTENERS6, count, listener_port},
    target::{self, Address6},
};

#[inline(always)]
pub(crate) fn getpeername4(ctx: &SockAddrContext) {
    // SAFETY: the context is valid for the run of the program, and nobody else writes to it meanwhile.
    let addr = unsafe { &mut *ctx.sock_addr };
    if addr.user_ip4 != target::LOOPBACK_V4_BE {
        return;
    }
    // SAFETY: the helper takes this program type's context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if listener_port(&LISTENERS4, netns_cookie).is_some_and(|port| target::has_port(addr, port)) {
        target::to_target4(addr);
        count(|c| &mut c.getpeername4_rewritten);
    }
}

#[inline(always)]
pub(crate) fn getpeername6(ctx: &SockAddrContext) {
    // SAFETY: as in `getpeername4`.
    let addr = unsafe { &mut *ctx.sock_addr };
    let Some(kind) = target::loopback6(addr) else {
        return;
    };
    // SAFETY: the helper takes this program type's context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let listener = match kind {
        Address6::Native => listener_port(&LISTENERS6, netns_cookie),
        Address6::Mapped => listener_port(&LISTENERS4, netns_cookie),
    };
    if listener.is_some_and(|port| target::has_port(addr, port)) {
        target::to_target6(addr, kind);
        count(|c| &mut c.getpeername6_rewritten);
    }
}
