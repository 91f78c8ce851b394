//! A pod's credentials as callers see them: the published state, and messages to the worker that owns it.
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use super::{Issued, tokens::Tokens};
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
    Vouch { digest: TokenDigest, expires_at: SystemTime },
    /// The cache needs the room.
    Evict,
    /// An operator wants what there is forgotten and fetched anew.
    Flush,
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
    pub fn vouch(&self, digest: TokenDigest, expires_at: SystemTime) {
        // A full queue is a pod whose callers flood it: they have the token themselves.
        let _ = self.messages.try_send(Message::Vouch { digest, expires_at });
    }

    /// Forgets what there is and fetches anew, as soon as there is a token to do it with.
    pub fn flush(&self) {
        let _ = self.messages.try_send(Message::Flush);
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
