//! A pod's credentials as callers see them: the published state, and messages to the worker that owns it.
use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use super::{Issued, policy, tokens::Tokens};
use crate::{
    refusal::Refusal,
    token::{Claims, TokenDigest},
};

/// A token whose claims have been checked. Wiped on drop.
pub struct PresentedToken {
    raw: Zeroizing<String>,
    pub(super) digest: TokenDigest,
    pub(super) claims: Claims,
}

impl PresentedToken {
    /// Copies the token out of the request.
    #[must_use]
    pub fn new(raw: &str, digest: TokenDigest, claims: Claims) -> Self {
        Self { raw: Zeroizing::new(raw.to_owned()), digest, claims }
    }

    /// The token itself, a secret.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.raw
    }

    /// What stands for it.
    #[must_use]
    pub fn digest(&self) -> TokenDigest {
        self.digest
    }

    /// What it says.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }
}

impl fmt::Debug for PresentedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresentedToken").field("claims", &self.claims).finish_non_exhaustive()
    }
}

/// A pod's credentials as everybody sees them.
#[derive(Clone, Debug)]
pub enum State {
    /// Nobody has asked, or what there was has expired, was flushed or made room for others.
    Empty,
    /// Served to whoever presents one of the tokens.
    Available {
        /// What is served.
        issued: Arc<Issued>,
        /// Tokens that are good for it.
        tokens: Tokens,
        /// When they are renewed, or the renewal is tried again.
        renew_at: SystemTime,
        /// Why the last renewal failed; what is served stays valid all the same.
        renewal_failed: Option<Refusal>,
    },
    /// Nothing to serve, and the last fetch failed.
    Unavailable(Refusal),
    /// The pod has ended.
    Ended,
}

/// What a caller that waits is told.
pub(super) type Answer = Result<Arc<Issued>, Refusal>;

/// What the worker is told.
pub(super) enum Message {
    /// A caller waits.
    Demand { token: Arc<PresentedToken>, waiter: oneshot::Sender<Answer> },
    /// The kubelet wrote this token for the pod.
    Vouch(Box<Vouched>),
    /// The cache needs the room.
    Evict,
    /// An operator wants credentials fetched anew.
    Flush { done: oneshot::Sender<Flushed> },
}

/// A token that the kubelet wrote. In a box: a pod's queue has room for 32 messages from the first on, and this is rare.
pub(super) struct Vouched {
    pub(super) digest: TokenDigest,
    pub(super) expires_at: SystemTime,
}

const _: () = assert!(size_of::<Message>() <= 24);

/// What came of an operator's flush.
#[derive(Clone, Debug)]
pub enum Flushed {
    /// They were fetched anew, and are served from now on.
    Renewed(Arc<Issued>),
    /// EKS Auth refuses the pod: what was served is given up.
    Refused(Refusal),
    /// EKS Auth could not be asked: what is valid is served until it expires.
    Kept(Refusal),
    /// The pod's token file cannot be read at the moment: what is valid is served until it expires.
    TokenUnreadable,
    /// Nothing is served: the pod's next request fetches.
    Nothing,
    /// The pod has ended.
    Ended,
}

impl From<&Answer> for Flushed {
    fn from(answer: &Answer) -> Self {
        match answer {
            Ok(issued) => Self::Renewed(Arc::clone(issued)),
            Err(refusal) if policy::is_verdict(refusal) => Self::Refused(refusal.clone()),
            Err(refusal) => Self::Kept(refusal.clone()),
        }
    }
}

/// Whose credentials they are, as a token says that EKS Auth accepted or the kubelet wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The pod's namespace.
    pub namespace: Box<str>,
    /// Its name, if the token says it.
    pub pod_name: Option<Box<str>>,
    /// Its service account.
    pub service_account: Box<str>,
}

impl Subject {
    pub(super) fn of(claims: &Claims) -> Self {
        Self {
            namespace: claims.namespace.clone(),
            pod_name: claims.pod_name.clone(),
            service_account: claims.service_account.clone(),
        }
    }
}

/// When a pod last asked for its credentials.
#[derive(Debug, Default)]
pub(super) struct LastUse(AtomicU64);

impl LastUse {
    /// Seconds since the epoch; 0 when nobody asked yet.
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn touch(&self, now: SystemTime) {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs().max(1));
        // Written once a second at most: the line stays shared between the answers of a second.
        if self.0.load(Ordering::Relaxed) != seconds {
            self.0.store(seconds, Ordering::Relaxed);
        }
    }
}

/// A handle to a pod's credentials.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub(super) state: Arc<ArcSwap<State>>,
    pub(super) messages: mpsc::Sender<Message>,
    pub(super) last_use: Arc<LastUse>,
    pub(super) subject: Arc<OnceLock<Subject>>,
}

impl Credentials {
    /// Credentials for a token that is good for them, if there are valid ones: no wait, no lock.
    #[must_use]
    pub fn cached(&self, digest: &TokenDigest, now: SystemTime) -> Option<Arc<Issued>> {
        match &**self.state.load() {
            State::Available { issued, tokens, .. } => {
                self.last_use.touch(now);
                served(issued, tokens, digest, now)
            }
            State::Empty | State::Unavailable(_) | State::Ended => None,
        }
    }

    /// Waits for credentials; the fetch goes on when the caller does not.
    pub async fn obtain(&self, token: PresentedToken) -> Answer {
        let (waiter, answer) = oneshot::channel();
        let demand = Message::Demand { token: Arc::new(token), waiter };
        self.messages.try_send(demand).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refusal::PodLimit,
            mpsc::error::TrySendError::Closed(_) => Refusal::PodGone,
        })?;
        answer.await.unwrap_or(Err(Refusal::PodGone))
    }

    /// Tells that the kubelet wrote this token for the pod: it is good for cached credentials, and fetches are made with
    /// it. Its claims have been checked, and name the pod.
    pub fn vouch(&self, token: &PresentedToken) {
        let _ = self.subject.set(Subject::of(&token.claims));
        // A full queue is a pod whose callers flood it: they have the token themselves.
        let vouched = Vouched { digest: token.digest, expires_at: token.claims.expires_at };
        let _ = self.messages.try_send(Message::Vouch(Box::new(vouched)));
    }

    /// Fetches anew at once, whatever is cached, and waits for what comes of it.
    pub async fn flush(&self) -> Flushed {
        let (done, flushed) = oneshot::channel();
        // Waits for room: an operator's word counts more than callers who flood the pod's queue.
        if self.messages.send(Message::Flush { done }).await.is_err() {
            return Flushed::Ended;
        }
        flushed.await.unwrap_or(Flushed::Ended)
    }

    /// Whose credentials they are, as soon as a token has told.
    #[must_use]
    pub fn subject(&self) -> Option<&Subject> {
        self.subject.get()
    }

    /// The same for whoever keeps it: what a token tells later is seen too.
    #[must_use]
    pub fn shared_subject(&self) -> Arc<OnceLock<Subject>> {
        Arc::clone(&self.subject)
    }

    /// When the pod last asked, to the second; `None` if it never did.
    #[must_use]
    pub fn last_use(&self) -> Option<SystemTime> {
        let seconds = self.last_use.get();
        (seconds > 0).then(|| UNIX_EPOCH + Duration::from_secs(seconds))
    }

    /// What the pod has now.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }
}

/// The credentials, if they are valid and the token is good for them.
pub(super) fn served(
    issued: &Arc<Issued>,
    tokens: &Tokens,
    digest: &TokenDigest,
    now: SystemTime,
) -> Option<Arc<Issued>> {
    (tokens.knows(digest, now) && issued.valid_at(now)).then(|| Arc::clone(issued))
}
