//! What the workers of all pods share: the way to EKS Auth, its bound, the clock.
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use super::{Clock, Credentials, Grant, PresentedToken, worker::Worker};
use crate::{metrics::Metrics, pod_uid::PodUid, refusal::Refusal};

/// A call to EKS Auth under way.
pub type UpstreamFuture = Pin<Box<dyn Future<Output = Result<Grant, Refusal>> + Send>>;

/// EKS Auth, or what stands for it in tests.
pub trait Upstream: Send + Sync + 'static {
    /// Exchanges a service account token for credentials. Makes one call, without retries of its own; the future may
    /// be dropped at any time.
    fn assume_role(&self, token: Arc<PresentedToken>) -> UpstreamFuture;
}

/// Settings of the engine.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Credentials are renewed when they are this old, even before half of their life.
    pub longest_retention: Duration,
    /// Calls to EKS Auth at the same time.
    pub upstream_concurrency: usize,
}

/// Makes the owner of each pod's credentials.
pub struct Engine {
    pub(super) upstream: Arc<dyn Upstream>,
    pub(super) clock: Clock,
    pub(super) permits: Arc<Semaphore>,
    pub(super) longest_retention: Duration,
    pub(super) metrics: Arc<Metrics>,
    runtime: Handle,
}

impl Engine {
    /// Workers run on `runtime`.
    #[must_use]
    pub fn new(
        upstream: Arc<dyn Upstream>,
        clock: Clock,
        limits: Limits,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(limits.upstream_concurrency.min(Semaphore::MAX_PERMITS)));
        let longest_retention = limits.longest_retention;
        Arc::new(Self { upstream, clock, permits, longest_retention, metrics, runtime })
    }

    /// Starts the owner of a pod's credentials; it ends, and wipes them, with the pod.
    #[must_use]
    pub fn open(self: &Arc<Self>, pod: PodUid, ended: CancellationToken) -> Credentials {
        let (credentials, worker) = Worker::new(Arc::clone(self), pod, ended);
        self.runtime.spawn(worker.run());
        credentials
    }

    /// The clock that expirations are held against.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}
