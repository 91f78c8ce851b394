//! What the workers of all pods share: the way to EKS Auth and its gate, the kubelet's tokens, the clock, the cache.
use std::{
    future::Future,
    num::NonZeroU32,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    Clock, Credentials, Grant, PresentedToken,
    cache::Cache,
    gate::{Gate, GateLimits, GateState},
    worker::Worker,
};
use crate::{metrics::Metrics, pod_uid::PodUid, refusal::Refusal};

/// A call to EKS Auth under way.
pub type UpstreamFuture = Pin<Box<dyn Future<Output = Result<Grant, Refusal>> + Send>>;

/// EKS Auth, or what stands for it in tests.
pub trait Upstream: Send + Sync + 'static {
    /// Exchanges a service account token for credentials. Makes one call, without retries of its own; the future may
    /// be dropped at any time.
    fn assume_role(&self, token: Arc<PresentedToken>) -> UpstreamFuture;
}

/// Where the kubelet keeps pods' tokens, or what stands for it in tests.
pub trait TokenSource: Send + Sync + 'static {
    /// The pod's newest token, its claims checked; `None` when it has none that is good.
    fn newest(&self, pod: PodUid) -> Result<Option<PresentedToken>, Unreadable>;
}

/// The pod may have a token, but it cannot be read at the moment; the source has logged why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// No kubelet to ask: tokens are only what callers present.
#[derive(Clone, Copy, Debug)]
pub struct NoTokens;

impl TokenSource for NoTokens {
    fn newest(&self, _: PodUid) -> Result<Option<PresentedToken>, Unreadable> {
        Ok(None)
    }
}

/// Settings of the engine.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Credentials are renewed when they are this old, even before half of their life; zero keeps none.
    pub longest_retention: Duration,
    /// Calls to EKS Auth at the same time.
    pub upstream_concurrency: usize,
    /// Renewals and prefetches per second.
    pub background_per_second: NonZeroU32,
    /// Pods that have credentials at the same time; zero keeps none.
    pub cached_pods: usize,
    /// Whether credentials are fetched before a pod asks.
    pub prefetch: bool,
    /// Where jitter begins.
    pub seed: u64,
}

/// Makes the owner of each pod's credentials.
pub struct Engine {
    pub(super) upstream: Arc<dyn Upstream>,
    pub(super) tokens: Arc<dyn TokenSource>,
    pub(super) clock: Clock,
    pub(super) gate: Gate,
    pub(super) cache: Cache,
    pub(super) limits: Limits,
    pub(super) metrics: Arc<Metrics>,
    pub(super) calls: AtomicU64,
    runtime: Handle,
}

impl Engine {
    /// Workers run on `runtime`.
    #[must_use]
    pub fn new(
        upstream: Arc<dyn Upstream>,
        tokens: Arc<dyn TokenSource>,
        clock: Clock,
        limits: Limits,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Arc<Self> {
        let gate_limits = GateLimits {
            concurrency: limits.upstream_concurrency,
            background_per_second: limits.background_per_second,
        };
        let gate = Gate::new(gate_limits, fastrand::Rng::with_seed(limits.seed), &runtime);
        let cache = Cache::new(limits.cached_pods);
        Arc::new(Self { upstream, tokens, clock, gate, cache, limits, metrics, calls: AtomicU64::new(0), runtime })
    }

    /// Starts the owner of a pod's credentials; it ends, and wipes them, with the pod.
    #[must_use]
    pub fn open(self: &Arc<Self>, pod: PodUid, ended: CancellationToken) -> Credentials {
        let (credentials, worker) = Worker::new(Arc::clone(self), pod, ended);
        self.runtime.spawn(worker.run());
        credentials
    }

    /// Calls to EKS Auth that have come to an end.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The way to EKS Auth as operators see it.
    #[must_use]
    pub fn gate(&self) -> GateState {
        self.gate.snapshot()
    }

    /// Whether anything may be kept for pods that do not wait.
    pub(super) fn keeps(&self) -> bool {
        !self.limits.longest_retention.is_zero() && self.cache.keeps_anything()
    }
}
