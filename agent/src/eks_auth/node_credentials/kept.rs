//! Keeps the node's credentials between calls: asked for once by all, used as long as they are good.
use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_credential_types::{
    Credentials,
    provider::{self, ProvideCredentials, error::CredentialsError, future},
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::{
    super::causes,
    shared_file::{Stamp, Watched},
};

/// Credentials are asked for again so long before they expire. The metadata service has new ones 5 min before.
const EARLY: Duration = Duration::from_mins(4);

/// Credentials that name no expiration (keys in a file) are asked for again after this.
const UNDATED_AGE: Duration = Duration::from_mins(15);

/// After asking, whatever the answer, there is as long a pause while there is something to use.
const PAUSE: Duration = Duration::from_secs(30);

/// And so long while there is nothing: callers meanwhile get the failure that is known, instead of asking one by one.
const PAUSE_WITHOUT: Duration = Duration::from_secs(1);

/// All sources together; a role of a shared file is a call to STS.
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The node's credentials. One load at a time, and only when those at hand are about to expire, were refused, or (where
/// files are watched) have been replaced.
///
/// This stands in for the SDK's identity cache, which can be told neither that a file has changed nor that EKS Auth
/// does not accept what it holds, and which fails calls when a source fails although what it holds is still good.
#[derive(Clone)]
pub(in crate::eks_auth) struct NodeCredentials(Arc<Inner>);

struct Inner {
    source: Box<dyn ProvideCredentials>,
    watched: Watched,
    // Held while loading: that is the single flight. Callers that wait for it need its outcome.
    kept: Mutex<Kept>,
}

struct Kept {
    at_hand: AtHand,
    /// What the watched files looked like when they were read last.
    stamp: Stamp,
    /// No asking again before.
    pause_until: Instant,
}

enum AtHand {
    /// Nobody has asked.
    Nothing,
    /// To be used.
    Good { credentials: Credentials, loaded_at: Instant },
    /// Refused by EKS Auth, and all there is.
    Refused { credentials: Credentials },
    /// The sources' answer.
    Failure(String),
}

impl NodeCredentials {
    pub(in crate::eks_auth) fn new(source: impl ProvideCredentials + 'static, watched: Watched) -> Self {
        let kept = Kept { at_hand: AtHand::Nothing, stamp: Stamp::new(), pause_until: Instant::now() };
        Self(Arc::new(Inner { source: Box::new(source), watched, kept: Mutex::new(kept) }))
    }

    /// EKS Auth does not accept them: they are asked for again, after the pause. (If others have been read since that
    /// call was signed, they are asked for once more than is needed.)
    pub(in crate::eks_auth) async fn refused(&self) {
        let mut kept = self.0.kept.lock().await;
        if let AtHand::Good { credentials, .. } = &kept.at_hand {
            kept.at_hand = AtHand::Refused { credentials: credentials.clone() };
        }
    }

    async fn get(&self) -> provider::Result {
        let Inner { source, watched, kept } = &*self.0;
        let mut kept = kept.lock().await;
        let stamp = watched.stamp();
        if stamp == kept.stamp
            && let Some(known) = kept.known(Instant::now(), SystemTime::now())
        {
            return known;
        }
        let loaded = timeout(LOAD_TIMEOUT, source.provide_credentials())
            .await
            .unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(LOAD_TIMEOUT)));
        kept.stamp = stamp;
        kept.loaded(loaded, Instant::now(), SystemTime::now())
    }
}

impl Kept {
    /// The answer, if nobody need be asked for it.
    fn known(&self, now: Instant, wall: SystemTime) -> Option<provider::Result> {
        let paused = now < self.pause_until;
        match &self.at_hand {
            AtHand::Good { credentials, loaded_at } => {
                let lasts = match credentials.expiry() {
                    Some(expiry) => wall + EARLY < expiry || (paused && wall < expiry),
                    None => paused || now < *loaded_at + UNDATED_AGE,
                };
                lasts.then(|| Ok(credentials.clone()))
            }
            AtHand::Refused { credentials } => paused.then(|| Ok(credentials.clone())),
            AtHand::Failure(failure) => paused.then(|| Err(CredentialsError::provider_error(failure.clone()))),
            AtHand::Nothing => None,
        }
    }

    /// Takes the sources' answer. A failure takes nothing away that can still be used.
    fn loaded(&mut self, loaded: provider::Result, now: Instant, wall: SystemTime) -> provider::Result {
        let error = match loaded {
            Ok(credentials) => {
                self.pause_until = now + PAUSE;
                self.at_hand = AtHand::Good { credentials: credentials.clone(), loaded_at: now };
                return Ok(credentials);
            }
            Err(error) => error,
        };
        match &self.at_hand {
            AtHand::Good { credentials, .. } | AtHand::Refused { credentials }
                if credentials.expiry().is_none_or(|expiry| wall < expiry) =>
            {
                self.pause_until = now + PAUSE;
                let error = causes::of(&error);
                tracing::warn!(error, "cannot read the node's credentials again; those at hand go on being used");
                Ok(credentials.clone())
            }
            _ => {
                self.pause_until = now + PAUSE_WITHOUT;
                self.at_hand = AtHand::Failure(causes::of(&error));
                Err(error)
            }
        }
    }
}

impl ProvideCredentials for NodeCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.get())
    }
}

impl fmt::Debug for NodeCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeCredentials").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
