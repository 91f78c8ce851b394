//! Service account tokens as callers present them: what their claims say, before anybody has verified a signature.
//!
//! Nothing here proves that a token is genuine: EKS Auth does that. What is refused here is what EKS Auth would refuse
//! too, or read in another way than this module does.
use std::fmt;
use std::time::{Duration, SystemTime};

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;

use crate::pod_uid::PodUid;
use crate::refusal::{PodUidFault, Refusal, TokenFault};

mod claims;
#[cfg(test)]
mod tests;

use claims::RawClaims;

/// The audience of tokens that are meant for EKS Pod Identity.
pub const AUDIENCE: &str = "pods.eks.amazonaws.com";

/// How long a token may be: the kubelet's are 1 to 2 KiB.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// How far the clocks of this node and of the API server may be apart.
pub const CLOCK_SKEW: Duration = Duration::from_secs(30);

/// A token that has been read but not yet held against the clock.
///
/// It borrows the header it came in, so that reading a token makes no copy of it.
pub struct ServiceAccountToken<'a> {
    raw: &'a str,
    claims: RawClaims,
}

impl<'a> ServiceAccountToken<'a> {
    /// Reads a token.
    ///
    /// Refuses with [`Refusal::NoToken`] or [`Refusal::MalformedToken`].
    pub fn parse(raw: &'a str) -> Result<Self, Refusal> {
        if raw.is_empty() {
            return Err(Refusal::NoToken);
        }
        let claims = claims::read(raw).map_err(Refusal::MalformedToken)?;
        Ok(Self { raw, claims })
    }

    /// The token itself, a secret.
    #[must_use]
    pub fn secret(&self) -> &'a str {
        self.raw
    }

    /// What the token says, when it is in force at `now` and meant for EKS Pod Identity.
    ///
    /// The first failed check decides: `exp`, `nbf`, audience, pod UID, then whether the claims agree with each other.
    pub fn validate(self, now: SystemTime) -> Result<Claims, Refusal> {
        let raw = self.claims;
        if expired(raw.expires_at, now) {
            return Err(Refusal::TokenExpired);
        }
        if raw.not_before.is_some_and(|not_before| not_yet_valid(not_before, now)) {
            return Err(Refusal::TokenNotYetValid);
        }
        if !raw.audience.iter().any(|audience| audience == AUDIENCE) {
            return Err(Refusal::WrongAudience);
        }
        let kubernetes = raw.kubernetes.ok_or(Refusal::NoPodUid(PodUidFault::NoKubernetes))?;
        let pod = kubernetes.pod.ok_or(Refusal::NoPodUid(PodUidFault::NoPod))?;
        let uid = pod.uid.ok_or(Refusal::NoPodUid(PodUidFault::NoUid))?;
        let pod_uid: PodUid = uid.parse().map_err(|_| Refusal::NoPodUid(PodUidFault::NotAUid))?;

        let missing = |claim| Refusal::MalformedToken(TokenFault::NoClaim(claim));
        let namespace = kubernetes.namespace.ok_or_else(|| missing("kubernetes.io.namespace"))?;
        let account = kubernetes.service_account.and_then(|account| account.name);
        let service_account = account.ok_or_else(|| missing("kubernetes.io.serviceaccount.name"))?;
        let subject = raw.subject.ok_or_else(|| missing("sub"))?;
        if subject.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
            != Some((&*namespace, &*service_account))
        {
            return Err(Refusal::MalformedToken(TokenFault::Subject));
        }
        Ok(Claims { pod_uid, pod_name: pod.name, namespace, service_account, expires_at: raw.expires_at })
    }
}

impl fmt::Debug for ServiceAccountToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccountToken").finish_non_exhaustive()
    }
}

/// Whether a token that ends at `expires_at` has ended, clock skew allowed for.
#[must_use]
pub fn expired(expires_at: SystemTime, now: SystemTime) -> bool {
    now.duration_since(expires_at).is_ok_and(|past| past >= CLOCK_SKEW)
}

fn not_yet_valid(not_before: SystemTime, now: SystemTime) -> bool {
    not_before.duration_since(now).is_ok_and(|ahead| ahead > CLOCK_SKEW)
}

/// What a token says about the pod it is bound to. Unverified: it may be shown to EKS Auth and compared with what the
/// kernel says, and nothing is granted on it alone.
///
/// The names are plain Kubernetes names, so they can be logged as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// UID of the pod.
    pub pod_uid: PodUid,
    /// Name of the pod.
    pub pod_name: Option<Box<str>>,
    /// Namespace of pod and service account.
    pub namespace: Box<str>,
    /// Name of the service account.
    pub service_account: Box<str>,
    /// When the token ends.
    pub expires_at: SystemTime,
}

/// SHA-256 of a token: stands for the token where one is compared with another later, so that the token itself need
/// not be kept.
#[derive(Clone, Copy)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest of a token.
    #[must_use]
    pub fn of(token: &str) -> Self {
        let mut bytes = [0; 32];
        // Both are 32 bytes; `zip` says so without a panic.
        for (to, from) in bytes.iter_mut().zip(digest(&SHA256, token.as_bytes()).as_ref()) {
            *to = *from;
        }
        Self(bytes)
    }
}

impl PartialEq for TokenDigest {
    /// Takes the same time wherever the two differ: a caller that could time it would learn a digest that passes for
    /// an accepted token's.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenDigest {}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(…)")
    }
}
