//! Opens the agent's sockets inside network namespaces, on one thread that enters them and comes back.
//!
//! A thread of its own: an asynchronous runtime moves tasks between threads, and a panic in the middle would leave a
//! runtime thread in a pod's namespace.
use std::{
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    ops::RangeInclusive,
    os::fd::AsFd as _,
    sync::mpsc,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tokio::sync::oneshot;

use crate::{
    attestation::diag::DiagSocket,
    confinement::{Confinement, ConfinementError, Role},
    sys,
};

/// How many connections may wait to be accepted: far more than the clients of one pod at one time.
const BACKLOG: i32 = 1024;

/// The agent's sockets in one network namespace. They keep the namespace alive until they are dropped.
#[derive(Debug)]
pub struct NetnsSockets {
    /// Listens on 127.0.0.1.
    pub v4: TcpListener,
    /// Listens on `[::1]`, where the namespace has IPv6.
    pub v6: Option<TcpListener>,
    /// Attests the callers of both.
    pub diag: DiagSocket,
    /// The kernel's cookie of the namespace, read from the listener itself: whatever was meant to be entered, this is
    /// where the sockets are.
    pub cookie: u64,
}

/// Why there are no sockets in a namespace.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Entering failed.
    #[error("cannot enter the network namespace: {0} (it needs CAP_SYS_ADMIN)")]
    Enter(#[source] io::Error),
    /// Every port of the range is taken.
    #[error(
        "every port from {} to {} is taken on 127.0.0.1 in the network namespace: give other ones with --listener-ports",
        .0.start(), .0.end()
    )]
    PortsTaken(RangeInclusive<u16>),
    /// A socket could not be made.
    #[error("cannot open a {what} in the network namespace: {error}")]
    Socket {
        /// Which socket.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// The thread that enters namespaces has ended.
    #[error("the thread that enters network namespaces has ended")]
    WorkerGone,
}

impl OpenError {
    fn means_no_ipv6(&self) -> bool {
        let Self::Socket { error, .. } = self else { return false };
        matches!(Errno::from_io_error(error), Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT))
    }
}

/// Why there is no thread that enters namespaces.
#[derive(Debug, thiserror::Error)]
pub enum NoNetnsWorker {
    /// Its way back.
    #[error("cannot open the agent's own network namespace: {0}")]
    Home(#[source] io::Error),
    /// The thread.
    #[error(transparent)]
    Thread(#[from] ConfinementError),
}

struct Job {
    netns: File,
    answer: oneshot::Sender<Result<NetnsSockets, OpenError>>,
}

/// A handle to the thread that enters namespaces. The thread ends when the handle is dropped.
#[derive(Debug)]
pub struct NetnsWorker(mpsc::Sender<Job>);

impl NetnsWorker {
    /// Starts the thread; listeners take the first free port of `ports`.
    pub fn start(ports: RangeInclusive<u16>, confinement: Confinement) -> Result<Self, NoNetnsWorker> {
        let home = File::open("/proc/self/ns/net").map_err(NoNetnsWorker::Home)?;
        let (sender, jobs) = mpsc::channel::<Job>();
        confinement.spawn(Role::Netns, move || {
            for job in jobs {
                let sockets = open_in(&home, &job.netns, &ports);
                // The discovery that asked may be shutting down: the sockets close with the answer.
                let _ = job.answer.send(sockets);
            }
        })?;
        Ok(Self(sender))
    }

    /// Has listeners and a diagnosis socket opened in the namespace `netns` refers to. The thread does it in its turn,
    /// whether anybody waits or not.
    #[must_use]
    pub fn open(&self, netns: File) -> Opening {
        let (answer, result) = oneshot::channel();
        // If the thread has ended the answer's sender goes with the job, which tells.
        let _ = self.0.send(Job { netns, answer });
        Opening(result)
    }
}

/// Sockets that are on their way. They close when it is dropped.
#[derive(Debug)]
pub struct Opening(oneshot::Receiver<Result<NetnsSockets, OpenError>>);

impl Opening {
    /// Waits for them.
    pub async fn sockets(self) -> Result<NetnsSockets, OpenError> {
        self.0.await.map_err(|_| OpenError::WorkerGone)?
    }
}

fn open_in(home: &File, netns: &File, ports: &RangeInclusive<u16>) -> Result<NetnsSockets, OpenError> {
    enter(netns).map_err(OpenError::Enter)?;
    let sockets = open_here(ports);
    if let Err(error) = enter(home) {
        // Nothing else runs on this thread, but the next job would report a wrong namespace's failure as its own.
        tracing::error!(%error, "cannot leave a pod's network namespace: ending the thread that entered it");
        std::process::abort();
    }
    sockets
}

fn enter(netns: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Opens the sockets in the calling thread's namespace.
pub(crate) fn open_here(ports: &RangeInclusive<u16>) -> Result<NetnsSockets, OpenError> {
    let v4 = listen_on_first_free(Ipv4Addr::LOCALHOST.into(), ports)?;
    let v6 = match listen_on_first_free(Ipv6Addr::LOCALHOST.into(), ports) {
        Ok(listener) => Some(listener),
        Err(error) => {
            // A pod without IPv6 (disable_ipv6) has no ::1 to bind; whatever the reason, its IPv4 is served.
            if !error.means_no_ipv6() {
                tracing::warn!(%error, "a pod's IPv6 loopback address is not served");
            }
            None
        }
    };
    let socket = |what| move |error| OpenError::Socket { what, error };
    let diag = DiagSocket::open().map_err(socket("sock_diag socket"))?;
    let cookie = sys::netns_cookie(&v4).map_err(socket("listener (SO_NETNS_COOKIE, Linux 5.14)"))?;
    Ok(NetnsSockets { v4, v6, diag, cookie })
}

/// A port in use is the application's own business: ours moves on to the next.
fn listen_on_first_free(address: std::net::IpAddr, ports: &RangeInclusive<u16>) -> Result<TcpListener, OpenError> {
    for port in ports.clone() {
        match listen(SocketAddr::new(address, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(OpenError::Socket { what: "listener", error }),
        }
    }
    Err(OpenError::PortsTaken(ports.clone()))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // Connections of a former agent that wait out their time must not cost the port. Nobody can share it: the kernel
    // gives no second bind to the port of a listening socket, and SO_REUSEPORT is not set.
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    // After it: to listen is what `tcp_fastopen` of the namespace can open the socket with.
    sys::refuse_fast_open(&socket)?;
    Ok(socket.into())
}
