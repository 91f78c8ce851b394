//! Whether this node's kernel, and what it lets this process do, suffice: found out at the start, and said in the
//! sentence an operator needs.
use std::{
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    ops::RangeInclusive,
};

use procfs::process::Process;

use crate::{
    attestation::diag::{DiagError, DiagSocket},
    cgroup::{
        CgroupId,
        mount::{CgroupMount, MountError, own_cgroup_id},
    },
};

/// Capabilities the agent needs (bit of include/uapi/linux/capability.h, name, what for).
const CAPABILITIES: [(u8, &str, &str); 3] = [
    (21, "CAP_SYS_ADMIN", "load and attach programs, enter the network namespaces of pods"),
    (2, "CAP_DAC_READ_SEARCH", "resolve cgroup ids"),
    (19, "CAP_SYS_PTRACE", "open the network namespaces of processes"),
];
/// Needed besides when listener ports lie below 1024.
const NET_BIND_SERVICE: (u8, &str, &str) = (10, "CAP_NET_BIND_SERVICE", "listen on ports below 1024");

/// What this node lacks.
#[derive(Debug, thiserror::Error)]
pub enum Lacking {
    /// A capability.
    #[error("the agent needs {name} (to {purpose}): run it privileged, or add the capability to its container")]
    Capability {
        /// Its name.
        name: &'static str,
        /// What it is needed for.
        purpose: &'static str,
    },
    /// /proc.
    #[error("cannot read the agent's own capabilities: {0}")]
    Proc(#[from] procfs::ProcError),
    /// The agent's own cgroup.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Loopback.
    #[error("cannot connect to the agent itself over 127.0.0.1: {0} (is the loopback interface up?)")]
    Loopback(#[source] io::Error),
    /// A look-up of sockets.
    #[error(
        "the kernel cannot look up TCP sockets ({0}), so no caller could be attested: load the module tcp_diag \
         (modprobe tcp_diag) or use a kernel with CONFIG_INET_DIAG"
    )]
    SockDiag(#[source] DiagError),
    /// Cgroups of sockets.
    #[error(
        "the kernel does not say in which cgroup a socket was made (got {got:?}, this process is in {own}), so no \
         caller could be attested: it needs Linux 5.8 or newer with CONFIG_SOCK_CGROUP_DATA, and neither net_cls nor \
         net_prio in use as cgroup v1 controllers"
    )]
    SocketCgroup {
        /// What the kernel says.
        got: Option<CgroupId>,
        /// What is true.
        own: CgroupId,
    },
}

/// Tests everything that can be tested before the programs are loaded.
pub fn run(listener_ports: &RangeInclusive<u16>) -> Result<(), Lacking> {
    match missing_capabilities(listener_ports)?.first() {
        Some(&(name, purpose)) => Err(Lacking::Capability { name, purpose }),
        None => socket_cgroup(),
    }
}

/// Capabilities that this process lacks, and what each is for.
pub fn missing_capabilities(
    listener_ports: &RangeInclusive<u16>,
) -> Result<Vec<(&'static str, &'static str)>, Lacking> {
    let effective = Process::myself()?.status()?.capeff;
    let bind = (*listener_ports.start() < 1024).then_some(NET_BIND_SERVICE);
    let needed = CAPABILITIES.into_iter().chain(bind);
    let missing = needed.filter(|(bit, _, _)| effective & (1 << bit) == 0);
    Ok(missing.map(|(_, name, purpose)| (name, purpose)).collect())
}

/// Looks up this process's own end of a connection to itself, as every caller's will be.
pub fn socket_cgroup() -> Result<(), Lacking> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Lacking::Loopback)?;
    let server = listener.local_addr().map_err(Lacking::Loopback)?;
    let client = TcpStream::connect(server).map_err(Lacking::Loopback)?;
    let peer = client.local_addr().map_err(Lacking::Loopback)?;
    let diag = DiagSocket::open().map_err(|error| Lacking::SockDiag(DiagError::Failed(error)))?;
    let got = diag.lookup(peer, server).map_err(Lacking::SockDiag)?.cgroup;
    let own = own_cgroup_id(&CgroupMount::all()?)?;
    if got == Some(own) { Ok(()) } else { Err(Lacking::SocketCgroup { got, own }) }
}
