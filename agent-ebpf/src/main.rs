//! The programs: connections aimed at a target address are steered to the agent's listener in the caller's own
//! network namespace. There is no state per connection; identity is established later, by the agent, from the socket.
//!
//! Minimum kernel version: 5.18 (`bpf_set_retval`); `getpeername` hooks and ring buffers came in 5.8, sockets in a
//! `SOCKHASH` that programs may look up in 5.7.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(unsafe_code, reason = "programs call the kernel's helpers and write to its contexts")
)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        clippy::inline_always,
        reason = "a call costs more than what most of these do, and hides bounds from the verifier"
    )
)]

#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod peername;
#[cfg(target_arch = "bpf")]
mod target;

/// The entry points. A wrapper decides what the worker's answer means for the caller.
#[cfg(target_arch = "bpf")]
mod programs {
    #![expect(clippy::needless_pass_by_value, reason = "aya's entry points take their context by value")]

    use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

    use crate::{connect, peername};

    /// Lets the system call go on.
    const PROCEED: i32 = 1;
    /// Ends the system call with the error set before.
    const REFUSE: i32 = 0;

    #[cgroup_sock_addr(connect4)]
    pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
        verdict(connect::connect4(&ctx))
    }

    #[cgroup_sock_addr(connect6)]
    pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
        verdict(connect::connect6(&ctx))
    }

    #[cgroup_sock_addr(getpeername4)]
    pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
        peername::getpeername4(&ctx);
        PROCEED
    }

    #[cgroup_sock_addr(getpeername6)]
    pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
        peername::getpeername6(&ctx);
        PROCEED
    }

    /// A connection with no listener to go to must not leave the pod: there may be somebody else at the address.
    #[inline(always)]
    fn verdict(outcome: Result<(), connect::Refused>) -> i32 {
        match outcome {
            Err(connect::Refused::NoListener | connect::Refused::Paced) => REFUSE,
            Ok(()) => PROCEED,
        }
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        // Never reached: the verifier would refuse a program in which it could be.
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    // The host's half of `cargo build --workspace`: the programs exist for the bpf target only (agent/build.rs).
}
