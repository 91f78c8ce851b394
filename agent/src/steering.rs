//! The programs in the kernel: loading, attaching, the listeners they steer to, what they count and report.
use std::{
    fs::File,
    io,
    ops::RangeInclusive,
    os::fd::AsRawFd as _,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use agent_ebpf::{Counters, Miss, names};
use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapData, MapError, PerCpuArray, RingBuf, SockHash},
    programs::{CgroupSockAddr, ProgramError, ProgramFd},
};
use aya_log::EbpfLogger;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

use crate::{confinement, metrics::SteeringCounts, netns::NetnsSockets, sys};

mod attachment;
pub mod guard;
mod inspection;

pub use attachment::Order;
pub use inspection::{Disturbance, DisturbanceKind};

use attachment::{Attachment, HOOKS};

/// The object that agent/build.rs made of agent-ebpf.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/agent-ebpf.o"));

/// aya-log's map of log records. Nothing writes to it when the log is compiled out, so it can be as small as a page.
const LOG_MAP: &str = "AYA_LOGS";

/// Misses handled before other tasks of the thread have their turn.
const MISSES_AT_ONCE: usize = 256;

/// What connections the programs steer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    /// The port of the target addresses.
    pub port: u16,
    /// Whether 169.254.170.23 is steered.
    pub v4: bool,
    /// Whether `fd00:ec2::23` is steered.
    pub v6: bool,
    /// Where the agent's listeners are: connections straight to these ports keep the pace too.
    pub listener_ports: RangeInclusive<u16>,
    /// Whether containers have a pace at which they may connect in the agent's own namespace, the host netns.
    pub pace: bool,
}

/// Why the programs cannot do their work.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// The kernel does not take the object.
    #[error(
        "the kernel does not load the eBPF programs: {0} (it needs Linux 5.18 or newer, CAP_SYS_ADMIN, and a kernel \
         lockdown below \"confidentiality\")"
    )]
    Load(#[source] Box<EbpfError>),
    /// The kernel does not take a program.
    #[error(
        "the kernel does not load the eBPF program {program}: {error} (it needs Linux 5.18 or newer, CAP_SYS_ADMIN, \
         and a kernel lockdown below \"confidentiality\")"
    )]
    Program {
        /// Its name.
        program: &'static str,
        /// The kernel's answer.
        #[source]
        error: Box<ProgramError>,
    },
    /// The kernel does not attach a program.
    #[error("cannot attach the eBPF program {program} to {cgroup}: {error}")]
    Attach {
        /// Its name.
        program: &'static str,
        /// Where to.
        cgroup: String,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// The kernel does not say what is attached.
    #[error("cannot tell whether the eBPF program {program} is still attached: {error}")]
    Inspect {
        /// Its name.
        program: &'static str,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// The cgroup cannot be opened.
    #[error("cannot open the kubepods cgroup {0}: {1}")]
    Cgroup(String, #[source] io::Error),
    /// The host netns cannot be told from others.
    #[error("cannot read the cookie of the agent's network namespace: {0} (SO_NETNS_COOKIE, Linux 5.14)")]
    Netns(#[source] io::Error),
    /// A map is not what the agent expects; only a defect of the build can cause it.
    #[error("the eBPF object's map {0} cannot be used: {1}")]
    Map(&'static str, #[source] MapError),
    /// The kernel does not take listening sockets into the map.
    #[error(
        "the kernel does not take a listener into a SOCKHASH: {0} (it needs Linux 5.7 or newer with \
         CONFIG_BPF_SYSCALL, CONFIG_NET_SOCK_MSG and CONFIG_INET)"
    )]
    Insert(#[source] MapError),
    /// The programs' log cannot be read.
    #[error("cannot read the log of the eBPF programs: {0}")]
    Log(#[from] aya_log::Error),
    /// The event loop does not take a ring buffer.
    #[error("cannot wait for events of the eBPF programs: {0}")]
    Wait(#[source] io::Error),
}

/// The programs and their maps. Dropping it detaches them.
pub struct Steering {
    programs: Mutex<Programs>,
    listeners: Mutex<Listeners>,
    counters: PerCpuArray<MapData, Counters>,
}

/// Where the programs are.
#[derive(Debug)]
enum Programs {
    /// In the kernel, attached nowhere: listeners can be there first.
    Loaded(Box<Ebpf>),
    /// At work. A program keeps its maps: the rest of the object is not needed any more.
    Attached(Vec<Attachment>),
    /// At work no more.
    Detached,
}

struct Listeners {
    v4: SockHash<MapData, u64>,
    v6: SockHash<MapData, u64>,
}

/// The programs' events.
pub struct Events {
    misses: AsyncFd<RingBuf<MapData>>,
    log: Option<LogReader>,
}

impl Steering {
    /// Loads the programs into the kernel; nothing is steered before [`Steering::attach`]. Runs in a tokio runtime.
    pub fn load(targets: &Targets, debug: bool) -> Result<(Self, Events), SteeringError> {
        let level = if debug { aya_log::Level::Debug as u8 } else { 0 };
        let (v4, v6) = (u8::from(targets.v4), u8::from(targets.v6));
        let paced_netns = if targets.pace { own_netns_cookie().map_err(SteeringError::Netns)? } else { 0 };
        // A loader begins with reading and parsing the kernel's types, whether they are wanted or not: some 30 ms of a
        // processor, and 20 MB. The programs relocate nothing against them, and it does without where it cannot open them.
        let mut loader = confinement::without_files(EbpfLoader::new);
        loader
            .btf(None)
            .override_global(names::TARGET_PORT, &targets.port, true)
            .override_global(names::PACED_NETNS, &paced_netns, true)
            .override_global(names::FIRST_LISTENER_PORT, targets.listener_ports.start(), true)
            .override_global(names::LAST_LISTENER_PORT, targets.listener_ports.end(), true)
            .override_global(names::STEER_V4, &v4, true)
            .override_global(names::STEER_V6, &v6, true)
            .override_global(aya_log::LEVEL, &level, true);
        if !debug {
            loader.map_max_entries(LOG_MAP, 4096);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| SteeringError::Load(Box::new(error)))?;
        drop(loader);
        for program in names::PROGRAMS {
            let failed = |error| SteeringError::Program { program, error: Box::new(error) };
            program_mut(&mut ebpf, program).and_then(CgroupSockAddr::load).map_err(failed)?;
        }
        let events = Events {
            misses: sys::readable(take_map(&mut ebpf, names::MISSES)?).map_err(SteeringError::Wait)?,
            log: debug.then(|| log_reader(&mut ebpf)).transpose()?,
        };
        let steering = Self {
            listeners: Mutex::new(Listeners {
                v4: take_map(&mut ebpf, names::LISTENERS4)?,
                v6: take_map(&mut ebpf, names::LISTENERS6)?,
            }),
            counters: take_map(&mut ebpf, names::COUNTERS)?,
            programs: Mutex::new(Programs::Loaded(Box::new(ebpf))),
        };
        Ok((steering, events))
    }

    /// Attaches the programs to a cgroup and all cgroups below it. Does nothing when they are not just loaded.
    pub fn attach(&self, cgroup: &Path, order: Order) -> Result<(), SteeringError> {
        let name = || cgroup.display().to_string();
        let directory = File::open(cgroup).map_err(|error| SteeringError::Cgroup(name(), error))?;
        let mut programs = self.programs();
        let Programs::Loaded(ebpf) = &mut *programs else { return Ok(()) };
        let mut attachments = Vec::new();
        for hook in HOOKS {
            let program = hook.program;
            let loaded = program_fd(ebpf, program)?;
            let failed = |error| SteeringError::Attach { program, cgroup: name(), error };
            attachments.push(Attachment::new(hook, loaded, &directory, order).map_err(failed)?);
        }
        *programs = Programs::Attached(attachments);
        Ok(())
    }

    /// Hands over what is attached: nothing before [`Steering::attach`] and after [`Steering::detach`].
    fn with_attachments<R>(&self, f: impl FnOnce(&mut [Attachment]) -> R) -> R {
        match &mut *self.programs() {
            Programs::Attached(attachments) => f(attachments),
            Programs::Loaded(_) | Programs::Detached => f(&mut []),
        }
    }

    /// Steers the namespace of these sockets to them.
    pub fn insert(&self, sockets: &NetnsSockets) -> Result<(), SteeringError> {
        let mut listeners = self.listeners();
        let Listeners { v4, v6 } = &mut *listeners;
        v4.insert(sockets.cookie, sockets.v4.as_raw_fd(), 0).map_err(SteeringError::Insert)?;
        if let Some(listener) = &sockets.v6 {
            v6.insert(sockets.cookie, listener.as_raw_fd(), 0).map_err(SteeringError::Insert)?;
        }
        Ok(())
    }

    /// Steers a namespace no more: its connections are refused from now on. Listeners that close remove themselves.
    pub fn remove(&self, cookie: u64) {
        let mut listeners = self.listeners();
        // Absent when the listener has closed already.
        let _ = listeners.v4.remove(&cookie);
        let _ = listeners.v6.remove(&cookie);
    }

    /// What the programs counted, all CPUs together.
    pub fn counters(&self) -> Result<Counters, SteeringError> {
        let per_cpu = self.counters.get(&0, 0).map_err(|error| SteeringError::Map(names::COUNTERS, error))?;
        let mut total = Counters::default();
        for cpu in per_cpu.iter() {
            total.connect4_steered += cpu.connect4_steered;
            total.connect4_missed += cpu.connect4_missed;
            total.connect4_paced += cpu.connect4_paced;
            total.connect6_paced += cpu.connect6_paced;
            total.connect6_steered += cpu.connect6_steered;
            total.connect6_missed += cpu.connect6_missed;
            total.getpeername4_rewritten += cpu.getpeername4_rewritten;
            total.getpeername6_rewritten += cpu.getpeername6_rewritten;
            total.miss_events_dropped += cpu.miss_events_dropped;
        }
        Ok(total)
    }

    /// The counts for the metrics; empty when the kernel does not give them.
    #[must_use]
    pub fn counts(&self) -> Vec<SteeringCounts> {
        self.counters().map_or_else(
            |_| Vec::new(),
            |c| {
                vec![
                    SteeringCounts {
                        program: "connect4",
                        steered: c.connect4_steered,
                        missed: c.connect4_missed,
                        paced: c.connect4_paced,
                    },
                    SteeringCounts {
                        program: "connect6",
                        steered: c.connect6_steered,
                        missed: c.connect6_missed,
                        paced: c.connect6_paced,
                    },
                ]
            },
        )
    }

    /// Takes the programs off the cgroup. New connections go where they are aimed at: to another agent that is
    /// attached, or out of the pod.
    pub fn detach(&self) {
        *self.programs() = Programs::Detached;
    }

    fn programs(&self) -> MutexGuard<'_, Programs> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Events {
    /// Waits for misses and hands each over. Logs what the programs log, meanwhile. Never ends.
    pub async fn forward(mut self, mut on_miss: impl FnMut(Miss)) -> io::Result<()> {
        loop {
            tokio::select! {
                guard = self.misses.readable_mut() => {
                    let mut guard = guard?;
                    let misses = guard.get_inner_mut();
                    let mut handled = 0;
                    // Programs on other CPUs may write as fast as this reads.
                    while handled < MISSES_AT_ONCE && let Some(item) = misses.next() {
                        handled += 1;
                        if let Some(miss) = read_miss(&item) {
                            on_miss(miss);
                        }
                    }
                    if handled < MISSES_AT_ONCE {
                        guard.clear_ready();
                    } else {
                        drop(guard);
                        tokio::task::yield_now().await;
                    }
                }
                guard = readable(&mut self.log) => {
                    let mut guard = guard?;
                    guard.get_inner_mut().flush();
                    guard.clear_ready();
                }
            }
        }
    }
}

type LogReader = AsyncFd<EbpfLogger<&'static dyn log::Log>>;
type LogGuard<'a> = tokio::io::unix::AsyncFdReadyMutGuard<'a, EbpfLogger<&'static dyn log::Log>>;

async fn readable(log: &mut Option<LogReader>) -> io::Result<LogGuard<'_>> {
    match log {
        Some(log) => log.readable_mut().await,
        None => std::future::pending().await,
    }
}

/// The agent runs in the host netns.
fn own_netns_cookie() -> io::Result<u64> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sys::netns_cookie(&socket)
}

fn read_miss(bytes: &[u8]) -> Option<Miss> {
    let u64_at = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let tid = u32::from_ne_bytes(bytes.get(16..20)?.try_into().ok()?);
    Some(Miss { netns_cookie: u64_at(0)?, cgroup_id: u64_at(8)?, tid, reserved: 0 })
}

fn log_reader(ebpf: &mut Ebpf) -> Result<LogReader, SteeringError> {
    sys::readable(EbpfLogger::init(ebpf)?).map_err(SteeringError::Wait)
}

fn program_mut<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, ProgramError> {
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

fn program_fd(ebpf: &mut Ebpf, program: &'static str) -> Result<ProgramFd, SteeringError> {
    let failed = |error| SteeringError::Program { program, error: Box::new(error) };
    let loaded = program_mut(ebpf, program).map_err(failed)?;
    loaded.fd().and_then(|fd| fd.try_clone().map_err(ProgramError::IOError)).map_err(failed)
}

fn take_map<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, SteeringError> {
    ebpf.take_map(name)
        .ok_or(MapError::InvalidName { name: name.to_owned() })
        .and_then(T::try_from)
        .map_err(|error| SteeringError::Map(name, error))
}
