//! Builds every part and runs them until the agent is told to stop.
use std::{io, sync::Arc, time::Instant};

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    admin::{Admin, AdminSocket, NoAdminSocket, Routes},
    attestation::Attestor,
    cgroup::kubepods::{Kubepods, KubepodsError},
    config::{HostNetworkPods, ServerConfig},
    credentials::{Clock, Engine, engine::Limits},
    discovery::{
        self, Discovery, DiscoveryError, DiscoveryHandle,
        namespaces::{Namespaces, ServeError},
    },
    eks_auth::{self, EksAuth},
    health::{Liveness, Readiness},
    metrics::Metrics,
    netns::NetnsWorker,
    pods::Pods,
    self_test::{self, Lacking},
    server::{self, Context, Server},
    steering::{Events, Steering, SteeringError, Targets},
    sys,
};

/// Missed beats of a thread after which the agent calls itself dead.
const MISSED_BEATS: u32 = 4;

/// Why the agent cannot run, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The node lacks something.
    #[error(transparent)]
    Lacking(#[from] Lacking),
    /// No kubepods cgroup.
    #[error(transparent)]
    Kubepods(#[from] KubepodsError),
    /// No admin socket.
    #[error(transparent)]
    Admin(#[from] NoAdminSocket),
    /// No way to EKS Auth.
    #[error(transparent)]
    EksAuth(#[from] eks_auth::SetupError),
    /// No programs.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// No host netns.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// No discovery, or no more.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// No events, or no more.
    #[error("the events of the eBPF programs cannot be read: {0}")]
    Events(#[source] io::Error),
    /// The process cannot be set up.
    #[error("cannot {what}: {error}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
}

/// Runs the agent on the current runtime until SIGTERM or SIGINT.
pub async fn run(config: ServerConfig, metrics: Arc<Metrics>) -> Result<(), AgentError> {
    let process = |what| move |error| AgentError::Process { what, error };
    harden().map_err(|errno| process("forbid core dumps")(errno.into()))?;
    raise_descriptor_limit();
    let mut terminate = signal(SignalKind::terminate()).map_err(process("wait for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(process("wait for SIGINT"))?;

    let (readiness, starting) = Readiness::new("the kernel self-test");
    let liveness = Liveness::default();
    serve_admin(&config, Admin::new(readiness, liveness.clone(), Arc::clone(&metrics)))?;

    self_test::run(&config.listener_ports)?;
    let kubepods = Arc::new(match &config.kubepods_cgroup {
        Some(directory) => Kubepods::given(directory)?,
        None => Kubepods::find()?,
    });
    tracing::info!(cgroup = kubepods.path(), cgroup_id = %kubepods.id(), driver = ?kubepods.driver(), "found the kubepods cgroup");

    starting.now("the set-up of EKS Auth");
    let eks_auth = EksAuth::new(&config.cluster_name, config.endpoint.as_deref()).await?;

    starting.now("the eBPF programs");
    let targets = Targets { port: config.target_port, v4: config.steer.v4, v6: config.steer.v6 };
    let (steering, events) = Steering::load(targets, config.log.verbosity.includes_debug())?;
    let steering = Arc::new(steering);
    metrics.read_steering_from({
        let steering = Arc::clone(&steering);
        move || steering.counts()
    });

    starting.now("the first scan of the node's pods");
    let clock = Clock::system();
    let limits = Limits {
        longest_retention: config.max_retention,
        upstream_concurrency: config.max_upstream_concurrency.get() as usize,
    };
    let engine = Engine::new(Arc::new(eks_auth), clock.clone(), limits, Arc::clone(&metrics), Handle::current());
    let pods = Pods::new(engine, Arc::clone(&metrics));
    let (handle, commands) = DiscoveryHandle::new();
    let (listeners, new_listeners) = mpsc::unbounded_channel();
    let serve_host_network = config.host_network_pods == HostNetworkPods::Serve;
    let attestor = Attestor::new(Arc::clone(&kubepods), Arc::clone(&pods), handle.clone(), serve_host_network);
    let context = Context::new(attestor, clock, Arc::clone(&metrics), handle.clone());
    let pulse = liveness.expect("the serving thread", server::PULSE * MISSED_BEATS, Instant::now());
    let server = Server::start(context, new_listeners, pulse).map_err(process("start the serving thread"))?;
    let worker = NetnsWorker::start(config.listener_ports.clone())
        .map_err(process("start the thread that enters network namespaces"))?;
    let namespaces = Namespaces::new(worker, Arc::clone(&steering), listeners, Arc::clone(&metrics))?;
    let mut discovery = Discovery::start(Arc::clone(&kubepods), pods, Arc::clone(&metrics), namespaces).await?;
    // Listeners first: no connection of a pod that was there before is refused for want of one.
    discovery.scan().await?;
    steering.attach(&kubepods.directory())?;
    // What the programs' loading took is not needed again.
    sys::trim_heap();
    drop(starting);
    tracing::info!(pods = metrics.pods.get(), namespaces = metrics.namespaces.get(), "ready");

    let pulse = liveness.expect("discovery", discovery::RESCAN * MISSED_BEATS, Instant::now());
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        outcome = discovery.run(commands, pulse) => outcome.map_err(AgentError::Discovery),
        outcome = forward(events, handle) => outcome.map_err(AgentError::Events),
    };
    tracing::info!("stopping");
    // First nothing new is steered here, then what is under way ends.
    steering.detach();
    server.drain();
    outcome
}

async fn forward(events: Events, discovery: DiscoveryHandle) -> io::Result<()> {
    events.forward(|miss| discovery.missed(miss)).await
}

fn serve_admin(config: &ServerConfig, admin: Admin) -> Result<(), AgentError> {
    let socket = AdminSocket::bind(&config.run_dir)?;
    tokio::spawn(admin.clone().serve_unix(socket));
    tokio::spawn(admin.clone().serve_tcp(config.probe_addr, Routes::Health));
    if let Some(address) = config.metrics_addr {
        tokio::spawn(admin.serve_tcp(address, Routes::Metrics));
    }
    Ok(())
}

/// No core file whatever the host's limits and handlers are, and no tracing by processes of the same user: the memory
/// holds credentials.
fn harden() -> rustix::io::Result<()> {
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Three descriptors for each namespace, one for each connection: the default of 1024 is less than a large node needs.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
