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
    Engine, Issued, UpstreamFuture,
    handle::{AcceptedToken, Answer, Credentials, Demand, PresentedToken, State, served},
    policy,
};
use crate::{
    metrics::{CacheErrorKind, EksAuthOutcome},
    pod_uid::PodUid,
    refusal::{Outage, Refusal},
    token::{self, TokenDigest},
};

/// Accepted tokens that are remembered: rotation has two in use at a time, containers may lag behind.
const REMEMBERED_TOKENS: usize = 4;
/// Different tokens that may wait while one is with EKS Auth.
const WAITING_TOKENS: usize = 4;
/// Demands on their way to the worker; callers are bounded by the pod's connections.
const DEMANDS: usize = 1024;

/// A call to EKS Auth, and who waits for it.
struct Fetch {
    token: Arc<PresentedToken>,
    waiters: Vec<oneshot::Sender<Answer>>,
    call: UpstreamFuture,
    started: Instant,
}

/// A token that waits for its turn.
struct Waiting {
    token: Arc<PresentedToken>,
    waiters: Vec<oneshot::Sender<Answer>>,
}

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

/// The owner.
pub(super) struct Worker {
    engine: Arc<Engine>,
    pod: PodUid,
    ended: CancellationToken,
    state: Arc<ArcSwap<State>>,
    demands: mpsc::Receiver<Demand>,
    fetch: Option<Fetch>,
    waiting: VecDeque<Waiting>,
    accepted: Vec<AcceptedToken>,
    /// What renewals are made with: the accepted token that lasts longest.
    renewal_token: Option<Arc<PresentedToken>>,
    renew_at: Option<Instant>,
    verdict: Option<Verdict>,
    back_off: Option<BackOff>,
    failures: u32,
    /// When a token that nothing vouches for may be shown to EKS Auth again.
    unproven_after: Instant,
    jitter: fastrand::Rng,
}

impl Worker {
    pub(super) fn new(engine: Arc<Engine>, pod: PodUid, ended: CancellationToken) -> (Credentials, Self) {
        let state = Arc::new(ArcSwap::from_pointee(State::Empty));
        let (sender, demands) = mpsc::channel(DEMANDS);
        let credentials = Credentials { state: Arc::clone(&state), demands: sender };
        let worker = Self {
            engine,
            pod,
            ended,
            state,
            demands,
            fetch: None,
            waiting: VecDeque::new(),
            accepted: Vec::new(),
            renewal_token: None,
            renew_at: None,
            verdict: None,
            back_off: None,
            failures: 0,
            unproven_after: Instant::now(),
            jitter: fastrand::Rng::new(),
        };
        (credentials, worker)
    }

    /// Runs until the pod ends, then wipes.
    pub(super) async fn run(mut self) {
        let ended = self.ended.clone();
        loop {
            let timer = self.next_timer();
            tokio::select! {
                biased;
                () = ended.cancelled() => break,
                outcome = next_outcome(&mut self.fetch) => self.complete(outcome),
                demand = self.demands.recv() => match demand {
                    Some(demand) => self.demand(demand),
                    None => break,
                },
                () = sleep_until(timer) => self.on_timer(),
            }
        }
        self.state.store(Arc::new(State::Ended));
    }

    /// The valid credentials, whoever asks.
    fn available(&self) -> Option<Arc<Issued>> {
        match &**self.state.load() {
            State::Available { issued, .. } if issued.valid_at(self.engine.clock.now()) => Some(Arc::clone(issued)),
            _ => None,
        }
    }

    fn demand(&mut self, demand: Demand) {
        let Demand { token, waiter } = demand;
        if let Some(fetch) = self.fetch.as_mut().filter(|fetch| fetch.token.digest == token.digest) {
            fetch.waiters.push(waiter);
        } else if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.token.digest == token.digest) {
            waiting.waiters.push(waiter);
        } else if self.fetch.is_none() {
            self.ask(Waiting { token, waiters: vec![waiter] });
        } else if self.waiting.len() < WAITING_TOKENS {
            self.waiting.push_back(Waiting { token, waiters: vec![waiter] });
        } else {
            let _ = waiter.send(Err(Refusal::PodLimit));
        }
    }

    /// Answers at once, or starts a fetch. No fetch is under way.
    fn ask(&mut self, Waiting { token, waiters }: Waiting) {
        match self.decide(&token) {
            Decision::Serve(issued) => answer(waiters, &Ok(issued)),
            Decision::Refuse(refusal) => answer(waiters, &Err(refusal)),
            Decision::Fetch => self.start(token, waiters),
        }
    }

    fn decide(&self, token: &PresentedToken) -> Decision {
        let (now, wall) = (Instant::now(), self.engine.clock.now());
        let proven = self.accepted.iter().any(|accepted| accepted.digest == token.digest);
        if let Some(issued) = self.available().and_then(|i| served(&i, &self.accepted, &token.digest, wall)) {
            // It was fetched while this demand was on its way.
            return Decision::Serve(issued);
        }
        if let Some(verdict) = self.verdict.as_ref().filter(|v| v.digest == token.digest && now < v.holds_until) {
            return Decision::Refuse(verdict.refusal.clone());
        }
        if let Some(back_off) = self.back_off.as_ref().filter(|b| now < b.until) {
            return Decision::Refuse(back_off.refusal.clone().retry_after_at_least(back_off.until - now));
        }
        if !proven && now < self.unproven_after {
            return Decision::Refuse(Refusal::PodLimit);
        }
        Decision::Fetch
    }

    fn start(&mut self, token: Arc<PresentedToken>, waiters: Vec<oneshot::Sender<Answer>>) {
        let (upstream, permits) = (Arc::clone(&self.engine.upstream), Arc::clone(&self.engine.permits));
        let called_with = Arc::clone(&token);
        let call: UpstreamFuture = Box::pin(async move {
            // Never closed; if it were, there would be no way to EKS Auth.
            let _permit = permits.acquire().await.map_err(|_| Refusal::EksAuthUnavailable(Outage::Transport))?;
            upstream.assume_role(called_with).await
        });
        self.fetch = Some(Fetch { token, waiters, call, started: Instant::now() });
    }

    fn complete(&mut self, (fetch, outcome): (Fetch, Result<super::Grant, Refusal>)) {
        let duration = fetch.started.elapsed();
        let answered = outcome.and_then(|grant| self.accept(&fetch.token, &grant));
        match &answered {
            Ok(issued) => tracing::debug!(
                pod_uid = %self.pod, access_key_id = issued.access_key_id, association_id = issued.association_id,
                ?duration, "fetched credentials"
            ),
            Err(refusal) => self.failed(&fetch.token, refusal, duration),
        }
        self.engine.metrics.asked_eks_auth(outcome_of(&answered), duration);
        answer(fetch.waiters, &answered);
        // Each token that waited is decided on by what is known now.
        while self.fetch.is_none() {
            let Some(next) = self.waiting.pop_front() else { break };
            self.ask(next);
        }
    }

    fn accept(&mut self, token: &Arc<PresentedToken>, grant: &super::Grant) -> Answer {
        let wall = self.engine.clock.now();
        if self.engine.clock.until(grant.expires_at) <= policy::SHORTEST_LIFE {
            return Err(Refusal::Expiring);
        }
        let issued = Issued::new(grant, wall).map_err(|error| {
            tracing::error!(pod_uid = %self.pod, %error, "EKS Auth's answer cannot be served");
            Refusal::EksAuthUnavailable(Outage::Server)
        })?;
        let issued = Arc::new(issued);
        (self.failures, self.back_off, self.verdict) = (0, None, None);
        if self.engine.longest_retention.is_zero() {
            // Nothing is to be kept: it is for those who wait.
            return Ok(issued);
        }
        let proven = self.accepted.iter().any(|accepted| accepted.digest == token.digest);
        if !proven && self.available().is_some() {
            self.unproven_after = Instant::now() + policy::UNPROVEN_INTERVAL;
        }
        self.remember(token, wall);
        let renew_at = policy::renew_at(wall, grant.expires_at, self.engine.longest_retention, self.jitter.f64());
        self.renew_at = Some(Instant::now() + renew_at.duration_since(wall).unwrap_or_default());
        let state = State::Available { issued: Arc::clone(&issued), accepted: self.accepted.clone() };
        self.state.store(Arc::new(state));
        Ok(issued)
    }

    fn remember(&mut self, token: &Arc<PresentedToken>, wall: SystemTime) {
        let accepted = AcceptedToken { digest: token.digest, expires_at: token.claims.expires_at };
        self.accepted.retain(|old| old.digest != accepted.digest && !token::expired(old.expires_at, wall));
        if self.accepted.len() >= REMEMBERED_TOKENS {
            self.accepted.remove(0);
        }
        self.accepted.push(accepted);
        let lasts_longer = |old: &Arc<PresentedToken>| token.claims.expires_at >= old.claims.expires_at;
        if self.renewal_token.as_ref().is_none_or(lasts_longer) {
            self.renewal_token = Some(Arc::clone(token));
        }
    }

    /// A failure never takes away what is valid.
    fn failed(&mut self, token: &PresentedToken, refusal: &Refusal, duration: Duration) {
        let now = Instant::now();
        let still_valid = self.available().is_some();
        tracing::warn!(
            pod_uid = %self.pod, namespace = %token.claims.namespace, service_account = %token.claims.service_account,
            reason = refusal.reason(), message = %refusal.message(), ?duration, still_valid, "cannot fetch credentials"
        );
        if policy::is_verdict(refusal) {
            let proven = self.accepted.iter().any(|accepted| accepted.digest == token.digest);
            // A token that nothing vouches for may not be asked about any sooner: until then the answer stays the same.
            let holds_until = now + if proven { policy::REFUSAL_HOLDS } else { policy::UNPROVEN_INTERVAL };
            self.verdict = Some(Verdict { digest: token.digest, refusal: refusal.clone(), holds_until });
            if !proven {
                self.unproven_after = holds_until;
            }
        }
        self.failures = self.failures.saturating_add(1);
        let until = now + policy::back_off(self.failures, self.jitter.f64());
        if !policy::is_verdict(refusal) {
            self.back_off = Some(BackOff { until, refusal: refusal.clone() });
        }
        if still_valid {
            // What is valid is never dropped for a failure, so every one is recoverable in the official agent's terms.
            self.engine.metrics.cache_error(CacheErrorKind::Recoverable, refusal.code());
            self.renew_at = self.renew_at.map(|at| at.max(until));
        } else {
            self.state.store(Arc::new(State::Unavailable(refusal.clone())));
        }
    }

    /// When something is to be done without being asked: renew, or wipe what has expired.
    fn next_timer(&self) -> Option<Instant> {
        let State::Available { issued, .. } = &**self.state.load() else {
            return None;
        };
        let expiry = Instant::now() + self.engine.clock.until(issued.expires_at);
        let renewal = self.renew_at.filter(|_| self.fetch.is_none());
        Some(renewal.map_or(expiry, |renewal| renewal.min(expiry)))
    }

    fn on_timer(&mut self) {
        if self.available().is_none() {
            self.state.store(Arc::new(State::Empty));
            self.renew_at = None;
            return;
        }
        if self.fetch.is_some() || self.renew_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.renew_at = None;
        let wall = self.engine.clock.now();
        match self.renewal_token.clone().filter(|token| !token::expired(token.claims.expires_at, wall)) {
            Some(token) => {
                // Tried again, after a back-off, unless this succeeds.
                self.renew_at = Some(Instant::now());
                self.start(token, Vec::new());
            }
            // The pod presents its newer token with its next request, which fetches.
            None => self.renewal_token = None,
        }
    }
}

enum Decision {
    Serve(Arc<Issued>),
    Refuse(Refusal),
    Fetch,
}

fn answer(waiters: Vec<oneshot::Sender<Answer>>, answer: &Answer) {
    for waiter in waiters {
        // Whoever hung up is gone.
        let _ = waiter.send(answer.clone());
    }
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

async fn next_outcome(fetch: &mut Option<Fetch>) -> (Fetch, Result<super::Grant, Refusal>) {
    let Some(running) = fetch.as_mut() else {
        return std::future::pending().await;
    };
    let outcome = running.call.as_mut().await;
    match fetch.take() {
        Some(fetch) => (fetch, outcome),
        None => std::future::pending().await,
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
