//! Brings the kubelet's tokens to the owners of pods' credentials.
//!
//! A token in a pod's own volume proves that it is the pod's: the kubelet wrote it there. That is enough for credentials
//! which another token of the pod obtained from EKS Auth, and reason to fetch them before the pod asks. It is no proof
//! of a signature, so it is never enough for more.
use std::{path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::{
    credentials::{self, Clock, PresentedToken, TokenSource, Unreadable},
    kubelet::{KubeletError, TokenEvent, TokenFiles, TokenWatch, TokenWatchHandle},
    pod_uid::PodUid,
    pods::Pods,
    refusal::Refusal,
    token::{ServiceAccountToken, TokenDigest},
};

/// The kubelet's tokens, read when they are needed.
#[derive(Clone)]
pub struct KubeletTokens {
    files: Arc<TokenFiles>,
    clock: Clock,
}

/// What follows the kubelet's tokens.
pub struct Vouching {
    watch: TokenWatch,
    events: mpsc::UnboundedReceiver<TokenEvent>,
    clock: Clock,
}

/// Opens the kubelet's directory. Runs in a tokio runtime.
pub fn open(kubelet_root: &Path, clock: &Clock) -> Result<(KubeletTokens, TokenWatchHandle, Vouching), KubeletError> {
    let files = Arc::new(TokenFiles::open(kubelet_root)?);
    let (watch, handle, events) = TokenWatch::new(Arc::clone(&files))?;
    let tokens = KubeletTokens { files, clock: clock.clone() };
    Ok((tokens, handle, Vouching { watch, events, clock: clock.clone() }))
}

/// What the kubelet's file of a pod holds, without the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum TokenFile {
    /// The kubelet's directory cannot be read.
    NoKubelet,
    /// There is none.
    Missing {
        /// Whether the volume's directory is there all the same.
        volume: bool,
    },
    /// It is there and cannot be read.
    Unreadable {
        /// Why.
        error: String,
    },
    /// What it holds is not good for this pod.
    Bad {
        /// What a caller would be refused for, by its name in metrics.
        reason: String,
        /// The same for people.
        message: String,
    },
    /// A token for this pod.
    Good {
        /// When it ends.
        expires_at: String,
        /// For whom, as `NAMESPACE/NAME`.
        service_account: String,
    },
}

impl KubeletTokens {
    /// Looks into a pod's file.
    #[must_use]
    pub fn look(&self, pod: PodUid) -> TokenFile {
        let bad =
            |refusal: &Refusal| TokenFile::Bad { reason: refusal.reason().to_owned(), message: refusal.message() };
        match self.files.read(pod) {
            Err(error) => TokenFile::Unreadable { error: error.to_string() },
            Ok(None) => TokenFile::Missing { volume: self.files.has_volume(pod) },
            Ok(Some(raw)) => {
                let claims = ServiceAccountToken::parse(&raw).and_then(|token| token.validate(self.clock.now()));
                match claims {
                    Err(refusal) => bad(&refusal),
                    Ok(claims) if claims.pod_uid != pod => bad(&Refusal::ForeignToken),
                    Ok(claims) => TokenFile::Good {
                        expires_at: credentials::written(claims.expires_at).unwrap_or_default(),
                        service_account: format!("{}/{}", claims.namespace, claims.service_account),
                    },
                }
            }
        }
    }
}

impl TokenSource for KubeletTokens {
    fn newest(&self, pod: PodUid) -> Result<Option<PresentedToken>, Unreadable> {
        match self.files.read(pod) {
            Ok(token) => Ok(token.and_then(|token| checked(pod, &token, &self.clock))),
            Err(error) => {
                tracing::warn!(pod_uid = %pod, %error, "cannot read a pod's token file");
                Err(Unreadable)
            }
        }
    }
}

impl Vouching {
    /// Tells each pod of its tokens, as long as they can be followed.
    pub async fn run(self, pods: Arc<Pods>) -> KubeletError {
        let Self { watch, mut events, clock } = self;
        let tell = async {
            loop {
                // The other end is in the watch, which outlives this future.
                let Some(event) = events.recv().await else { return std::future::pending::<KubeletError>().await };
                // A pod that is not known yet is asked about again when its cgroup appears.
                if let TokenEvent::Token { uid, token } = event
                    && let Some(pod) = pods.get(uid)
                    && let Some(token) = checked(uid, &token, &clock)
                {
                    pod.credentials().vouch(&token);
                }
            }
        };
        tokio::select! {
            ended = watch.run() => match ended {
                Ok(never) => match never {},
                Err(error) => error,
            },
            error = tell => error,
        }
    }
}

/// The token, if it passes the checks that a caller's must and names the pod in whose directory it lies.
fn checked(pod: PodUid, raw: &Zeroizing<String>, clock: &Clock) -> Option<PresentedToken> {
    let claims = ServiceAccountToken::parse(raw).and_then(|token| token.validate(clock.now()));
    let refusal = match claims {
        Ok(claims) if claims.pod_uid == pod => return Some(PresentedToken::new(raw, TokenDigest::of(raw), claims)),
        Ok(_) => Refusal::ForeignToken,
        Err(refusal) => refusal,
    };
    tracing::warn!(pod_uid = %pod, reason = refusal.reason(), "a pod's token file holds no token that is good for it");
    None
}
