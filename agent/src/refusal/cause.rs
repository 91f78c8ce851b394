//! What stands behind the refusals that have more than one cause.
use std::fmt;

use super::Shown;

/// What makes a request ambiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguity {
    /// More than one `Host`.
    #[error("it has more than one Host header")]
    TwoHosts,
    /// More than one `Authorization`.
    #[error("it has more than one Authorization header")]
    TwoAuthorizations,
    /// An absolute-form request line names another authority than `Host`.
    #[error("its request line and its Host header name different addresses")]
    TargetIsNotHost,
    /// An absolute-form request line of another scheme than `http`: it is meant for a proxy, which the agent is not.
    #[error("its request line asks for another scheme than http")]
    AnotherScheme,
}

/// Why an `Authorization` value is not a service account token. Texts are of the project's own making: what a library
/// says about a token may quote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// Longer than any token of the kubelet.
    #[error("token is longer than 16384 bytes")]
    TooLong,
    /// The value has a scheme.
    #[error("send the bare token, without the prefix \"Bearer \"")]
    Bearer,
    /// Not three parts joined by dots.
    #[error("token is not three parts joined by dots")]
    Segments,
    /// A part is empty or not base64url without padding.
    #[error("the {0} is not base64url without padding")]
    Base64(TokenPart),
    /// A part is not JSON, or not an object whose members appear once each.
    #[error("the {0} is not one JSON object whose members appear once")]
    Object(TokenPart),
    /// `alg` is missing.
    #[error("the header names no signing method (alg)")]
    NoAlgorithm,
    /// `alg` is `none`.
    #[error("signing method none is not accepted")]
    Unsigned,
    /// `alg` is HS256, HS384 or HS512: whoever could verify such a token could also make one.
    #[error("symmetric signing methods (HS*) are not accepted")]
    Symmetric,
    /// `alg` is something else.
    #[error("the signing method (alg) is unknown")]
    UnknownAlgorithm,
    /// A claim that must be there is not.
    #[error("the claim {0} is missing")]
    NoClaim(&'static str),
    /// A claim is not of its type, or not a value that Kubernetes would write.
    #[error("the claim {0} has the wrong type or value")]
    Claim(&'static str),
    /// `sub` names another service account than the claim `kubernetes.io`.
    #[error("the claims sub and kubernetes.io name different service accounts")]
    Subject,
}

/// A part of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenPart {
    /// The first part.
    Header,
    /// The second part.
    Payload,
    /// The third part.
    Signature,
}

impl fmt::Display for TokenPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Payload => "payload",
            Self::Signature => "signature",
        })
    }
}

/// Why a token names no pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodUidFault {
    /// Not a token of Kubernetes.
    #[error("the claim kubernetes.io is missing")]
    NoKubernetes,
    /// Not bound to a pod.
    #[error("the token is not bound to a pod (no claim kubernetes.io.pod)")]
    NoPod,
    /// Bound to a pod without naming its UID.
    #[error("the claim kubernetes.io.pod.uid is missing")]
    NoUid,
    /// The UID is not a UUID.
    #[error("the claim kubernetes.io.pod.uid is not a UUID")]
    NotAUid,
}

/// How EKS Auth failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Outage {
    /// No answer in time.
    #[error("did not answer in time")]
    Timeout,
    /// No connection, or one that broke: name resolution, TCP, TLS.
    #[error("cannot be reached")]
    Transport,
    /// A server error, or an answer that makes no sense.
    #[error("answered with an error of its own")]
    Server,
}

/// EKS Auth's own words about a pod that it refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamError {
    status: u16,
    request_id: Shown,
    code: &'static str,
    message: Shown,
}

impl UpstreamError {
    /// `status` as EKS Auth sent it; `code` is the modelled name (`AccessDeniedException`), one of a fixed set: it labels a
    /// metric.
    #[must_use]
    pub fn new(status: u16, request_id: &str, code: &'static str, message: &str) -> Self {
        Self { status, request_id: Shown::new(request_id), code, message: Shown::new(message) }
    }

    /// EKS Auth models 400 and 404 only. Whatever else it may say one day is the pod's fault all the same: 400.
    pub(super) fn not_found(&self) -> bool {
        self.status == 404
    }

    /// The modelled name of the error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// EKS Auth's id for the call, for a support case.
    #[must_use]
    pub fn request_id(&self) -> &str {
        self.request_id.as_str()
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]: ({}): {}, fault: client", self.request_id, self.code, self.message)
    }
}
