//! The one owner of a pod's credentials: single-flight by construction.
//!
//! A task for each pod makes all of its calls, one at a time. Answers from the cache never reach it: they read the
//! state it publishes, without a lock. Whoever cannot be answered so sends a demand and waits on it; a caller that
//! hangs up drops its end of the demand, which the fetch does not notice.
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Engine, Grant, Issued,
    gate::Priority,
    handle::{Answer, Credentials, LastUse, Message, PresentedToken, State, served},
    policy,
    tokens::Tokens,
};
use crate::{
    metrics::{CacheErrorKind, EksAuthOutcome},
    pod_uid::PodUid,
    refusal::{Outage, Refusal},
    token::{self, TokenDigest},
};

mod fetch;

use fetch::{Done, Fetch, Stage, Waiting, answer, join, next_outcome};

/// Different tokens that may wait while one is with EKS Auth.
const WAITING_TOKENS: usize = 4;
/// Refused tokens that are remembered: more than a pod has in good faith.
const VERDICTS: usize = 4;
/// Messages on their way to the worker; callers are bounded by the pod's connections.
const MESSAGES: usize = 1024;

/// What EKS Auth said about a token that it refused.
struct Verdict {
    digest: TokenDigest,
    refusal: Refusal,
    holds_until: Instant,
}

/// Why EKS Auth is left alone for a while.
struct BackOff {
    until: Instant,
    refusal: Refusal,
}

/// What is done without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// Nothing: the next caller's demand fetches.
    Wait,
    /// Fetch before anybody has asked, for the n-th time.
    Prefetch { attempt: u32 },
    /// Renew what is served.
    Renew,
}

/// The owner.
pub(super) struct Worker {
    engine: Arc<Engine>,
    pod: PodUid,
    ended: CancellationToken,
    state: Arc<ArcSwap<State>>,
    messages: mpsc::Receiver<Message>,
    /// For the cache, which may have to tell this worker to make room.
    inbox: mpsc::WeakSender<Message>,
    last_use: Arc<LastUse>,
    fetch: Option<Fetch>,
    waiting: VecDeque<Waiting>,
    tokens: Tokens,
    /// What renewals are made with when the kubelet's file cannot be read: the accepted token that lasts longest.
    kept_token: Option<Arc<PresentedToken>>,
    plan: Plan,
    planned_at: Instant,
    /// Renewals since the last time that somebody asked.
    unused_renewals: u32,
    /// At most `VERDICTS`, oldest first.
    verdicts: VecDeque<Verdict>,
    back_off: Option<BackOff>,
    failures: u32,
    /// When a token that nothing vouches for may be shown to EKS Auth again.
    unproven_after: Instant,
    jitter: fastrand::Rng,
}

impl Worker {
    pub(super) fn new(engine: Arc<Engine>, pod: PodUid, ended: CancellationToken) -> (Credentials, Self) {
        let state = Arc::new(ArcSwap::from_pointee(State::Empty));
        let (sender, messages) = mpsc::channel(MESSAGES);
        let last_use = Arc::new(LastUse::default());
        let worker = Self {
            jitter: fastrand::Rng::with_seed(policy::jitter_seed(engine.limits.seed, pod)),
            engine,
            pod,
            ended,
            state: Arc::clone(&state),
            messages,
            inbox: sender.downgrade(),
            last_use: Arc::clone(&last_use),
            fetch: None,
            waiting: VecDeque::new(),
            tokens: Tokens::default(),
            kept_token: None,
            plan: Plan::Wait,
            planned_at: Instant::now(),
            unused_renewals: 0,
            verdicts: VecDeque::new(),
            back_off: None,
            failures: 0,
            unproven_after: Instant::now(),
        };
        (Credentials { state, messages: sender, last_use }, worker)
    }

    /// Runs until the pod ends, then wipes.
    pub(super) async fn run(mut self) {
        let ended = self.ended.clone();
        loop {
            let timer = self.next_timer();
            tokio::select! {
                biased;
                () = ended.cancelled() => break,
                outcome = next_outcome(&self.engine, &mut self.fetch) => self.complete(outcome),
                message = self.messages.recv() => match message {
                    Some(message) => self.receive(message),
                    None => break,
                },
                () = sleep_until(timer) => self.on_timer(),
            }
        }
        self.engine.cache.leave(self.pod);
        self.state.store(Arc::new(State::Ended));
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Demand { token, waiter } => self.demand(token, waiter),
            Message::Vouch { digest, expires_at } => self.vouched(digest, expires_at),
            Message::Evict => self.forget(),
            Message::Flush => self.flush(),
        }
    }

    /// The valid credentials, whoever asks.
    fn available(&self) -> Option<Arc<Issued>> {
        match &**self.state.load() {
            State::Available { issued, .. } if issued.valid_at(self.engine.clock.now()) => Some(Arc::clone(issued)),
            _ => None,
        }
    }

    fn demand(&mut self, token: Arc<PresentedToken>, waiter: oneshot::Sender<Answer>) {
        self.last_use.touch(self.engine.clock.now());
        if let Some(fetch) = self.fetch.as_mut().filter(|fetch| fetch.token.digest == token.digest) {
            join(&mut fetch.waiters, waiter);
            self.hurry();
        } else if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.token.digest == token.digest) {
            join(&mut waiting.waiters, waiter);
        } else if self.fetch.is_none() {
            self.ask(Waiting { token, waiters: vec![waiter] });
        } else if self.waiting.len() < WAITING_TOKENS {
            // What is under way now may answer it.
            self.hurry();
            self.waiting.push_back(Waiting { token, waiters: vec![waiter] });
        } else {
            let _ = waiter.send(Err(Refusal::PodLimit));
        }
    }

    /// Somebody waits for what is under way.
    fn hurry(&mut self) {
        if let Some(Fetch { stage: Stage::Queued(turn), .. }) = &mut self.fetch {
            turn.raise(Priority::Waiting);
        }
    }

    /// The kubelet wrote a token: good from now on for what is served, and reason enough to fetch before the pod asks.
    fn vouched(&mut self, digest: TokenDigest, expires_at: SystemTime) {
        self.tokens.vouch(digest, expires_at, self.engine.clock.now());
        // From now on fetches are made with what the file holds.
        self.kept_token = None;
        if let State::Available { issued, renewal_failed, .. } = &**self.state.load() {
            let state = State::Available {
                issued: Arc::clone(issued),
                tokens: self.tokens.clone(),
                renewal_failed: renewal_failed.clone(),
            };
            self.state.store(Arc::new(state));
            return;
        }
        let nothing_yet = self.fetch.is_none() && self.plan == Plan::Wait;
        if self.engine.limits.prefetch && self.engine.keeps() && nothing_yet && self.last_use.get() == 0 {
            (self.plan, self.planned_at) = (Plan::Prefetch { attempt: 1 }, Instant::now());
        }
    }

    /// Gives up what there is; the next caller's demand fetches.
    fn forget(&mut self) {
        self.engine.cache.leave(self.pod);
        self.plan = Plan::Wait;
        self.state.store(Arc::new(State::Empty));
    }

    fn flush(&mut self) {
        self.forget();
        (self.back_off, self.failures) = (None, 0);
        self.verdicts.clear();
        (self.plan, self.planned_at) = (Plan::Prefetch { attempt: 1 }, Instant::now());
    }

    /// Answers at once, or starts a fetch. No fetch is under way.
    fn ask(&mut self, Waiting { token, waiters }: Waiting) {
        match self.decide(&token) {
            Decision::Serve(issued) => answer(waiters, &Ok(issued)),
            Decision::Refuse(refusal) => answer(waiters, &Err(refusal)),
            Decision::Fetch => {
                let throttled =
                    self.back_off.as_ref().is_some_and(|b| matches!(b.refusal, Refusal::EksAuthThrottled { .. }));
                // The gate slows everybody down when EKS Auth throttles; only what failed by itself stands behind.
                let priority = if self.failures == 0 || throttled { Priority::Waiting } else { Priority::Retry };
                self.start(token, waiters, priority);
            }
        }
    }

    fn decide(&self, token: &PresentedToken) -> Decision {
        let (now, wall) = (Instant::now(), self.engine.clock.now());
        if let Some(issued) = self.available().and_then(|i| served(&i, &self.tokens, &token.digest, wall)) {
            // It was fetched, or the token vouched for, while this demand was on its way.
            return Decision::Serve(issued);
        }
        if let Some(verdict) = self.verdicts.iter().find(|v| v.digest == token.digest && now < v.holds_until) {
            return Decision::Refuse(verdict.refusal.clone());
        }
        if let Some(back_off) = self.back_off.as_ref().filter(|b| now < b.until) {
            return Decision::Refuse(back_off.refusal.clone().retry_after_at_least(back_off.until - now));
        }
        if let Some(until) = self.engine.gate.snapshot().paused_until {
            // Nobody is let in before that: better told at once than after the deadline.
            let throttled = Refusal::EksAuthThrottled { retry_after: 1 };
            return Decision::Refuse(throttled.retry_after_at_least(until.saturating_duration_since(now)));
        }
        if now < self.unproven_after && !self.tokens.knows(&token.digest, wall) {
            return Decision::Refuse(Refusal::PodLimit);
        }
        Decision::Fetch
    }

    fn start(&mut self, token: Arc<PresentedToken>, waiters: Vec<oneshot::Sender<Answer>>, priority: Priority) {
        let stage = Stage::Queued(self.engine.gate.enter(priority));
        self.fetch = Some(Fetch { token, waiters, stage, started: Instant::now() });
    }

    fn complete(&mut self, (done, outcome): (Done, Result<Grant, Refusal>)) {
        let duration = done.started.elapsed();
        let answered = outcome.and_then(|grant| self.accept(&done.token, &grant));
        match &answered {
            Ok(issued) => tracing::debug!(
                pod_uid = %self.pod, access_key_id = issued.access_key_id, association_id = issued.association_id,
                ?duration, "fetched credentials"
            ),
            Err(refusal) => self.failed(&done.token, refusal, duration),
        }
        self.engine.metrics.asked_eks_auth(outcome_of(&answered), duration);
        answer(done.waiters, &answered);
        // Each token that waited is decided on by what is known now.
        while self.fetch.is_none() {
            let Some(next) = self.waiting.pop_front() else { break };
            self.ask(next);
        }
    }

    fn accept(&mut self, token: &Arc<PresentedToken>, grant: &Grant) -> Answer {
        let wall = self.engine.clock.now();
        if self.engine.clock.until(grant.expires_at) <= policy::SHORTEST_LIFE {
            return Err(Refusal::Expiring);
        }
        let issued = Issued::new(grant, wall).map_err(|error| {
            tracing::error!(pod_uid = %self.pod, %error, "EKS Auth's answer cannot be served");
            Refusal::EksAuthUnavailable(Outage::Server)
        })?;
        let issued = Arc::new(issued);
        (self.failures, self.back_off) = (0, None);
        self.verdicts.retain(|verdict| verdict.digest != token.digest);
        let known = self.tokens.knows(&token.digest, wall);
        if !known && self.available().is_some() {
            self.unproven_after = Instant::now() + policy::UNPROVEN_INTERVAL;
        }
        self.tokens.accept(token.digest, token.claims.expires_at, wall);
        if !self.engine.keeps() {
            // It is for those who wait.
            return Ok(issued);
        }
        self.keep(token);
        let renew_at =
            policy::renew_at(wall, grant.expires_at, self.engine.limits.longest_retention, self.jitter.f64());
        let after = renew_at.duration_since(wall).unwrap_or_default();
        (self.plan, self.planned_at) = (Plan::Renew, Instant::now() + after);
        let state = State::Available { issued: Arc::clone(&issued), tokens: self.tokens.clone(), renewal_failed: None };
        self.state.store(Arc::new(state));
        if let Some(inbox) = self.inbox.upgrade()
            && self.engine.cache.enter(self.pod, &self.last_use, &inbox)
        {
            self.engine.metrics.cache_evictions.inc();
        }
        Ok(issued)
    }

    /// Keeps the token for renewals, unless the kubelet's file has what they need.
    fn keep(&mut self, token: &Arc<PresentedToken>) {
        let lasts_longer = |old: &Arc<PresentedToken>| token.claims.expires_at >= old.claims.expires_at;
        if self.tokens.has_vouched() {
            self.kept_token = None;
        } else if self.kept_token.as_ref().is_none_or(lasts_longer) {
            self.kept_token = Some(Arc::clone(token));
        }
    }

    /// A failure never takes away what is valid.
    fn failed(&mut self, token: &PresentedToken, refusal: &Refusal, duration: Duration) {
        let now = Instant::now();
        let valid = self.available();
        tracing::warn!(
            pod_uid = %self.pod, namespace = %token.claims.namespace, service_account = %token.claims.service_account,
            reason = refusal.reason(), message = %refusal.message(), ?duration, still_valid = valid.is_some(),
            "cannot fetch credentials"
        );
        let proven = self.tokens.knows(&token.digest, self.engine.clock.now());
        let is_verdict = policy::is_verdict(refusal);
        if is_verdict {
            // A token that nothing vouches for may not be asked about any sooner: until then the answer stays the same.
            let holds_until = now + if proven { policy::REFUSAL_HOLDS } else { policy::UNPROVEN_INTERVAL };
            self.remember_verdict(Verdict { digest: token.digest, refusal: refusal.clone(), holds_until });
        }
        if !proven && (is_verdict || valid.is_some()) {
            self.unproven_after = now + policy::UNPROVEN_INTERVAL;
        }
        if !proven && valid.is_some() {
            // Any process of the pod can make up such a token: it says nothing about what is served and its renewal.
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let until = now + policy::back_off(self.failures, self.jitter.f64());
        if !is_verdict {
            self.back_off = Some(BackOff { until, refusal: refusal.clone() });
        }
        let Some(issued) = valid else {
            self.state.store(Arc::new(State::Unavailable(refusal.clone())));
            self.plan = match self.plan {
                Plan::Prefetch { attempt } if attempt < policy::PREFETCH_ATTEMPTS => {
                    self.planned_at = until;
                    Plan::Prefetch { attempt: attempt + 1 }
                }
                _ => Plan::Wait,
            };
            return;
        };
        // What is valid is never dropped for a failure, so every one is recoverable in the official agent's terms.
        self.engine.metrics.cache_error(CacheErrorKind::Recoverable, refusal.code());
        if self.plan == Plan::Renew {
            self.planned_at = self.planned_at.max(until);
        }
        let (tokens, renewal_failed) = (self.tokens.clone(), Some(refusal.clone()));
        self.state.store(Arc::new(State::Available { issued, tokens, renewal_failed }));
    }

    fn remember_verdict(&mut self, verdict: Verdict) {
        self.verdicts.retain(|old| old.digest != verdict.digest);
        if self.verdicts.len() >= VERDICTS {
            self.verdicts.pop_front();
        }
        self.verdicts.push_back(verdict);
    }

    /// When something is to be done without being asked: fetch, or wipe what has expired.
    fn next_timer(&self) -> Option<Instant> {
        let planned = (self.fetch.is_none() && self.plan != Plan::Wait).then_some(self.planned_at);
        let expiry = match &**self.state.load() {
            State::Available { issued, .. } => Some(Instant::now() + self.engine.clock.until(issued.expires_at)),
            State::Empty | State::Unavailable(_) | State::Ended => None,
        };
        [planned, expiry].into_iter().flatten().min()
    }

    fn on_timer(&mut self) {
        if self.available().is_none() && matches!(&**self.state.load(), State::Available { .. }) {
            self.forget();
        }
        if self.fetch.is_some() || self.plan == Plan::Wait || Instant::now() < self.planned_at {
            return;
        }
        let priority = match self.plan {
            Plan::Wait => return,
            Plan::Prefetch { .. } => Priority::Prefetch,
            Plan::Renew => Priority::Renewal,
        };
        if self.plan == Plan::Renew && self.is_idle() {
            // Served until it expires; whoever asks after that fetches.
            self.plan = Plan::Wait;
            return;
        }
        match self.newest_token() {
            Some(token) => self.start(token, Vec::new(), priority),
            // The pod presents its newer token with its next request, which fetches.
            None => self.plan = Plan::Wait,
        }
    }

    /// Whether nobody asked since the credentials were prefetched and renewed once.
    fn is_idle(&mut self) -> bool {
        if self.last_use.get() > 0 {
            return false;
        }
        self.unused_renewals += 1;
        self.unused_renewals > policy::UNUSED_RENEWALS
    }

    fn newest_token(&self) -> Option<Arc<PresentedToken>> {
        let wall = self.engine.clock.now();
        let token = self.engine.tokens.newest(self.pod).map(Arc::new).or_else(|| self.kept_token.clone());
        token.filter(|token| !token::expired(token.claims.expires_at, wall))
    }
}

enum Decision {
    Serve(Arc<Issued>),
    Refuse(Refusal),
    Fetch,
}

fn outcome_of(answer: &Answer) -> EksAuthOutcome {
    match answer {
        Ok(_) => EksAuthOutcome::Ok,
        Err(Refusal::EksAuthRefused(_)) => EksAuthOutcome::Refused,
        Err(Refusal::NodeCredentials) => EksAuthOutcome::NodeCredentials,
        Err(Refusal::EksAuthThrottled { .. }) => EksAuthOutcome::Throttled,
        Err(_) => EksAuthOutcome::Unavailable,
    }
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
