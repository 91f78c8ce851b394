//! The gate to EKS Auth: which pod's call goes next, and when.
//!
//! Every call has a turn here, and a pod has one turn at a time. A turn queues in the line of its [`Priority`], first
//! come first served, and becomes a [`Permit`] that holds one of the places for calls at the same time. What is asked of
//! the gate, and where the answer is:
//!
//! * *How many at once?* `policy::Pace`: the configured number, cut in half when EKS Auth throttles, with a pause in which
//!   nobody is admitted; raised again by answers.
//! * *How often?* `bucket`: calls that nobody waits for, and calls for pods that keep failing, have a rate each.
//! * *Who is next?* `order`: the more urgent line, but for one admission in nine.
//!
//! **Nobody starves.** A line is never longer than there are pods, is served in order, and gets at least one in nine of
//! the admissions that it is ready for; a pause ends within 30 s and at least one call follows it. So a call for which
//! nobody waits is under way after at most (turns before it) ÷ rate, longer only while EKS Auth throttles.
//!
//! **A pod that fails delays no other.** Only throttling slows all pods down: it is about the node or the account. A
//! failure (5xx, transport) may be one pod's, so it cuts nothing: the pod's next calls are [`Priority::Retry`], which
//! together have a rate of their own and at most half of the places. A dead EKS Auth sees each pod's first call once and
//! then that rate, however many pods there are.
//!
//! **What cannot be told beforehand** is that a pod's first call is going to hang. As many first calls at once as there are
//! places, all hanging, hold up other pods' first calls until they time out; cached answers they do not.
use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
    time::{Instant, sleep_until},
};

use self::state::{Admission, State};

mod bucket;
mod lines;
mod order;
mod policy;
mod state;

/// Settings of the gate.
#[derive(Clone, Copy, Debug)]
pub struct GateLimits {
    /// Calls at the same time; 0 stands for 1.
    pub concurrency: usize,
    /// Prefetches and renewals per second, and as many at once after a quiet second.
    pub background_per_second: NonZeroU32,
}

/// How urgent a call is; the earlier variant goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A client waits for it.
    Waiting,
    /// A client waits for it, but the pod's last call brought no credentials.
    Retry,
    /// The pod is expected to ask soon.
    Prefetch,
    /// What is served stays valid for hours.
    Renewal,
}

/// How a call ended, as far as other pods are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// EKS Auth gave credentials, or refused for a reason of the pod's own.
    Answered,
    /// EKS Auth asked for fewer calls.
    Throttled,
    /// Anything else: 5xx, transport, timeout, the node's credentials.
    Failed,
}

/// The gate as operators see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateState {
    /// Calls under way; more than `limit` for a moment after it was cut.
    pub in_flight: usize,
    /// Calls that may be under way.
    pub limit: usize,
    /// Turns that queue.
    pub queued: Queued,
    /// Until when nobody is admitted, because EKS Auth throttles.
    pub paused_until: Option<Instant>,
}

/// Turns that queue, by priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queued {
    /// For a client.
    pub waiting: usize,
    /// For a client, after a failure.
    pub retry: usize,
    /// Ahead of the first request.
    pub prefetch: usize,
    /// Ahead of the expiration.
    pub renewal: usize,
}

/// The gate. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    shared: Arc<Shared>,
}

/// A place in the queue; given up when dropped.
#[derive(Debug)]
#[must_use = "dropping a turn gives it up"]
pub struct Turn {
    shared: Arc<Shared>,
    priority: Priority,
    /// None once the permit was handed out.
    place: Option<Place>,
}

/// The right to make one call; its place is free again when dropped.
#[derive(Debug)]
#[must_use = "dropping a permit frees its place"]
pub struct Permit {
    shared: Arc<Shared>,
    admission: Admission,
    outcome: Option<Outcome>,
}

#[derive(Debug)]
struct Place {
    number: u64,
    admitted: oneshot::Receiver<Admission>,
}

#[derive(Debug)]
struct Shared {
    /// Held for one change of state, never across an await.
    timed: Mutex<Timed>,
    /// Wakes the time keeper: its alarm came forward, or the gate has gone.
    alarm_changed: Arc<Notify>,
}

#[derive(Debug)]
struct Timed {
    state: State,
    /// When the time keeper looks again.
    alarm: Option<Instant>,
}

impl Gate {
    /// Opens a gate. A task of `runtime` lets in those for whom only time had to pass, whether or not they are being
    /// polled at that moment; it ends with the last of gate, turns and permits. `jitter` spreads pauses.
    #[must_use]
    pub fn new(limits: GateLimits, jitter: fastrand::Rng, runtime: &Handle) -> Self {
        let alarm_changed = Arc::new(Notify::new());
        let timed = Timed { state: State::new(limits, jitter, Instant::now()), alarm: None };
        let shared = Arc::new(Shared { timed: Mutex::new(timed), alarm_changed: Arc::clone(&alarm_changed) });
        runtime.spawn(keep_time(Arc::downgrade(&shared), alarm_changed));
        Self { shared }
    }

    /// Queues at the end of the line of `priority`.
    pub fn enter(&self, priority: Priority) -> Turn {
        Turn { shared: Arc::clone(&self.shared), priority, place: Some(self.shared.enter(priority)) }
    }

    /// How full it is now.
    #[must_use]
    pub fn snapshot(&self) -> GateState {
        self.shared.lock().state.snapshot(Instant::now())
    }
}

impl Turn {
    /// Waits until the call may be made. May be dropped and called again without losing the place. Once it has returned
    /// a permit, the next call queues anew, at the end.
    ///
    /// A turn that has come up holds its place until it is awaited or dropped, so do one of them.
    pub async fn admitted(&mut self) -> Permit {
        let place = self.place.get_or_insert_with(|| self.shared.enter(self.priority));
        let Ok(admission) = (&mut place.admitted).await else {
            // The other end is in the line for as long as this turn queues, so this is never reached.
            return std::future::pending().await;
        };
        self.place = None;
        Permit { shared: Arc::clone(&self.shared), admission, outcome: None }
    }

    /// Moves a turn that queues to the end of a more urgent line: a client has begun to wait, after those who began
    /// before. Without effect on a turn that has come up, and never moves one down.
    pub fn raise(&mut self, priority: Priority) {
        let Some(place) = self.place.as_mut().filter(|_| priority < self.priority) else {
            return;
        };
        let from = self.priority;
        if let Some(number) = self.shared.update(|state, _| state.raise(from, place.number, priority)) {
            (place.number, self.priority) = (number, priority);
        }
    }

    /// How urgent it is now.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.priority
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(place) = self.place.as_mut() else {
            return;
        };
        self.shared.update(|state, now| {
            // Decided under the lock: either it queues still, or what it was sent is here.
            if !state.leave(self.priority, place.number)
                && let Ok(admission) = place.admitted.try_recv()
            {
                state.release(admission, None, now);
            }
        });
    }
}

impl Permit {
    /// Frees the place and reports how the call ended.
    pub fn finish(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.update(|state, now| state.release(self.admission, self.outcome, now));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Timed> {
        self.timed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then admits whoever that lets in.
    fn update<T>(&self, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let mut timed = self.lock();
        let now = Instant::now();
        let result = change(&mut timed.state, now);
        let next = timed.state.admit(now);
        // The time keeper sets its alarm itself. A later one than it has set is left: it finds nothing to do then.
        if next.is_some_and(|at| timed.alarm.is_none_or(|set| at < set)) {
            self.alarm_changed.notify_one();
        }
        result
    }

    fn enter(&self, priority: Priority) -> Place {
        let (number, admitted) = self.update(|state, _| state.enter(priority));
        Place { number, admitted }
    }

    /// Admits those whose time has come; when to look again.
    fn look(&self) -> Option<Instant> {
        let mut timed = self.lock();
        timed.alarm = timed.state.admit(Instant::now());
        timed.alarm
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.alarm_changed.notify_one();
    }
}

/// One timer for all who queue: a thousand of them, each with its own, would all wake for every one that is admitted.
async fn keep_time(gate: Weak<Shared>, alarm_changed: Arc<Notify>) {
    loop {
        let Some(shared) = gate.upgrade() else {
            return;
        };
        let alarm = shared.look();
        drop(shared);
        let time = async {
            match alarm {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = time => {}
            () = alarm_changed.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests;
