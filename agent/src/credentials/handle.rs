//! A pod's credentials as callers see them: the published state, and demands on the worker that owns it.
use std::{fmt, sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use super::Issued;
use crate::{
    refusal::Refusal,
    token::{self, Claims, TokenDigest},
};

/// A token that a caller presented, its claims checked. Wiped on drop.
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
    /// Nobody has asked, or what there was has expired.
    Empty,
    /// Served to whoever presents one of the accepted tokens.
    Available {
        /// What is served.
        issued: Arc<Issued>,
        /// Tokens for which EKS Auth gave credentials.
        accepted: Vec<AcceptedToken>,
    },
    /// Nothing to serve, and the last fetch failed.
    Unavailable(Refusal),
    /// The pod has ended.
    Ended,
}

/// A token that EKS Auth accepted for the pod.
#[derive(Clone, Copy, Debug)]
pub struct AcceptedToken {
    pub(super) digest: TokenDigest,
    pub(super) expires_at: SystemTime,
}

/// What a caller that waits is told.
pub(super) type Answer = Result<Arc<Issued>, Refusal>;

/// A caller that waits.
pub(super) struct Demand {
    pub(super) token: Arc<PresentedToken>,
    pub(super) waiter: oneshot::Sender<Answer>,
}

/// A handle to a pod's credentials.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub(super) state: Arc<ArcSwap<State>>,
    pub(super) demands: mpsc::Sender<Demand>,
}

impl Credentials {
    /// Credentials for a token that EKS Auth accepted before, if there are valid ones: no wait, no lock.
    #[must_use]
    pub fn cached(&self, digest: &TokenDigest, now: SystemTime) -> Option<Arc<Issued>> {
        match &**self.state.load() {
            State::Available { issued, accepted } => served(issued, accepted, digest, now),
            State::Empty | State::Unavailable(_) | State::Ended => None,
        }
    }

    /// Waits for credentials; the fetch goes on when the caller does not.
    pub async fn obtain(&self, token: PresentedToken) -> Answer {
        let (waiter, answer) = oneshot::channel();
        let demand = Demand { token: Arc::new(token), waiter };
        self.demands.try_send(demand).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refusal::PodLimit,
            mpsc::error::TrySendError::Closed(_) => Refusal::PodGone,
        })?;
        answer.await.unwrap_or(Err(Refusal::PodGone))
    }

    /// What the pod has now.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }
}

/// The credentials, if they are valid and the token is one of the accepted.
pub(super) fn served(
    issued: &Arc<Issued>,
    accepted: &[AcceptedToken],
    digest: &TokenDigest,
    now: SystemTime,
) -> Option<Arc<Issued>> {
    let known = accepted.iter().any(|token| token.digest == *digest && !token::expired(token.expires_at, now));
    (known && issued.valid_at(now)).then(|| Arc::clone(issued))
}
