//! Every reason for which a request gets no credentials, and the one place that turns a reason into an HTTP answer.
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::Value;

mod cause;
mod shown;
#[cfg(test)]
mod tests;

pub use cause::{Ambiguity, Outage, PodUidFault, TokenFault, TokenPart, UpstreamError};
pub use shown::Shown;

/// Why a request is refused. The text of each is the answer's `message`: it says what to do, and carries no token,
/// no key, no path of the node, no internal error (those go to the log, beside [`Refusal::reason`]).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The kernel has no socket at the other end of the connection, or it has gone since.
    #[error(
        "Access Denied. The kernel knows no calling socket in this network namespace; \
         forwarded or translated connections are not served"
    )]
    UnknownSocket,
    /// The calling socket was made outside every pod of this node.
    #[error("Access Denied. The calling process is not in a pod of this node")]
    NotAPod,
    /// The calling pod was started from a manifest on the node.
    #[error("Access Denied. Static pods have no service account, so there are no credentials for them")]
    StaticPod,
    /// The calling pod's cgroup has gone.
    #[error("Access Denied. The calling pod has ended")]
    PodGone,
    /// The caller uses the node's own network namespace and the operator chose not to serve those.
    #[error("Access Denied. Host-network pods are not served on this node")]
    HostNetworkPod,
    /// Attestation could not be carried out: no statement about the caller, and it will pass.
    #[error("The caller could not be attested at the moment, try again")]
    AttestationFailed,
    /// The pod has too many requests or connections under way.
    #[error("This pod has too many connections or requests under way, try again")]
    PodLimit,
    /// Another path than `/v1/credentials`.
    #[error("Not Found. Credentials are at /v1/credentials")]
    UnknownPath,
    /// Another method than GET or HEAD.
    #[error("Method Not Allowed. Use GET")]
    MethodNotAllowed,
    /// `X-Forwarded-For` is there: somebody else's request comes through a proxy in the pod.
    #[error("Access Denied. Forwarded requests (X-Forwarded-For) are not served")]
    Forwarded,
    /// Two readers of the request could disagree about what it asks for.
    #[error("The request is ambiguous: {0}")]
    AmbiguousRequest(Ambiguity),
    /// `Host` (or an absolute-form request line) is not one of the target addresses.
    #[error(
        "Access Denied. Called agent through invalid address, \
         please use either [169.254.170.23 fd00:ec2::23] address not {0}"
    )]
    WrongHost(Shown),
    /// No `Authorization`, or an empty one.
    #[error("Service account token cannot be empty")]
    NoToken,
    /// `Authorization` is not a service account token.
    #[error("Service account token cannot be parsed: {0}")]
    MalformedToken(TokenFault),
    /// The token's `exp` has passed, clock skew allowed for.
    #[error("Service account token failed basic claim validations: token is expired")]
    TokenExpired,
    /// The token's `nbf` is ahead, clock skew allowed for.
    #[error("Service account token failed basic claim validations: token is not valid yet")]
    TokenNotYetValid,
    /// The token is for somebody else than EKS Pod Identity.
    #[error("Service account token failed basic claim validations: token has no audience pods.eks.amazonaws.com")]
    WrongAudience,
    /// The token is not bound to a pod.
    #[error("failed to get pod uid from service account token: {0}")]
    NoPodUid(PodUidFault),
    /// The token is bound to another pod than the caller's: an attempt at impersonation. Names neither pod.
    #[error("Access Denied. The service account token belongs to another pod")]
    ForeignToken,
    /// EKS Auth refuses the node's own credentials.
    #[error(
        "EKS Auth refuses the credentials of this node: its IAM role is at fault, \
         it needs eks-auth:AssumeRoleForPodIdentity; try again when it is repaired"
    )]
    NodeCredentials,
    /// EKS Auth refuses this pod, finally.
    #[error("{0}")]
    EksAuthRefused(UpstreamError),
    /// EKS Auth throttles this node and nothing valid is cached.
    #[error("EKS Auth throttles this node, try again in {retry_after} s")]
    EksAuthThrottled {
        /// Seconds until it makes sense to ask again.
        retry_after: u32,
    },
    /// EKS Auth could not be asked, or failed, and nothing valid is cached.
    #[error("EKS Auth {0}, try again")]
    EksAuthUnavailable(Outage),
    /// EKS Auth's answer is about another service account than the token.
    #[error("EKS Auth answered for another service account than the token's, try again")]
    SubjectMismatch,
    /// The fetch is still under way when SDKs are about to give up.
    #[error("The credentials have been asked for and are not there yet, try again")]
    AnswerDeadline,
    /// The credentials that EKS Auth gave are about to expire.
    #[error("fetched credentials are expired or will expire within 15 seconds, try again")]
    Expiring,
    /// Not a request that HTTP/1 allows.
    #[error("The request is not valid HTTP/1")]
    MalformedRequest,
}

impl Refusal {
    /// All values of [`Refusal::reason`], so that every one is in the metrics from the start, as zero.
    pub const REASONS: [&'static str; 27] = [
        "unknown_socket",
        "not_a_pod",
        "static_pod",
        "pod_gone",
        "host_network_pod",
        "attestation_failed",
        "pod_limit",
        "unknown_path",
        "method_not_allowed",
        "forwarded",
        "ambiguous_request",
        "wrong_host",
        "no_token",
        "malformed_token",
        "token_expired",
        "token_not_yet_valid",
        "wrong_audience",
        "no_pod_uid",
        "foreign_token",
        "node_credentials",
        "eks_auth_refused",
        "eks_auth_throttled",
        "eks_auth_unavailable",
        "subject_mismatch",
        "answer_deadline",
        "expiring",
        "malformed_request",
    ];

    /// The reason's name in metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownSocket => "unknown_socket",
            Self::NotAPod => "not_a_pod",
            Self::StaticPod => "static_pod",
            Self::PodGone => "pod_gone",
            Self::HostNetworkPod => "host_network_pod",
            Self::AttestationFailed => "attestation_failed",
            Self::PodLimit => "pod_limit",
            Self::UnknownPath => "unknown_path",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Forwarded => "forwarded",
            Self::AmbiguousRequest(_) => "ambiguous_request",
            Self::WrongHost(_) => "wrong_host",
            Self::NoToken => "no_token",
            Self::MalformedToken(_) => "malformed_token",
            Self::TokenExpired => "token_expired",
            Self::TokenNotYetValid => "token_not_yet_valid",
            Self::WrongAudience => "wrong_audience",
            Self::NoPodUid(_) => "no_pod_uid",
            Self::ForeignToken => "foreign_token",
            Self::NodeCredentials => "node_credentials",
            Self::EksAuthRefused(_) => "eks_auth_refused",
            Self::EksAuthThrottled { .. } => "eks_auth_throttled",
            Self::EksAuthUnavailable(_) => "eks_auth_unavailable",
            Self::SubjectMismatch => "subject_mismatch",
            Self::AnswerDeadline => "answer_deadline",
            Self::Expiring => "expiring",
            Self::MalformedRequest => "malformed_request",
        }
    }

    /// What the official agent's metric `cache_errors` has as its code: the name EKS Auth gave the error, of a fixed set.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::EksAuthRefused(error) => error.code(),
            Self::EksAuthThrottled { .. } => "ThrottlingException",
            _ => self.reason(),
        }
    }

    /// The same refusal, with the caller told to come again no sooner.
    #[must_use]
    pub fn retry_after_at_least(self, wait: Duration) -> Self {
        match self {
            Self::EksAuthThrottled { retry_after } => {
                let seconds = u32::try_from(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).unwrap_or(u32::MAX);
                Self::EksAuthThrottled { retry_after: retry_after.max(seconds) }
            }
            other => other,
        }
    }

    /// The status of the answer. What will pass is 503, never 403, 429 or 500: those are final for some SDKs.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::UnknownSocket
            | Self::NotAPod
            | Self::StaticPod
            | Self::PodGone
            | Self::HostNetworkPod
            | Self::Forwarded
            | Self::WrongHost(_)
            | Self::ForeignToken => StatusCode::FORBIDDEN,
            Self::AttestationFailed
            | Self::PodLimit
            | Self::NodeCredentials
            | Self::EksAuthThrottled { .. }
            | Self::EksAuthUnavailable(_)
            | Self::SubjectMismatch
            | Self::AnswerDeadline
            | Self::Expiring => StatusCode::SERVICE_UNAVAILABLE,
            Self::UnknownPath => StatusCode::NOT_FOUND,
            Self::EksAuthRefused(error) if error.not_found() => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::AmbiguousRequest(_)
            | Self::NoToken
            | Self::MalformedToken(_)
            | Self::TokenExpired
            | Self::TokenNotYetValid
            | Self::WrongAudience
            | Self::NoPodUid(_)
            | Self::EksAuthRefused(_)
            | Self::MalformedRequest => StatusCode::BAD_REQUEST,
        }
    }

    /// Seconds after which to try again, for what will pass.
    #[must_use]
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            Self::EksAuthThrottled { retry_after } => Some((*retry_after).max(1)),
            _ if self.status() == StatusCode::SERVICE_UNAVAILABLE => Some(1),
            _ => None,
        }
    }

    /// What the caller is told.
    #[must_use]
    pub fn message(&self) -> String {
        self.to_string()
    }

    /// The body: the Go SDK reads the lower-case members, the JS SDK the upper-case ones.
    #[must_use]
    pub fn body(&self) -> Bytes {
        let (code, message) = (self.status().as_u16(), Value::from(self.message()));
        Bytes::from(format!(r#"{{"code":{code},"message":{message},"Code":{code},"Message":{message}}}"#))
    }

    /// The whole answer.
    #[must_use]
    pub fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self, Self::MethodNotAllowed) {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}
