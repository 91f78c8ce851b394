//! Whether the agent may serve (readiness) and whether it still does (liveness).
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// What the agent waits for before it may serve. Clones are the same.
///
/// There is no flag to set: whoever has something to finish first holds a [`NotReady`], and the agent is ready when the
/// last one is dropped. Something that stops being so (a program was detached) takes a new one.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Ledger>>);

#[derive(Debug, Default)]
struct Ledger {
    next: u64,
    pending: BTreeMap<u64, String>,
}

/// A reason not to serve yet, until it is dropped.
///
/// What fails for good ends the process or keeps its reason: it must not drop this.
#[derive(Debug)]
#[must_use = "the agent is ready as soon as it is dropped"]
pub struct NotReady {
    ledger: Arc<Mutex<Ledger>>,
    id: u64,
}

impl Readiness {
    /// Ready only when `first` is dropped, so that there is no moment before the first reason is known.
    pub fn new(first: impl Into<String>) -> (Self, NotReady) {
        let readiness = Self::default();
        let first = readiness.wait_for(first);
        (readiness, first)
    }

    /// Makes the agent unready until the returned value is dropped. `what` completes "waiting for …".
    pub fn wait_for(&self, what: impl Into<String>) -> NotReady {
        let mut ledger = lock(&self.0);
        let id = ledger.next;
        ledger.next += 1;
        ledger.pending.insert(id, what.into());
        NotReady { ledger: Arc::clone(&self.0), id }
    }

    /// What is waited for, in the order in which it came; empty when ready.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        lock(&self.0).pending.values().map(|what| format!("waiting for {what}")).collect()
    }
}

impl NotReady {
    /// Says better what is waited for, as the work goes on or fails.
    pub fn now(&self, what: impl Into<String>) {
        lock(&self.ledger).pending.insert(self.id, what.into());
    }
}

impl Drop for NotReady {
    fn drop(&mut self) {
        lock(&self.ledger).pending.remove(&self.id);
    }
}

/// Which parts of the agent must be heard of regularly. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Liveness(Arc<Mutex<Vec<Part>>>);

#[derive(Debug)]
struct Part {
    name: &'static str,
    patience: Duration,
    state: Arc<Mutex<PartState>>,
}

#[derive(Clone, Copy, Debug)]
enum PartState {
    HeardOf(Instant),
    /// Its [`Pulse`] was dropped: the thread or task has ended, by a panic perhaps.
    Ended,
}

/// The sign of life of one part. It is dropped with the part, which is then reported as ended.
#[derive(Debug)]
pub struct Pulse(Arc<Mutex<PartState>>);

impl Liveness {
    /// A new part, heard of at `now` for the first time, that must not be silent for longer than `patience`.
    #[must_use]
    pub fn expect(&self, name: &'static str, patience: Duration, now: Instant) -> Pulse {
        let state = Arc::new(Mutex::new(PartState::HeardOf(now)));
        lock(&self.0).push(Part { name, patience, state: Arc::clone(&state) });
        Pulse(state)
    }

    /// What is wrong at `now`; empty when all is well.
    #[must_use]
    pub fn reasons(&self, now: Instant) -> Vec<String> {
        lock(&self.0).iter().filter_map(|part| part.complaint(now)).collect()
    }
}

impl Part {
    fn complaint(&self, now: Instant) -> Option<String> {
        match *lock(&self.state) {
            PartState::Ended => Some(format!("{} has ended", self.name)),
            PartState::HeardOf(at) => {
                let silent = now.saturating_duration_since(at);
                (silent > self.patience).then(|| format!("{} is silent for {} s", self.name, silent.as_secs()))
            }
        }
    }
}

impl Pulse {
    /// The part is alive at `now`.
    pub fn beat(&self, now: Instant) {
        *lock(&self.0) = PartState::HeardOf(now);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        *lock(&self.0) = PartState::Ended;
    }
}

/// Every critical section here leaves the value whole, so a panic elsewhere while it was held says nothing about it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer to one of the two questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict(Vec<String>);

impl Verdict {
    /// Good when there are no reasons against it.
    #[must_use]
    pub fn from_reasons(reasons: Vec<String>) -> Self {
        Self(reasons)
    }

    /// Whether all is well.
    #[must_use]
    pub fn good(&self) -> bool {
        self.0.is_empty()
    }

    /// `{"status":"ok"}`, or `{"status":"unavailable","reasons":[…]}`.
    #[must_use]
    pub fn json(&self) -> String {
        if self.good() {
            return r#"{"status":"ok"}"#.to_owned();
        }
        let reasons = serde_json::Value::from(self.0.as_slice());
        format!(r#"{{"status":"unavailable","reasons":{reasons}}}"#)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&if self.good() { "ok".to_owned() } else { self.0.join("; ") })
    }
}
