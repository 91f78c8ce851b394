//! What there is one of for each pod, and the table of all pods. Discovery alone adds and ends pods.
use std::{
    collections::HashMap,
    num::NonZeroU8,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    credentials::{Credentials, Engine, State},
    kubelet::TokenWatchHandle,
    metrics::{Metrics, PodCounts},
    pod_uid::PodUid,
    refusal::Refusal,
    share::Share,
};

/// Connections of one pod at the same time. The largest pods keep some dozens of SDK clients; each connection is a
/// descriptor and about 10 kB here.
pub const CONNECTIONS_PER_POD: usize = 512;

/// Connections of one pod that are only told that there are too many. Beyond these they are reset.
pub const REFUSALS_PER_POD: usize = 16;

/// A pod of this node.
#[derive(Debug)]
pub struct Pod {
    uid: PodUid,
    ended: CancellationToken,
    credentials: Credentials,
    connections: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    share: Arc<Share>,
    granted: AtomicBool,
    last_refusal: Mutex<Option<(SystemTime, Refusal)>>,
}

/// What a connection may do under its pod's limits.
#[derive(Debug)]
pub enum Admission {
    /// Be served.
    Serve(OwnedSemaphorePermit),
    /// Be told that the pod has too many.
    Refuse(OwnedSemaphorePermit),
    /// Be reset.
    Reset,
}

impl Pod {
    fn new(uid: PodUid, engine: &Arc<Engine>, share: Share) -> Self {
        let ended = CancellationToken::new();
        Self {
            uid,
            credentials: engine.open(uid, ended.clone()),
            ended,
            connections: Arc::new(Semaphore::new(CONNECTIONS_PER_POD)),
            refusals: Arc::new(Semaphore::new(REFUSALS_PER_POD)),
            share: Arc::new(share),
            granted: AtomicBool::new(false),
            last_refusal: Mutex::default(),
        }
    }

    /// Its UID.
    #[must_use]
    pub fn uid(&self) -> PodUid {
        self.uid
    }

    /// Whether its cgroup still exists.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.ended.is_cancelled()
    }

    /// Cancelled when the pod ends.
    #[must_use]
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Its credentials.
    #[must_use]
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// What it may take of the serving thread.
    #[must_use]
    pub fn share(&self) -> &Arc<Share> {
        &self.share
    }

    /// Counts a connection against the pod for as long as the permit lives.
    #[must_use]
    pub fn admit(&self) -> Admission {
        if let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() {
            Admission::Serve(permit)
        } else if let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() {
            Admission::Refuse(permit)
        } else {
            Admission::Reset
        }
    }

    /// Remembers what one of its callers was refused for.
    pub fn was_refused(&self, at: SystemTime, refusal: &Refusal) {
        *self.last_refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, refusal.clone()));
    }

    /// What one of its callers was refused for last.
    #[must_use]
    pub fn last_refusal(&self) -> Option<(SystemTime, Refusal)> {
        self.last_refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this is the first time that the pod gets credentials.
    pub fn first_grant(&self) -> bool {
        // Checked before it is written: the line stays shared between the grants that follow.
        !self.granted.load(Ordering::Relaxed) && !self.granted.swap(true, Ordering::Relaxed)
    }
}

/// With less than this botocore fetches at every call: a renewal should have come long before.
const EXPIRING: Duration = Duration::from_mins(15);

/// All pods that discovery knows.
pub struct Pods {
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
    tokens: Option<TokenWatchHandle>,
    share_percent: NonZeroU8,
    by_uid: Mutex<HashMap<PodUid, Arc<Pod>>>,
}

impl Pods {
    /// No pods yet. `share_percent` is what one may take of the serving thread.
    #[must_use]
    pub fn new(
        engine: Arc<Engine>,
        metrics: Arc<Metrics>,
        tokens: Option<TokenWatchHandle>,
        share_percent: NonZeroU8,
    ) -> Arc<Self> {
        Arc::new(Self { engine, metrics, tokens, share_percent, by_uid: Mutex::default() })
    }

    /// The pod, if it is known.
    #[must_use]
    pub fn get(&self, uid: PodUid) -> Option<Arc<Pod>> {
        self.table().get(&uid).cloned()
    }

    /// All that are known now, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.table().values().cloned().collect()
    }

    /// Calls to EKS Auth for all pods together that have come to an end.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.engine.calls()
    }

    /// How many have what.
    #[must_use]
    pub fn counts(&self, now: SystemTime) -> PodCounts {
        let mut counts = PodCounts::default();
        for pod in self.all() {
            counts.served += usize::from(pod.granted.load(Ordering::Relaxed));
            if let State::Available { issued, .. } = &*pod.credentials.state() {
                let left = issued.expires_at.duration_since(now).unwrap_or_default();
                counts.cached += usize::from(!left.is_zero());
                counts.expiring += usize::from(!left.is_zero() && left < EXPIRING);
            }
        }
        counts
    }

    /// Adds a pod whose cgroup exists.
    pub fn add(&self, uid: PodUid) -> Arc<Pod> {
        let mut table = self.table();
        let pod = table.entry(uid).or_insert_with(|| {
            let share = Share::new(self.share_percent, Instant::now());
            Arc::new(Pod::new(uid, &self.engine, share))
        });
        let pod = Arc::clone(pod);
        self.metrics.pods.set(i64::try_from(table.len()).unwrap_or(i64::MAX));
        drop(table);
        if let Some(tokens) = &self.tokens {
            tokens.watch(uid);
        }
        pod
    }

    /// Ends a pod: its credentials are wiped, its connections reset, its fetches stopped.
    pub fn end(&self, uid: PodUid) {
        let mut table = self.table();
        if let Some(pod) = table.remove(&uid) {
            pod.ended.cancel();
            if let Some(tokens) = &self.tokens {
                tokens.forget(uid);
            }
        }
        self.metrics.pods.set(i64::try_from(table.len()).unwrap_or(i64::MAX));
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<PodUid, Arc<Pod>>> {
        // No code panics while it holds the lock, and every state of the table is a valid one.
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
