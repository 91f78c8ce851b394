//! What the process and each of its threads may still do: capabilities, system calls, core dumps.
//!
//! Linux keeps capabilities and seccomp filters per thread, so each thread has what its [`Role`] needs and no more: the
//! one that reads what pods send has no capability at all and cannot open a file. Threads share their memory, though:
//! whoever can write to it at will can make a thread with more rights act. The bound for such an attacker is the process,
//! that is [`begin`] and what all roles together may do; roles stop everything short of that.
use std::{io, sync::mpsc, thread};

use rustix::process::{DumpableBehavior, Resource, Rlimit};

mod capabilities;
mod filter;
mod syscalls;
#[cfg(test)]
mod tests;

pub use filter::FilterError;

use filter::Filter;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// EKS Auth, discovery, health and metrics, after the start.
    Main,
    /// Attests and answers pods.
    Serve,
    /// Opens sockets in pods' network namespaces.
    Netns,
    /// Tells the paths of cgroup ids.
    Cgroups,
    /// Writes lines to stderr.
    Log,
    /// Resolves names, for `Main`.
    Lookup,
    /// Writes the audit to a file.
    Audit,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Main, Self::Serve, Self::Netns, Self::Cgroups, Self::Log, Self::Lookup, Self::Audit];

    /// The name of its thread.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            // The kernel calls the first thread as the program.
            Self::Main => "main",
            Self::Serve => "serve",
            Self::Netns => "netns",
            Self::Cgroups => "cgroups",
            Self::Log => "log",
            Self::Lookup => "lookup",
            Self::Audit => "audit",
        }
    }
}

/// What becomes of system calls that no role lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Seccomp {
    /// They fail with ENOSYS; those that only an attacker makes kill the process.
    #[default]
    Enforce,
    /// They are let through, and named in the kernel's log. For finding what a list lacks.
    Log,
    /// There is no filter.
    Off,
}

/// How threads are confined.
#[derive(Clone, Copy, Debug, Default)]
pub struct Confinement {
    /// What becomes of unlisted system calls.
    pub seccomp: Seccomp,
    /// Whether the main thread may still have to bind a port below 1024, for health or metrics.
    pub main_binds_low_ports: bool,
}

/// The process or a thread could not be confined, so it does not run.
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    /// Core dumps, tracing or privileges.
    #[error("cannot {what}: {error}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// A thread's capabilities.
    #[error("cannot give up capabilities of the {} thread: {error}", role.name())]
    Capabilities {
        /// Whose.
        role: Role,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// A thread's system calls.
    #[error("cannot restrict the system calls of the {} thread: {error} (--seccomp off runs without)", role.name())]
    Filter {
        /// Whose.
        role: Role,
        /// What failed.
        #[source]
        error: FilterError,
    },
    /// No thread.
    #[error("cannot start the {} thread: {error}", role.name())]
    Thread {
        /// Which.
        role: Role,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
}

/// Confines the process, before it has other threads: what it gives up here no thread ever has.
///
/// No core file whatever the host's limits and handlers are, and no tracing by processes of the same user: the memory
/// holds credentials. No program that it might execute gets more than it has, and it has only what its threads need.
pub fn begin() -> Result<(), ConfinementError> {
    let process = |what| move |errno: rustix::io::Errno| ConfinementError::Process { what, error: errno.into() };
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .and_then(|()| rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable))
        .map_err(process("forbid core dumps"))?;
    rustix::thread::set_no_new_privs(true).map_err(process("forbid new privileges"))?;
    capabilities::keep_what_roles_need().map_err(process("give up capabilities"))
}

/// Does `work` on a thread that can open no file, for what a library reads without being asked to. Where the kernel has no
/// filters, or there is no thread to be had, it is done all the same.
pub fn without_files<T: Send + 'static>(work: fn() -> T) -> T {
    let blind = move || {
        // Without a filter the library reads what it likes.
        let _ = Filter::no_files().and_then(|filter| filter.install());
        work()
    };
    thread::Builder::new().spawn(blind).ok().and_then(|thread| thread.join().ok()).unwrap_or_else(work)
}

impl Confinement {
    /// Confines the calling thread. There is no way back.
    pub fn enter(self, role: Role) -> Result<(), ConfinementError> {
        self.prepare(role)?.enter()
    }

    /// Starts a thread that does `work` once it is confined, and not at all if it cannot be.
    pub fn spawn<T: Send + 'static>(
        self,
        role: Role,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<Option<T>>, ConfinementError> {
        let prepared = self.prepare(role)?;
        let (entered, outcome) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(role.name().to_owned())
            .spawn(move || {
                let confined = prepared.enter();
                let may_work = confined.is_ok();
                // The receiver waits below.
                let _ = entered.send(confined);
                may_work.then(work)
            })
            .map_err(|error| ConfinementError::Thread { role, error })?;
        let gone = || ConfinementError::Thread { role, error: io::Error::other("it ended at once") };
        outcome.recv().map_err(|_| gone())??;
        Ok(thread)
    }

    /// Does `work` on a confined thread and waits for it: threads that it starts are confined from their birth.
    pub fn within<T: Send + 'static>(
        self,
        role: Role,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ConfinementError> {
        let gone = || ConfinementError::Thread { role, error: io::Error::other("it panicked") };
        self.spawn(role, work)?.join().ok().flatten().ok_or_else(gone)
    }

    fn prepare(self, role: Role) -> Result<Prepared, ConfinementError> {
        let failed = |error| ConfinementError::Filter { role, error };
        let mut keep = capabilities::of(role);
        if role == Role::Main && self.main_binds_low_ports {
            keep |= capabilities::LOW_PORTS;
        }
        Ok(Prepared { role, keep, filter: Filter::new(role, self.seccomp).map_err(failed)? })
    }
}

/// All that a thread needs to enter its role: made before it runs, so that it allocates nothing for it.
struct Prepared {
    role: Role,
    keep: rustix::thread::CapabilitySet,
    filter: Filter,
}

impl Prepared {
    fn enter(&self) -> Result<(), ConfinementError> {
        let role = self.role;
        capabilities::keep(self.keep).map_err(|errno| ConfinementError::Capabilities { role, error: errno.into() })?;
        self.filter.install().map_err(|error| ConfinementError::Filter { role, error })
    }
}
