//! Builds every part and runs them until the agent is told to stop.
use std::{
    io,
    net::IpAddr,
    path::Path,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit};
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    admin::{Admin, AdminSocket, NoAdminSocket, Routes},
    attestation::Attestor,
    audit::{Audit, AuditFile, NoAuditFile},
    cgroup::{
        kubepods::{Kubepods, KubepodsError},
        resolver::CgroupResolver,
    },
    config::{HostNetworkPods, ServerConfig, TARGET_V4, TARGET_V6},
    confinement::{ConfinementError, Role},
    credentials::{Clock, Engine, NoTokens, TokenSource, engine::Limits},
    discovery::{
        self, Commands, Discovery, DiscoveryError, DiscoveryHandle,
        namespaces::{Namespaces, ServeError},
    },
    eks_auth::{self, ClusterName, EksAuth, EksAuthSettings, Names, Trust},
    health::{Liveness, NotReady, Readiness},
    kubelet::{self, TokenWatchHandle},
    metrics::Metrics,
    netns::{NetnsWorker, NoNetnsWorker},
    operator::{NodeFacts, NodeView, Operator},
    pods::Pods,
    self_test::{self, Lacking},
    server::{self, Context, NoServer, Server},
    slow_clock::SlowClock,
    steering::{Events, Order, Steering, SteeringError, Targets, guard::Guard},
    tidying,
    vouching::{self, KubeletTokens, Vouching},
};

/// After this silence of a part the agent calls itself dead: the rarest beat comes every 52 s.
const PATIENCE: Duration = Duration::from_mins(2);

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
    /// No clock, or no more.
    #[error("cannot wait for the timer of the agent's chores: {0}")]
    Clock(#[source] io::Error),
    /// Signals cannot be waited for.
    #[error("cannot wait for SIGTERM and SIGINT: {0}")]
    Signals(#[source] io::Error),
    /// No serving thread.
    #[error(transparent)]
    Server(#[from] NoServer),
    /// No thread that enters namespaces.
    #[error(transparent)]
    Netns(#[from] NoNetnsWorker),
    /// No file for the audit.
    #[error(transparent)]
    AuditFile(#[from] NoAuditFile),
    /// A thread cannot be confined.
    #[error(transparent)]
    Confinement(#[from] ConfinementError),
}

impl AgentError {
    /// Whether the operator's configuration is at fault, rather than the node.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::EksAuth(_)
                | Self::AuditFile(NoAuditFile::Open { .. })
                | Self::Kubepods(
                    KubepodsError::NotAPod { .. }
                        | KubepodsError::Given(..)
                        | KubepodsError::NotCgroup2(_)
                        | KubepodsError::Name(_)
                )
        )
    }
}

/// Runs the agent on the current runtime until SIGTERM or SIGINT. The process is confined already; the thread will be.
pub async fn run(config: ServerConfig, metrics: Arc<Metrics>) -> Result<(), AgentError> {
    raise_descriptor_limit();
    let trust = Trust::read(config.endpoint.as_deref());
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Signals)?;
    // Before anything that another agent on this node could notice.
    self_test::run(&config.listener_ports)?;
    let kubepods = Arc::new(match &config.kubepods_cgroup {
        Some(directory) => Kubepods::given(directory)?,
        None => Kubepods::find()?,
    });
    tracing::info!(cgroup = kubepods.path(), cgroup_id = %kubepods.id(), driver = ?kubepods.driver(), "found the kubepods cgroup");

    let (readiness, starting) = Readiness::new("the set-up of EKS Auth");
    let liveness = Liveness::default();
    let admin = Admin::new(readiness.clone(), liveness.clone(), Arc::clone(&metrics));
    serve_admin(&config, admin.clone())?;
    let built = async {
        let mut agent = Agent::build(&config, trust, kubepods, &liveness, &starting, metrics).await?;
        // Listeners first: no connection of a pod that was there before is refused for want of one.
        agent.discovery.scan().await?;
        Ok::<_, AgentError>(agent)
    };
    let agent = tokio::select! {
        built = built => built?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let audit_file = agent.audit_file(&config)?;
    admin.know(Operator::new(Arc::clone(&agent.pods), agent.view(&config)));
    agent.steering.attach(&agent.kubepods.directory(), Order::First)?;
    config.confinement().enter(Role::Main)?;
    drop(starting);
    tracing::info!(pods = agent.metrics.pods.get(), namespaces = agent.metrics.namespaces.get(), "ready");

    let guard = Guard::new(
        Arc::clone(&agent.steering),
        agent.kubepods.directory(),
        Arc::clone(&agent.metrics),
        readiness.clone(),
    );
    let Agent { pods, vouching, discovery, commands, events, handle, steering, server, mut clock, .. } = agent;
    let (guarding, tidying, rescans) = (clock.every(1), clock.every(1), clock.every(discovery::RESCAN_TICKS));
    let counted = Arc::clone(&pods);
    let pulse = liveness.expect("discovery", PATIENCE, Instant::now());
    let mut working = pin!(async {
        tokio::select! {
            outcome = discovery.run(commands, rescans, pulse) => outcome.map_err(AgentError::Discovery),
            outcome = events.forward(|miss| handle.missed(miss)) => outcome.map_err(AgentError::Events),
            () = vouch(vouching, pods) => Ok(()),
            () = guard.watch(guarding) => Ok(()),
            () = tidying::run(|| counted.calls(), tidying) => Ok(()),
            outcome = clock.run() => outcome.map_err(AgentError::Clock).map(|never| match never {}),
        }
    });
    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        outcome = &mut working => Some(outcome),
    };
    let _stopping = readiness.wait_for("the end: the agent is stopping");
    tracing::info!("stopping");
    // First nothing new is steered here, then what is under way ends: with discovery and EKS Auth still at work.
    steering.detach();
    let outcome = if let Some(outcome) = failed {
        server.drain().await;
        outcome
    } else {
        tokio::select! {
            () = server.drain() => Ok(()),
            outcome = &mut working => outcome,
        }
    };
    // With the last requests in it.
    audit_file.into_iter().for_each(AuditFile::finish);
    outcome
}

/// The parts that run.
struct Agent {
    cluster_name: String,
    kubepods: Arc<Kubepods>,
    metrics: Arc<Metrics>,
    pods: Arc<Pods>,
    vouching: Option<Vouching>,
    tokens: Option<KubeletTokens>,
    audit: Arc<Audit>,
    steering: Arc<Steering>,
    events: Events,
    server: Server,
    discovery: Discovery,
    commands: Commands,
    handle: DiscoveryHandle,
    clock: SlowClock,
}

impl Agent {
    /// Builds every part. Programs are loaded and attached nowhere, the host netns has its listener.
    async fn build(
        config: &ServerConfig,
        trust: Trust,
        kubepods: Arc<Kubepods>,
        liveness: &Liveness,
        starting: &NotReady,
        metrics: Arc<Metrics>,
    ) -> Result<Self, AgentError> {
        let confinement = config.confinement();
        let settings = EksAuthSettings {
            cluster: match &config.cluster_name {
                Some(name) => ClusterName::Given(name),
                None => ClusterName::Unknown(kubelet::kubeconfig(&config.kubelet_root)),
            },
            endpoint: config.endpoint.as_deref(),
            rotate_credentials: config.rotate_credentials,
        };
        let eks_auth = EksAuth::new(settings, trust, Names::start(confinement)?).await?;
        let cluster_name = eks_auth.cluster().to_owned();

        starting.now("the eBPF programs");
        let targets = Targets {
            port: config.target_port,
            v4: config.steer.v4,
            v6: config.steer.v6,
            listener_ports: config.listener_ports.clone(),
            pace: config.max_share_per_pod.get() < 100,
        };
        let (steering, events) = Steering::load(&targets, config.log.verbosity.includes_debug())?;
        let steering = Arc::new(steering);
        let counted = Arc::clone(&steering);
        metrics.read_steering_from(move || counted.counts());

        starting.now("the first scan of the node's pods");
        let (clock, mut slow_clock) = (Clock::system(), SlowClock::new().map_err(AgentError::Clock)?);
        let limits = Limits {
            longest_retention: config.max_retention,
            upstream_concurrency: config.max_upstream_concurrency.get() as usize,
            background_per_second: config.max_service_qps,
            cached_pods: config.max_cache_size,
            prefetch: config.prefetch,
            seed: fastrand::u64(..),
        };
        let (tokens, watch, vouching) = kubelet(&config.kubelet_root, &clock);
        let source: Arc<dyn TokenSource> = match &tokens {
            Some(tokens) => Arc::new(tokens.clone()),
            None => Arc::new(NoTokens),
        };
        let engine =
            Engine::new(Arc::new(eks_auth), source, clock.clone(), limits, Arc::clone(&metrics), Handle::current());
        let pods = Pods::new(engine, Arc::clone(&metrics), watch, config.max_share_per_pod);
        let (counted, counting_clock) = (Arc::clone(&pods), clock.clone());
        metrics.read_pods_from(move || counted.counts(counting_clock.now()));
        let (handle, commands) = DiscoveryHandle::new();
        let serve_host_network = config.host_network_pods == HostNetworkPods::Serve;
        let cgroups = CgroupResolver::start(Arc::clone(&kubepods), confinement)?;
        let attestor = Attestor::new(cgroups, Arc::clone(&pods), handle.clone(), serve_host_network);
        let audit = Arc::new(Audit::default());
        let context = Context::new(attestor, clock, Arc::clone(&metrics), Arc::clone(&audit), handle.clone());
        let pulse = liveness.expect("the serving thread", PATIENCE, Instant::now());
        let (listeners, new_listeners) = mpsc::unbounded_channel();
        let server =
            Server::start(context, new_listeners, (slow_clock.every(server::PULSE_TICKS), pulse), confinement)?;
        let worker = NetnsWorker::start(config.listener_ports.clone(), confinement)?;
        let namespaces = Namespaces::new(worker, Arc::clone(&steering), listeners, Arc::clone(&metrics))?;
        let discovery =
            Discovery::start(Arc::clone(&kubepods), Arc::clone(&pods), Arc::clone(&metrics), namespaces).await?;
        Ok(Self {
            cluster_name,
            kubepods,
            metrics,
            pods,
            vouching,
            tokens,
            audit,
            steering,
            events,
            server,
            discovery,
            commands,
            handle,
            clock: slow_clock,
        })
    }

    fn audit_file(&self, config: &ServerConfig) -> Result<Option<AuditFile>, NoAuditFile> {
        let Some(path) = config.audit_log.clone() else { return Ok(None) };
        let audit = Arc::clone(&self.audit);
        AuditFile::start(audit, path, config.audit_log_max_bytes, config.confinement()).map(Some)
    }

    /// What operators are shown.
    fn view(&self, config: &ServerConfig) -> NodeView {
        let steered = [(config.steer.v4, IpAddr::V4(TARGET_V4)), (config.steer.v6, IpAddr::V6(TARGET_V6))];
        let facts = NodeFacts {
            cluster_name: self.cluster_name.clone(),
            endpoint: config.endpoint.clone(),
            steered: steered.into_iter().filter_map(|(steered, address)| steered.then_some(address)).collect(),
            target_port: config.target_port,
            serves_host_network: config.host_network_pods == HostNetworkPods::Serve,
            kubepods: self.kubepods.directory(),
            kubelet_root: config.kubelet_root.clone(),
        };
        let (steering, kubepods) = (Arc::clone(&self.steering), self.kubepods.directory());
        let disturbances = move |pod: Option<&Path>| steering.disturbances(&kubepods, pod);
        let (discovery, audit, tokens) = (self.handle.clone(), Arc::clone(&self.audit), self.tokens.clone());
        NodeView { facts, discovery, audit, tokens, disturbances: Box::new(disturbances) }
    }
}

/// The kubelet's tokens, where they can be read. Without them pods are served all the same, each after its first request.
fn kubelet(root: &Path, clock: &Clock) -> (Option<KubeletTokens>, Option<TokenWatchHandle>, Option<Vouching>) {
    match vouching::open(root, clock) {
        Ok((tokens, watch, vouching)) => (Some(tokens), Some(watch), Some(vouching)),
        Err(error) => {
            tracing::warn!(%error, "credentials are not fetched before pods ask, and a rotated token costs a call");
            (None, None, None)
        }
    }
}

/// Follows the kubelet's tokens; never ends, as pods are served without.
async fn vouch(vouching: Option<Vouching>, pods: Arc<Pods>) {
    if let Some(vouching) = vouching {
        let error = vouching.run(pods).await;
        tracing::error!(%error, "the kubelet's tokens are not followed any more");
    }
    std::future::pending::<()>().await;
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

/// Three descriptors for each namespace, one for each connection: the default of 1024 is less than a large node needs.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
