//! The one owner of a pod's credentials: single-flight by construction.
//!
//! A task for each pod makes all of its calls, one at a time. Answers from the cache never reach it: they read the
//! state it publishes, without a lock. Whoever cannot be answered so sends a demand and waits on it; a caller that
//! hangs up drops its end of the demand, which the fetch does not notice.
use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, OnceLock, atomic::Ordering},
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
    engine::Unreadable,
    gate::Priority,
    handle::{Answer, Credentials, Flushed, LastUse, Message, PresentedToken, State, Subject, served},
    policy,
    tokens::Tokens,
};
use crate::{
    metrics::CacheErrorKind,
    pod_uid::PodUid,
    refusal::{Outage, Refusal},
    token::{self, TokenDigest},
};

mod fetch;
mod restraint;

use fetch::{Done, Fetch, Stage, Waiting, answer, join, next_outcome, outcome_of, tell};
use restraint::Restraint;

/// Different tokens that may wait while one is with EKS Auth.
const WAITING_TOKENS: usize = 4;
/// Messages on their way to the worker; callers are bounded by the pod's connections.
const MESSAGES: usize = 1024;

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
    /// Renewals of credentials that nobody ever asked for.
    unused_renewals: u32,
    restraint: Restraint,
    /// Operators who wait for a fetch that begins after they asked.
    flushes: Vec<oneshot::Sender<Flushed>>,
    subject: Arc<OnceLock<Subject>>,
    jitter: fastrand::Rng,
}

impl Worker {
    pub(super) fn new(engine: Arc<Engine>, pod: PodUid, ended: CancellationToken) -> (Credentials, Self) {
        let state = Arc::new(ArcSwap::from_pointee(State::Empty));
        let (sender, messages) = mpsc::channel(MESSAGES);
        let last_use = Arc::new(LastUse::default());
        let subject = Arc::default();
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
            restraint: Restraint::new(Instant::now()),
            flushes: Vec::new(),
            subject: Arc::clone(&subject),
        };
        (Credentials { state, messages: sender, last_use, subject }, worker)
    }

    /// Runs until the pod ends, then wipes.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async fn keeps its argument beside what the body makes of it: a worker more for each pod"
    )]
    pub(super) fn run(mut self) -> impl Future<Output = ()> {
        async move {
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
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Demand { token, waiter } => self.demand(token, waiter),
            Message::Vouch(token) => self.vouched(token.digest, token.expires_at),
            Message::Evict => self.forget(),
            Message::Flush { done } => self.flush(done),
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
        if let Some(issued) = self.rotated_to(&token) {
            let _ = waiter.send(Ok(issued));
        } else if let Some(fetch) = self.fetch.as_mut().filter(|fetch| fetch.token.digest == token.digest) {
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

    /// What is served, if the pod has just got this token: its request may overtake the news of that, and where nothing can
    /// be watched there are none.
    fn rotated_to(&mut self, token: &PresentedToken) -> Option<Arc<Issued>> {
        let (now, issued) = (Instant::now(), self.available()?);
        if self.tokens.knows(&token.digest, self.engine.clock.now()) || !self.restraint.may_look_into_file(now) {
            return None;
        }
        let newest = self.engine.tokens.newest(self.pod).ok().flatten();
        if newest.is_none_or(|newest| newest.digest != token.digest) {
            self.restraint.looked_in_vain(now);
            return None;
        }
        self.vouched(token.digest, token.claims.expires_at);
        Some(issued)
    }

    /// Somebody waits for what is under way. A pod that keeps failing gets no further ahead with it than with a call of its
    /// client's own: a thousand of them would have EKS Auth to themselves.
    fn hurry(&mut self) {
        let priority = self.restraint.priority();
        if let Some(Fetch { stage: Stage::Queued(turn), .. }) = &mut self.fetch {
            turn.raise(priority);
        }
    }

    /// The kubelet wrote a token: good from now on for what is served, and reason enough to fetch before the pod asks.
    fn vouched(&mut self, digest: TokenDigest, expires_at: SystemTime) {
        self.tokens.vouch(digest, expires_at, self.engine.clock.now());
        // From now on fetches are made with what the file holds.
        self.kept_token = None;
        if self.publish_again() {
            return;
        }
        let nothing_yet = self.fetch.is_none() && self.plan == Plan::Wait;
        // A rotation tells nothing new of a pod that was renewed in vain already.
        let expected = self.last_use.get() == 0 && !self.is_idle();
        if self.engine.limits.prefetch && self.engine.keeps() && nothing_yet && expected {
            (self.plan, self.planned_at) = (Plan::Prefetch { attempt: 1 }, Instant::now());
        }
    }

    /// Gives up what there is; the next caller's demand fetches.
    fn forget(&mut self) {
        self.engine.cache.leave(self.pod);
        self.plan = Plan::Wait;
        self.state.store(Arc::new(State::Empty));
    }

    /// Fetches anew for an operator. What is valid is served meanwhile, and beyond if EKS Auth cannot be asked: only its
    /// answer takes anything away.
    fn flush(&mut self, done: oneshot::Sender<Flushed>) {
        self.restraint.lift(Instant::now());
        if self.fetch.is_none() && matches!(&**self.state.load(), State::Empty | State::Ended) {
            let _ = done.send(Flushed::Nothing);
            return;
        }
        // A call that is under way may have been answered before what the operator changed.
        self.flushes.push(done);
        if self.fetch.is_none() {
            self.fetch_for_flushes();
        }
    }

    /// No fetch is under way.
    fn fetch_for_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let flushes = mem::take(&mut self.flushes);
        let outcome = match self.newest_token() {
            Ok(Some(token)) => {
                // Behind clients that wait for their first credentials: these have what they had.
                self.start(token, Vec::new(), Priority::Retry);
                if let Some(fetch) = &mut self.fetch {
                    fetch.flushes = flushes;
                }
                return;
            }
            Ok(None) => {
                // No token is left that is good for what is served.
                self.forget();
                Flushed::Nothing
            }
            Err(Unreadable) => Flushed::TokenUnreadable,
        };
        tell(flushes, &outcome);
    }

    /// Answers at once, or starts a fetch. No fetch is under way.
    fn ask(&mut self, Waiting { token, waiters }: Waiting) {
        match self.decide(&token) {
            Decision::Serve(issued) => answer(waiters, &Ok(issued)),
            Decision::Refuse(refusal) => answer(waiters, &Err(refusal)),
            Decision::Fetch => self.start(token, waiters, self.restraint.priority()),
        }
    }

    fn decide(&self, token: &PresentedToken) -> Decision {
        let (now, wall) = (Instant::now(), self.engine.clock.now());
        if let Some(issued) = self.available().and_then(|i| served(&i, &self.tokens, &token.digest, wall)) {
            // It was fetched, or the token vouched for, while this demand was on its way.
            return Decision::Serve(issued);
        }
        if let Some(refusal) = self.restraint.objection(&token.digest, self.tokens.knows(&token.digest, wall), now) {
            return Decision::Refuse(refusal);
        }
        if let Some(until) = self.engine.gate.snapshot().paused_until {
            // Nobody is let in before that: better told at once than after the deadline.
            let throttled = Refusal::EksAuthThrottled { retry_after: 1 };
            return Decision::Refuse(throttled.retry_after_at_least(until.saturating_duration_since(now)));
        }
        Decision::Fetch
    }

    fn start(&mut self, token: Arc<PresentedToken>, waiters: Vec<oneshot::Sender<Answer>>, priority: Priority) {
        let stage = Stage::Queued(self.engine.gate.enter(priority));
        self.fetch = Some(Fetch { token, waiters, flushes: Vec::new(), stage, started: Instant::now() });
    }

    fn complete(&mut self, (done, outcome): (Done, Result<Grant, Refusal>)) {
        let duration = done.started.elapsed();
        let renewal = self.available().is_some() && self.tokens.knows(&done.token.digest, self.engine.clock.now());
        let answered = outcome.and_then(|grant| self.accept(&done.token, &grant));
        match &answered {
            Ok(issued) => tracing::debug!(
                pod_uid = %self.pod, access_key_id = issued.access_key_id, association_id = issued.association_id,
                ?duration, "fetched credentials"
            ),
            Err(refusal) => self.failed(&done, refusal, duration),
        }
        self.engine.calls.fetch_add(1, Ordering::Relaxed);
        self.engine.metrics.asked_eks_auth(outcome_of(&answered), renewal, duration);
        tell(done.flushes, &Flushed::from(&answered));
        answer(done.waiters, &answered);
        self.fetch_for_flushes();
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
        self.restraint.answered(&token.digest);
        if !self.tokens.knows(&token.digest, wall) && self.available().is_some() {
            self.restraint.spent_on_unproven(Instant::now());
        }
        let _ = self.subject.set(Subject::of(&token.claims));
        self.tokens.accept(token.digest, token.claims.expires_at, wall);
        if !self.engine.keeps() {
            // It is for those who wait.
            return Ok(issued);
        }
        self.keep(token);
        if self.plan == Plan::Renew && self.last_use.get() == 0 {
            self.unused_renewals += 1;
        }
        let renew_at =
            policy::renew_at(wall, grant.expires_at, self.engine.limits.longest_retention, self.jitter.f64());
        let after = renew_at.duration_since(wall).unwrap_or_default();
        (self.plan, self.planned_at) = (Plan::Renew, Instant::now() + after);
        self.publish(Arc::clone(&issued), None);
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

    /// A failure never takes away what is valid, unless it is EKS Auth's answer to an operator's flush.
    fn failed(&mut self, done: &Done, refusal: &Refusal, duration: Duration) {
        let (now, token, flush) = (Instant::now(), &done.token, !done.flushes.is_empty());
        let is_verdict = policy::is_verdict(refusal);
        let valid = self.available().filter(|_| !(flush && is_verdict));
        tracing::warn!(
            pod_uid = %self.pod, namespace = %token.claims.namespace, service_account = %token.claims.service_account,
            reason = refusal.reason(), message = %refusal.message(), ?duration, still_valid = valid.is_some(),
            "cannot fetch credentials"
        );
        let proven = self.tokens.knows(&token.digest, self.engine.clock.now());
        if is_verdict {
            self.restraint.refused(token.digest, proven, refusal, now);
        }
        if !proven && (is_verdict || valid.is_some()) {
            self.restraint.spent_on_unproven(now);
        }
        if !proven && valid.is_some() {
            // Any process of the pod can make up such a token: it says nothing about what is served and its renewal.
            return;
        }
        let until = self.restraint.failed(refusal, self.jitter.f64(), now);
        let Some(issued) = valid else {
            if flush {
                self.engine.cache.leave(self.pod);
            }
            self.state.store(Arc::new(State::Unavailable(refusal.clone())));
            if self.plan == Plan::Renew {
                self.plan = Plan::Wait;
            }
            return self.postpone(until);
        };
        // What is valid is never dropped for a failure, so every one is recoverable in the official agent's terms.
        self.engine.metrics.cache_error(CacheErrorKind::Recoverable, refusal.code());
        self.postpone(until);
        self.publish(issued, Some(refusal.clone()));
    }

    /// What is planned waits for a while longer; a prefetch that has been tried often enough is given up.
    fn postpone(&mut self, until: Instant) {
        self.planned_at = self.planned_at.max(until);
        self.plan = match self.plan {
            Plan::Prefetch { attempt } if attempt < policy::PREFETCH_ATTEMPTS => {
                Plan::Prefetch { attempt: attempt + 1 }
            }
            Plan::Prefetch { .. } | Plan::Wait => Plan::Wait,
            Plan::Renew => Plan::Renew,
        };
    }

    fn publish(&self, issued: Arc<Issued>, renewal_failed: Option<Refusal>) {
        let until_renewal = self.planned_at.saturating_duration_since(Instant::now());
        let renew_at = self.engine.clock.now() + until_renewal;
        let state = State::Available { issued, tokens: self.tokens.clone(), renew_at, renewal_failed };
        self.state.store(Arc::new(state));
    }

    /// What is served is the same, but its tokens or the time of its renewal have changed. False if nothing is served.
    fn publish_again(&self) -> bool {
        let State::Available { issued, renewal_failed, .. } = &**self.state.load() else { return false };
        self.publish(Arc::clone(issued), renewal_failed.clone());
        true
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
            // Nobody would renew it any more, so whoever came last would be served its last minutes: the first request
            // fetches instead.
            self.forget();
            return;
        }
        match self.newest_token() {
            Ok(Some(token)) => self.start(token, Vec::new(), priority),
            // The pod has the token that is to come: its first request fetches.
            Ok(None) if self.plan != Plan::Renew => self.plan = Plan::Wait,
            // The kubelet may write a good one yet: given up, the renewal would leave what is served to its last minute.
            Ok(None) | Err(Unreadable) => {
                let until = self.restraint.without_token(self.jitter.f64(), Instant::now());
                self.postpone(until);
                self.publish_again();
            }
        }
    }

    /// Whether nobody ever asked for the credentials, which were prefetched and renewed.
    fn is_idle(&self) -> bool {
        self.last_use.get() == 0 && self.unused_renewals >= policy::UNUSED_RENEWALS
    }

    /// A token for a call of the worker's own: the kubelet's, else the one that was kept; an error if there may be one that
    /// cannot be read now. It is a known one, so that the call's failure counts: one that did not would be tried again at
    /// once.
    fn newest_token(&mut self) -> Result<Option<Arc<PresentedToken>>, Unreadable> {
        let wall = self.engine.clock.now();
        let good = |token: &Arc<PresentedToken>| !token::expired(token.claims.expires_at, wall);
        let read = self.engine.tokens.newest(self.pod).map(|token| token.map(Arc::new).filter(good));
        if let Ok(Some(token)) = &read {
            // The word that the kubelet wrote it may come later than the token itself.
            self.tokens.vouch(token.digest, token.claims.expires_at, wall);
            return read;
        }
        let Some(kept) = self.kept_token.clone().filter(good) else { return read };
        // Accepted once, and maybe pushed out since by tokens that end sooner.
        self.tokens.accept(kept.digest, kept.claims.expires_at, wall);
        Ok(Some(kept))
    }
}

enum Decision {
    Serve(Arc<Issued>),
    Refuse(Refusal),
    Fetch,
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
