//! The gate without its clock and its lock: what changes when a turn comes or goes, a call ends, or time passes.
use tokio::{sync::oneshot, time::Instant};

use super::{
    GateLimits, GateState, Outcome, Priority,
    bucket::Bucket,
    lines::Lines,
    order::{Order, Ready},
    policy::{self, Pace},
};

/// What a turn that comes up is told: proof that a place is held, to be given back by [`State::release`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Admission {
    priority: Priority,
    epoch: u64,
}

#[derive(Debug)]
pub(super) struct State {
    lines: Lines,
    order: Order,
    pace: Pace,
    /// For prefetches and renewals.
    background: Bucket,
    /// For pods whose last call brought nothing.
    retries: Bucket,
    in_flight: usize,
    /// Those of them that were not admitted as [`Priority::Waiting`].
    others: usize,
    jitter: fastrand::Rng,
}

impl State {
    pub(super) fn new(limits: GateLimits, jitter: fastrand::Rng, now: Instant) -> Self {
        Self {
            lines: Lines::default(),
            order: Order::default(),
            pace: Pace::new(limits.concurrency),
            background: Bucket::new(limits.background_per_second, now),
            retries: Bucket::new(policy::RETRIES_PER_SECOND, now),
            in_flight: 0,
            others: 0,
            jitter,
        }
    }

    /// Queues a turn: its number, and where it is told that it has come up.
    pub(super) fn enter(&mut self, priority: Priority) -> (u64, oneshot::Receiver<Admission>) {
        let (told, admitted) = oneshot::channel();
        (self.lines.push(priority, told), admitted)
    }

    /// Takes a turn out of its line; false if it has come up.
    pub(super) fn leave(&mut self, priority: Priority, number: u64) -> bool {
        self.lines.remove(priority, number).is_some()
    }

    /// Moves a turn to the end of another line: its new number, or none if it has come up.
    pub(super) fn raise(&mut self, from: Priority, number: u64, to: Priority) -> Option<u64> {
        let told = self.lines.remove(from, number)?;
        Some(self.lines.push(to, told))
    }

    /// Ends a call. One of which nobody says how it ended counts for nothing but its place.
    pub(super) fn release(&mut self, admission: Admission, outcome: Option<Outcome>, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if admission.priority != Priority::Waiting {
            self.others = self.others.saturating_sub(1);
        }
        match outcome {
            Some(Outcome::Answered) => {
                self.pace.answered(admission.epoch);
                // What limits retries is how often they fail: pods that recover do so as fast as they are answered.
                if admission.priority == Priority::Retry {
                    self.retries.put_back(now);
                }
            }
            Some(Outcome::Throttled) => self.pace.throttled(admission.epoch, now, self.jitter.f64()),
            // May be one pod's own, so it slows down nobody else.
            Some(Outcome::Failed) | None => {}
        }
    }

    /// Admits whoever may be. Says when to look again for those for whom only time has to pass.
    pub(super) fn admit(&mut self, now: Instant) -> Option<Instant> {
        if let Some(until) = self.pace.paused_until(now) {
            return Some(until);
        }
        while self.in_flight < self.pace.limit(now) {
            let ready = self.ready(now);
            let Some(priority) = self.order.next(ready) else {
                return self.next_token(now);
            };
            let Some(told) = self.lines.pop(priority) else { break };
            self.order.went(priority, ready);
            self.count(priority, now);
            // A turn leaves its line before it stops listening, so it is told, or finds this when it goes.
            let _ = told.send(Admission { priority, epoch: self.pace.epoch() });
        }
        // A call that ends makes room.
        None
    }

    pub(super) fn snapshot(&self, now: Instant) -> GateState {
        GateState {
            in_flight: self.in_flight,
            limit: self.pace.limit(now),
            queued: self.lines.queued(),
            paused_until: self.pace.paused_until(now),
        }
    }

    fn count(&mut self, priority: Priority, now: Instant) {
        self.in_flight += 1;
        if priority != Priority::Waiting {
            self.others += 1;
        }
        // There is a token: the line was ready.
        match priority {
            Priority::Waiting => true,
            Priority::Retry => self.retries.take(now),
            Priority::Prefetch | Priority::Renewal => self.background.take(now),
        };
    }

    /// Whose first turn may be admitted now, apart from the limit of all.
    fn ready(&self, now: Instant) -> Ready {
        let room = self.room_for_others(now);
        let (retry, background) = (room && self.retries.has_token(now), room && self.background.has_token(now));
        let when = |allowed: bool, line| (allowed && self.lines.len(line) > 0).then_some(line);
        Ready {
            waiting: when(true, Priority::Waiting),
            retry: when(retry, Priority::Retry),
            prefetch: when(background, Priority::Prefetch),
            renewal: when(background, Priority::Renewal),
        }
    }

    /// When a line that is not ready for want of a token is. One without room waits for a call to end instead.
    fn next_token(&self, now: Instant) -> Option<Instant> {
        if !self.room_for_others(now) {
            return None;
        }
        let retry = (self.lines.len(Priority::Retry) > 0).then(|| self.retries.next_at());
        let background = self.lines.len(Priority::Prefetch) + self.lines.len(Priority::Renewal);
        let background = (background > 0).then(|| self.background.next_at());
        retry.into_iter().chain(background).min()
    }

    fn room_for_others(&self, now: Instant) -> bool {
        self.others < policy::places_for_others(self.pace.limit(now))
    }
}
