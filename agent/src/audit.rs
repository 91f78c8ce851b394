//! What was granted and refused, kept in memory for whoever asks, and in a file where the operator wants one.
//!
//! The serving thread never waits for a reader, writes nothing and formats nothing: it puts one small value into a ring.
//! Names of a pod and of credentials are shared, not copied; a secret is in none of them.
use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    attestation::Evidence,
    credentials::{self, CredentialNames, Subject},
    refusal::Refusal,
};

mod file;
#[cfg(test)]
mod tests;

pub use file::{AuditFile, NoAuditFile};

/// Events kept: some 200 bytes each, so 1 MiB. Older ones make room for newer ones, and readers are told how many they
/// missed.
pub const KEPT: usize = 4096;

/// Events handed out under the lock at once: some microseconds.
const BATCH: usize = 256;

/// Events that wait while a reader holds the ring. What is beyond is dropped and counted; a reader holds it for as long as
/// some three requests take.
const WAITING: usize = 64;

/// One decision about one request, or about a connection that was refused as a whole.
#[derive(Clone)]
pub struct Event {
    /// When it was made.
    pub at: SystemTime,
    /// What the kernel said of the caller.
    pub who: Evidence,
    /// Whose pod it is, as soon as a token has told.
    pub subject: Option<Arc<OnceLock<Subject>>>,
    /// What was decided.
    pub decision: Decision,
}

/// What was decided.
#[derive(Clone)]
pub enum Decision {
    /// Credentials were served.
    Granted {
        /// Which.
        names: Arc<CredentialNames>,
        /// Whether they were there already.
        cached: bool,
    },
    /// Nothing was.
    Refused(Refusal),
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("at", &self.at).field("who", &self.who).finish_non_exhaustive()
    }
}

/// The ring.
#[derive(Debug)]
pub struct Audit {
    /// Tells this agent's numbers from another's.
    run: u64,
    ring: Mutex<Ring>,
    waiting: Mutex<VecDeque<Event>>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Event>,
    /// Number of the next event: the first has 0.
    next: u64,
}

/// Where a reader stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Which agent's numbers.
    pub run: u64,
    /// The next event.
    pub next: u64,
    /// Events dropped so far.
    #[serde(default)]
    pub dropped: u64,
}

/// A piece of the audit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// Where to go on.
    pub cursor: Cursor,
    /// Events before these that nobody can read any more: they made room, or came while the ring was full of readers.
    pub lost: u64,
    /// Whether there are more already.
    pub more: bool,
    /// In their order.
    pub events: Vec<Line>,
}

/// An event as it is printed; a member that is not there is not known. Neither process id nor executable is ever known:
/// the kernel's answer about a socket names its cgroup and user, and looking for the process in /proc would be slow and
/// could be misled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// RFC 3339, UTC.
    pub time: String,
    /// `granted` or `refused`.
    pub decision: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// UID of the pod.
    pub pod_uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Its namespace, as its token says.
    pub namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Its name, as its token says.
    pub pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Its service account, as its token says.
    pub service_account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// The container, where the cgroup names one.
    pub container_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Cgroup of the calling socket.
    pub cgroup_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// User id of the calling socket, as the initial user namespace numbers it.
    pub uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Names the credentials in CloudTrail.
    pub access_key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// The association they come from.
    pub association_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Whether they were there before the request.
    pub cached: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Why nothing was served, by its name in metrics.
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// The same for people.
    pub message: Option<String>,
}

impl Default for Audit {
    fn default() -> Self {
        // Zero is a reader's that has not read anything.
        let run = fastrand::u64(1..);
        Self { run, ring: Mutex::default(), waiting: Mutex::default(), dropped: AtomicU64::new(0) }
    }
}

impl Audit {
    /// Adds an event. Waits for nobody: while a reader copies, events are laid aside.
    pub fn push(&self, event: Event) {
        match self.ring.try_lock() {
            Ok(mut ring) => {
                let mut waiting = locked(&self.waiting);
                while let Some(earlier) = waiting.pop_front() {
                    ring.push(earlier);
                }
                drop(waiting);
                ring.push(event);
            }
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().push(event),
            // Readers do not touch what waits, so this lock is only ever another writer's.
            Err(TryLockError::WouldBlock) => {
                let mut waiting = locked(&self.waiting);
                if waiting.len() < WAITING {
                    waiting.push_back(event);
                } else {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// What there is from `cursor` on, or from the oldest event if that is another agent's.
    #[must_use]
    pub fn read(&self, cursor: Cursor) -> Batch {
        let known = cursor.run == self.run;
        let dropped = self.dropped.load(Ordering::Relaxed);
        let (events, from, lost, next) = {
            let ring = locked(&self.ring);
            let oldest = ring.next - ring.events.len() as u64;
            let from = if known { cursor.next.clamp(oldest, ring.next) } else { oldest };
            // A new reader has missed nothing that it could have read.
            let lost = if known {
                oldest.saturating_sub(cursor.next) + dropped.saturating_sub(cursor.dropped)
            } else {
                dropped
            };
            let skip = usize::try_from(from - oldest).unwrap_or(usize::MAX);
            (ring.events.iter().skip(skip).take(BATCH).cloned().collect::<Vec<_>>(), from, lost, ring.next)
        };
        let read_to = from + events.len() as u64;
        let events = events.iter().map(Event::line).collect();
        Batch { cursor: Cursor { run: self.run, next: read_to, dropped }, lost, more: read_to < next, events }
    }
}

impl Batch {
    /// A line for each event; before them one that says how many were lost, if any.
    pub fn text(&self) -> Result<String, serde_json::Error> {
        let lost = (self.lost > 0).then(|| json!({"decision": "lost", "events": self.lost}).to_string());
        let lines = self.events.iter().map(serde_json::to_string);
        lost.map(Ok).into_iter().chain(lines).map(|line| line.map(|line| line + "\n")).collect()
    }
}

impl Ring {
    fn push(&mut self, event: Event) {
        if self.events.len() >= KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
        self.next += 1;
    }
}

impl Event {
    fn line(&self) -> Line {
        let subject = self.subject.as_ref().and_then(|subject| subject.get());
        let (mut access_key_id, mut association_id, mut cached, mut refusal) = (None, None, None, None);
        match &self.decision {
            Decision::Granted { names, cached: found } => {
                access_key_id = Some(names.access_key_id.clone());
                association_id = Some(names.association_id.clone()).filter(|id| !id.is_empty());
                cached = Some(*found);
            }
            Decision::Refused(why) => refusal = Some(why),
        }
        Line {
            time: credentials::written(self.at).unwrap_or_default(),
            decision: if refusal.is_some() { "refused" } else { "granted" }.to_owned(),
            pod_uid: self.who.pod.map(|uid| uid.to_string()),
            namespace: subject.map(|subject| subject.namespace.to_string()),
            pod: subject.and_then(|subject| subject.pod_name.as_ref().map(ToString::to_string)),
            service_account: subject.map(|subject| subject.service_account.to_string()),
            container_id: self.who.container.map(|id| id.to_string()),
            cgroup_id: self.who.cgroup.map(|cgroup| cgroup.0),
            uid: self.who.user,
            access_key_id,
            association_id,
            cached,
            reason: refusal.map(|refusal| refusal.reason().to_owned()),
            message: refusal.map(Refusal::message),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every state of it is a valid one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
