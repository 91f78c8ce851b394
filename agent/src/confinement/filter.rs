//! From the list of system calls to filters in the kernel.
use std::{collections::BTreeMap, io};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::{
    Role, Seccomp,
    syscalls::{self, When},
};
use crate::sys::{self, Refused};

/// A thread's system calls could not be restricted.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// Only a defect of the list can cause it, or a processor that it was not written for.
    #[error("the list cannot be compiled: {0}")]
    Compile(#[from] BackendError),
    /// The kernel.
    #[error("the kernel does not take the filter: {0} (it needs CONFIG_SECCOMP_FILTER)")]
    Install(#[source] io::Error),
}

/// Filters for one role. The kernel runs all of them for each call. The strictest answer counts, the last one's among
/// equals.
pub(super) struct Filter(Vec<(BpfProgram, Refused)>);

impl Filter {
    /// `ENOSYS` for what is not listed: it is what an older kernel would say, so the C library falls back to a call
    /// that it knows (`clone3` to `clone`, whose flags can be looked at). To kill for these would end a node's
    /// credentials because of a code path that nobody has met yet; to kill for the ones that serve only an attacker
    /// ends nothing else.
    pub(super) fn new(role: Role, seccomp: Seccomp) -> Result<Self, FilterError> {
        let (unlisted, hostile) = match seccomp {
            Seccomp::Enforce => (SeccompAction::Errno(libc::ENOSYS.cast_unsigned()), SeccompAction::KillProcess),
            Seccomp::Log => (SeccompAction::Log, SeccompAction::Log),
            Seccomp::Off => return Ok(Self(Vec::new())),
        };
        let arch: TargetArch = std::env::consts::ARCH.try_into()?;
        let listed = SeccompFilter::new(listed(role)?, unlisted, SeccompAction::Allow, arch)?;
        let never = syscalls::HOSTILE.iter().filter(|call| !call.except.contains(&role));
        let never = never.map(|call| (call.number, Vec::new())).collect();
        let never = SeccompFilter::new(never, SeccompAction::Allow, hostile, arch)?;
        let mut programs = vec![(never.try_into()?, Refused::Logged), (listed.try_into()?, Refused::Logged)];
        if syscalls::PARENTS.contains(&role) {
            // Each start of a thread begins with it: expected, and nothing to tell anybody.
            let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
            let no_such_call = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
            let clone3 = SeccompFilter::new(clone3, SeccompAction::Allow, no_such_call, arch)?;
            programs.push((clone3.try_into()?, Refused::Silently));
        }
        Ok(Self(programs))
    }

    /// Everything but opening files, which fails as where they may not be read. Nothing to tell anybody: it is expected.
    pub(super) fn no_files() -> Result<Self, FilterError> {
        let open = [(libc::SYS_openat, Vec::new())];
        let denied = SeccompAction::Errno(libc::EACCES.cast_unsigned());
        let arch = std::env::consts::ARCH.try_into()?;
        let filter = SeccompFilter::new(BTreeMap::from(open), SeccompAction::Allow, denied, arch)?;
        Ok(Self(vec![(filter.try_into()?, Refused::Silently)]))
    }

    /// Restricts the calling thread, and those that it will start.
    pub(super) fn install(&self) -> Result<(), FilterError> {
        let mut programs = self.0.iter();
        programs
            .try_for_each(|(program, refused)| sys::restrict_system_calls(program, *refused))
            .map_err(FilterError::Install)
    }
}

/// A call without rules is allowed whatever its arguments are.
fn listed(role: Role) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut rules = BTreeMap::new();
    for call in syscalls::LISTED.iter().filter(|call| call.roles.contains(&role)) {
        rules.entry(call.number).or_insert_with(Vec::new).extend(when(&call.when)?);
    }
    Ok(rules)
}

fn when(when: &When) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |argument, operator, value| {
        SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
    };
    match *when {
        When::Always => Ok(Vec::new()),
        When::OneOf(argument, values) => {
            values.iter().map(|&value| rule(argument, SeccompCmpOp::Eq, value.into())).collect()
        }
        When::Masked(argument, mask, value) => {
            Ok(vec![rule(argument, SeccompCmpOp::MaskedEq(mask.into()), value.into())?])
        }
        When::Null(argument) => Ok(vec![SeccompRule::new(vec![SeccompCondition::new(
            argument,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::Eq,
            0,
        )?])?]),
    }
}
