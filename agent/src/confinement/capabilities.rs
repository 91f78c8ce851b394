//! Capabilities of the process and of each thread.
use rustix::{
    io::{Errno, Result},
    thread::{
        CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
        clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
        set_capabilities_secure_bits,
    },
};

use super::Role;

/// To bind ports below 1024.
pub(super) const LOW_PORTS: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// The whole process: what all roles need together, and the start.
pub(super) const PROCESS: CapabilitySet =
    CapabilitySet::SYS_ADMIN.union(CapabilitySet::DAC_READ_SEARCH).union(CapabilitySet::SYS_PTRACE).union(LOW_PORTS);

/// What a role needs.
pub(super) fn of(role: Role) -> CapabilitySet {
    match role {
        // bpf(2): what is attached to the kubepods cgroup (BPF_PROG_QUERY), and everything on Linux 5.18, where
        // `kernel.unprivileged_bpf_disabled` covers all commands; later kernels ask for nothing to use maps and links
        // that are open already. The kubelet's token files. /proc/PID/ns/net of pods' processes.
        Role::Main => CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::SYS_PTRACE,
        // setns, and listeners below 1024.
        Role::Netns => CapabilitySet::SYS_ADMIN | LOW_PORTS,
        // open_by_handle_at.
        Role::Cgroups => CapabilitySet::DAC_READ_SEARCH,
        // Sockets and files that others have opened, and for `Audit` a file of its own user's.
        Role::Serve | Role::Log | Role::Lookup | Role::Audit => CapabilitySet::empty(),
    }
}

/// Gives up everything but [`PROCESS`], for this thread and all that it starts.
///
/// A container runtime that gave no `CAP_SETPCAP` has limited the bounding set itself; the secure bits are then left
/// alone. Neither opens a way: with `no_new_privs` a program that root executes has no more than root has here.
pub(super) fn keep_what_roles_need() -> Result<()> {
    clear_ambient_capability_set()?;
    if capabilities(None)?.effective.contains(CapabilitySet::SETPCAP) {
        empty_the_bounding_set()?;
        set_capabilities_secure_bits(
            CapabilitiesSecureBits::NO_ROOT
                | CapabilitiesSecureBits::NO_ROOT_LOCKED
                | CapabilitiesSecureBits::NO_SETUID_FIXUP
                | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
                | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
                | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
                | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
        )?;
    }
    keep(PROCESS)
}

/// Keeps these where they are there, and nothing else. What a thread lacks it does not get: the self-test says so.
pub(super) fn keep(wanted: CapabilitySet) -> Result<()> {
    let kept = capabilities(None)?.permitted.intersection(wanted);
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
}

/// Bits that this kernel knows: beyond them it answers EINVAL.
fn empty_the_bounding_set() -> Result<()> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(capability) {
            Ok(true) => remove_capability_from_bounding_set(capability)?,
            Ok(false) => {}
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
