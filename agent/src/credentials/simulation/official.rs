//! The official agent's rules, from their description alone, to hold the engine's numbers against.
//!
//! Credentials are kept for each token. A request that finds none looks nine times, 200 ms apart, whether another request's
//! fetch has brought them, and then fetches for itself; the fetch ends with the client. A sweep each minute renews what is
//! older than three hours or its life, and spends the limiter of three a second twice for each. What has more than 15 s left
//! is served. A new agent knows nothing.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep, sleep_until};

use super::{MINUTE, SECOND, node::Agent};
use crate::{
    credentials::{Clock, PresentedToken, Upstream},
    pod_uid::PodUid,
    refusal::Refusal,
};

const LOOKS: usize = 9;
const LOOKS_EVERY: Duration = Duration::from_millis(200);
const RETENTION: Duration = Duration::from_hours(3);
const TOO_SHORT: Duration = Duration::from_secs(15);
const PER_SECOND: u32 = 3;

struct Entry {
    token: Arc<PresentedToken>,
    fetched_at: SystemTime,
    expires_at: SystemTime,
}

impl Entry {
    fn life(&self) -> Duration {
        self.expires_at.duration_since(self.fetched_at).unwrap_or_default()
    }
}

pub(super) struct Official {
    upstream: Box<dyn Upstream>,
    clock: Clock,
    entries: Mutex<BTreeMap<String, Entry>>,
    fetching: Arc<Mutex<BTreeMap<String, usize>>>,
    /// When the limiter is full again.
    full_at: Mutex<Instant>,
}

/// Says that a fetch for this token is under way, for as long as it lives.
struct Fetching(String, Arc<Mutex<BTreeMap<String, usize>>>);

impl Drop for Fetching {
    fn drop(&mut self) {
        *self.1.lock().unwrap().get_mut(&self.0).unwrap() -= 1;
    }
}

impl Official {
    pub(super) fn new(upstream: impl Upstream, clock: &Clock) -> Arc<Self> {
        let (entries, fetching, full_at) = (Mutex::default(), Arc::default(), Mutex::new(Instant::now()));
        let official = Self { upstream: Box::new(upstream), clock: clock.clone(), entries, fetching, full_at };
        let official = Arc::new(official);
        tokio::spawn(Arc::clone(&official).sweep());
        official
    }

    pub(super) fn restart(&self) {
        self.entries.lock().unwrap().clear();
    }

    fn cached(&self, raw: &str) -> Option<SystemTime> {
        let entries = self.entries.lock().unwrap();
        entries.get(raw).map(|entry| entry.expires_at).filter(|at| *at > self.clock.now() + TOO_SHORT)
    }

    async fn fetch(&self, token: Arc<PresentedToken>) -> Result<SystemTime, Refusal> {
        let raw = token.secret().to_owned();
        *self.fetching.lock().unwrap().entry(raw.clone()).or_default() += 1;
        let _fetching = Fetching(raw.clone(), Arc::clone(&self.fetching));
        let expires_at = self.upstream.assume_role(Arc::clone(&token)).await?.expires_at;
        self.entries.lock().unwrap().insert(raw, Entry { token, fetched_at: self.clock.now(), expires_at });
        Ok(expires_at)
    }

    /// Spends one call of the limiter, if it has one or may wait for it.
    async fn spend(&self, may_wait: bool) -> bool {
        let interval = SECOND / PER_SECOND;
        let free_at = {
            let mut full_at = self.full_at.lock().unwrap();
            let next = (*full_at).max(Instant::now()) + interval;
            let free_at = next.checked_sub(interval * PER_SECOND).unwrap_or(next);
            if !may_wait && free_at > Instant::now() {
                return false;
            }
            *full_at = next;
            free_at
        };
        sleep_until(free_at).await;
        true
    }

    async fn sweep(self: Arc<Self>) {
        loop {
            sleep(MINUTE).await;
            let now = self.clock.now();
            let due: Vec<_> = {
                let entries = self.entries.lock().unwrap();
                let due = |entry: &&Entry| now >= entry.fetched_at + entry.life().min(RETENTION);
                entries.values().filter(due).map(|entry| Arc::clone(&entry.token)).collect()
            };
            for token in due {
                if !self.spend(false).await || !self.spend(true).await {
                    break;
                }
                let this = Arc::clone(&self);
                tokio::spawn(async move {
                    if let Err(Refusal::EksAuthRefused(_)) = this.fetch(Arc::clone(&token)).await {
                        this.entries.lock().unwrap().remove(token.secret());
                    }
                });
            }
        }
    }
}

impl Agent for Official {
    fn appeared(&self, _: PodUid) {}

    fn rotated(&self, _: PodUid) {}

    fn ended(&self, _: PodUid) {}

    async fn ask(&self, _: PodUid, token: PresentedToken) -> Result<SystemTime, Refusal> {
        for _ in 0..LOOKS {
            if let Some(expires_at) = self.cached(token.secret()) {
                return Ok(expires_at);
            }
            if self.fetching.lock().unwrap().get(token.secret()).is_none_or(|fetches| *fetches == 0) {
                break;
            }
            sleep(LOOKS_EVERY).await;
        }
        self.fetch(Arc::new(token)).await
    }
}
