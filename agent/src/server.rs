//! The serving thread: accepts connections in every namespace, has each attested, and answers.
//!
//! One thread with a runtime of its own. What takes long (EKS Auth, discovery) runs elsewhere, so that a TLS handshake
//! or a burst of new pods never delays a cached answer.
use std::{
    future::poll_fn,
    io, mem,
    net::TcpStream,
    pin::pin,
    sync::{Arc, Mutex},
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use rustix::io::Errno;
use tokio::{sync::mpsc, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    attestation::{Attestor, Ends},
    audit::Audit,
    confinement::{Confinement, ConfinementError, Role},
    credentials::Clock,
    discovery::{DiscoveryHandle, namespaces::NewListeners},
    health::Pulse,
    metrics::Metrics,
    namespace::Namespace,
    slow_clock::Ticks,
    sys,
    telemetry::RateLimiter,
};

mod connection;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod host;
mod listener;

mod metered;
mod record;
mod route;
mod stream;

use listener::Listener;

/// After the programs are detached, connections that were steered just before may still arrive.
const LATE_CONNECTIONS: Duration = Duration::from_millis(200);

/// How long connections may take to end when the agent stops.
const DRAIN: Duration = Duration::from_secs(5);

/// The thread says that it is alive with every so many ticks of the slow clock.
pub const PULSE_TICKS: u64 = 4;

/// Without free descriptors nothing can be accepted: the pause in which some may be freed.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(50);

/// What every connection needs.
pub struct Context {
    attestor: Attestor,
    clock: Clock,
    metrics: Arc<Metrics>,
    audit: Arc<Audit>,
    discovery: DiscoveryHandle,
    refusal_log: Mutex<RateLimiter<record::Speaker>>,
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl Context {
    /// Nothing is accepted yet.
    #[must_use]
    pub fn new(
        attestor: Attestor,
        clock: Clock,
        metrics: Arc<Metrics>,
        audit: Arc<Audit>,
        discovery: DiscoveryHandle,
    ) -> Self {
        Self {
            attestor,
            clock,
            metrics,
            audit,
            discovery,
            refusal_log: Mutex::new(record::limiter()),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }
}

/// Why there is no serving thread.
#[derive(Debug, thiserror::Error)]
pub enum NoServer {
    /// Its event loop.
    #[error("cannot make the serving thread's event loop: {0}")]
    Runtime(#[source] io::Error),
    /// The thread.
    #[error(transparent)]
    Thread(#[from] ConfinementError),
}

/// The running server.
#[derive(Debug)]
pub struct Server {
    stop: CancellationToken,
    thread: thread::JoinHandle<Option<()>>,
}

impl Server {
    /// Starts the serving thread; it serves the listeners that arrive.
    pub fn start(
        context: Context,
        listeners: mpsc::UnboundedReceiver<NewListeners>,
        (due, pulse): (Ticks, Pulse),
        confinement: Confinement,
    ) -> Result<Self, NoServer> {
        // Made here: the thread itself may make no descriptors.
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.event_interval(RUN_IN_A_ROW).enable_io().enable_time().on_thread_park(sys::stack::scrub_at_times());
        let runtime = runtime.build().map_err(NoServer::Runtime)?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let serve = move || runtime.block_on(run(Arc::new(context), listeners, (due, pulse), stopped));
        Ok(Self { stop, thread: confinement.spawn(Role::Serve, serve)? })
    }

    /// Accepts what is under way, lets requests end, closes everything. Takes some seconds at most.
    pub async fn drain(self) {
        self.stop.cancel();
        let ended = tokio::task::spawn_blocking(move || self.thread.join()).await;
        if !matches!(ended, Ok(Ok(Some(())))) {
            tracing::error!("the serving thread had panicked");
        }
    }
}

async fn run(
    context: Arc<Context>,
    mut listeners: mpsc::UnboundedReceiver<NewListeners>,
    (mut due, pulse): (Ticks, Pulse),
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(NewListeners { namespace, v4, v6 }) = listeners.recv() => {
                for listener in [Some(v4), v6].into_iter().flatten() {
                    context.tasks.spawn(accept(Arc::clone(&context), Arc::clone(&namespace), listener));
                }
            }
            () = due.next() => pulse.beat(Instant::now()),
        }
    }
    sleep(LATE_CONNECTIONS).await;
    context.closing.cancel();
    context.tasks.close();
    if tokio::time::timeout(DRAIN, context.tasks.wait()).await.is_err() {
        tracing::warn!(connections = context.tasks.len(), "connections did not end in time: closing them");
    }
}

/// Tasks run before the thread looks for what has come in: without it a pod with many connections that can run hides
/// what others have sent. A look takes half a microsecond.
const RUN_IN_A_ROW: u32 = 8;

/// Accepts the connections of one listener until its namespace is closed.
async fn accept(context: Arc<Context>, namespace: Arc<Namespace>, listener: std::net::TcpListener) {
    let mut listener = match Listener::new(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot wait for connections");
            return context.discovery.listener_failed(namespace.serial);
        }
    };
    let local = listener.local();
    // Made once: each of them is an entry in a list that others have entries in.
    let mut closed = pin!(namespace.closed.cancelled());
    let mut closing = pin!(context.closing.cancelled());
    loop {
        let mut looked = Instant::now();
        let next = async {
            namespace.may_accept().await;
            poll_fn(|cx| {
                looked = Instant::now();
                listener.poll_accept(cx)
            })
            .await
        };
        let accepted = tokio::select! {
            biased;
            () = &mut closed => return,
            () = &mut closing => return accept_rest(&context, &namespace, &listener),
            accepted = next => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                spawn(&context, &namespace, stream, Ends { peer, local });
                namespace.pay(looked);
            }
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    tracing::error!(%error, "cannot accept connections: raise the limit of open files or of memory");
                    sleep(OUT_OF_DESCRIPTORS).await;
                }
                // The socket does not listen any more: whoever may kill sockets in that namespace did it.
                Some(Errno::INVAL | Errno::BADF | Errno::NOTSOCK) => {
                    return context.discovery.listener_failed(namespace.serial);
                }
                // The connection ended before it was accepted.
                _ => {}
            },
        }
        behind_others().await;
    }
}

/// Lets others run that can run now: the connection that was just accepted, too. Without it a listener whose queue never
/// empties would have the thread for itself.
async fn behind_others() {
    let mut waited = false;
    poll_fn(|cx| {
        if mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The kernel has made connections that nobody accepted yet: closing the listener would reset them.
fn accept_rest(context: &Arc<Context>, namespace: &Arc<Namespace>, listener: &Listener) {
    for (stream, peer) in listener.rest() {
        spawn(context, namespace, stream, Ends { peer, local: listener.local() });
    }
}

fn spawn(context: &Arc<Context>, namespace: &Arc<Namespace>, stream: TcpStream, ends: Ends) {
    let handled = connection::handle(Arc::clone(context), Arc::clone(namespace), stream, ends);
    context.tasks.spawn(handled);
}
