//! Tells apart whose fault a failed call is: the pod's, the node's, or EKS Auth's.
//!
//! The type names do not say: `ExpiredTokenException` may be about the pod's token or about the signature of the node,
//! and a fault of the node must never cost a pod its good credentials.
use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_eksauth::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata as _, SdkError},
    operation::{RequestId as _, assume_role_for_pod_identity::AssumeRoleForPodIdentityError},
};

use super::causes;
use crate::refusal::{Outage, Refusal, UpstreamError};

type CallError = SdkError<AssumeRoleForPodIdentityError, HttpResponse>;

/// Throttled callers are told to wait for this long: longer than the second that SDKs wait by themselves.
const THROTTLED_RETRY_AFTER: u32 = 2;

/// Errors that the service's front answers when it does not accept the signature, so before it looked at any token.
const SIGNATURE_ERRORS: [&str; 8] = [
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "IncompleteSignature",
    "RequestExpired",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "InvalidClientTokenId",
];

/// Modelled errors about the pod, with the status the contract passes on.
const POD_ERRORS: [(&str, u16); 6] = [
    ("AccessDeniedException", 400),
    ("ExpiredTokenException", 400),
    ("InvalidParameterException", 400),
    ("InvalidRequestException", 400),
    ("InvalidTokenException", 400),
    ("ResourceNotFoundException", 404),
];

const THROTTLING: [&str; 2] = ["ThrottlingException", "TooManyRequestsException"];

/// What a failed call means, logged with its cause when that is not the pod's.
pub(super) fn refusal(error: &CallError) -> Refusal {
    let refusal = match error {
        SdkError::TimeoutError(_) => Refusal::EksAuthUnavailable(Outage::Timeout),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => Refusal::EksAuthUnavailable(Outage::Timeout),
        SdkError::ServiceError(service) => {
            let (code, message) = (service.err().code(), service.err().message());
            classify(service.raw().status().as_u16(), code, message, service.err().request_id())
        }
        // The node has no credentials at all: found out while the call was being signed.
        other if caused_by_credentials(other) => Refusal::NodeCredentials,
        SdkError::DispatchFailure(_) => Refusal::EksAuthUnavailable(Outage::Transport),
        _ => Refusal::EksAuthUnavailable(Outage::Server),
    };
    match &refusal {
        Refusal::NodeCredentials => tracing::error!(
            cause = cause(error),
            "EKS Auth does not accept this node's credentials: the node's role needs eks-auth:AssumeRoleForPodIdentity \
             (policy AmazonEKSWorkerNodePolicy); no pod of this node can get new credentials until that is repaired"
        ),
        Refusal::EksAuthRefused(_) => {}
        _ => tracing::warn!(cause = cause(error), "EKS Auth did not answer with credentials"),
    }
    refusal
}

/// Reads an error answer of the service.
fn classify(status: u16, code: Option<&str>, message: Option<&str>, request_id: Option<&str>) -> Refusal {
    let (code, message) = (code.unwrap_or_default(), message.unwrap_or_default());
    if status == 429 || THROTTLING.contains(&code) {
        return Refusal::EksAuthThrottled { retry_after: THROTTLED_RETRY_AFTER };
    }
    if is_about_the_node(code, message) {
        return Refusal::NodeCredentials;
    }
    let modelled = POD_ERRORS.iter().find(|(name, _)| *name == code);
    match modelled {
        Some((code, status)) => {
            Refusal::EksAuthRefused(UpstreamError::new(*status, request_id.unwrap_or_default(), code, message))
        }
        // 5xx, and what no version of the model says: a proxy in between, a new error. 503 lets the SDK try again.
        None => Refusal::EksAuthUnavailable(Outage::Server),
    }
}

fn is_about_the_node(code: &str, message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    SIGNATURE_ERRORS.contains(&code)
        // IAM's sentence about a principal that lacks a permission; the principal of this call is the node's role.
        || (code == "AccessDeniedException" && message.contains("eks-auth:"))
        // The front's sentence about the security token of a signature.
        || (code.starts_with("ExpiredToken") && message.contains("security token included in the request"))
}

fn caused_by_credentials(error: &CallError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = cause {
        if error.is::<CredentialsError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The causes, for the log.
fn cause(error: &CallError) -> String {
    let SdkError::ServiceError(service) = error else {
        return causes::of(error);
    };
    let status = service.raw().status().as_u16();
    let (code, message) = (service.err().code(), service.err().message());
    let text = format!("HTTP {status} {}: {}", code.unwrap_or("without a code"), message.unwrap_or("no message"));
    causes::fit(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(status: u16, code: &str, message: &str) -> (&'static str, u16) {
        let refusal = classify(status, Some(code), Some(message), Some("id-1"));
        (refusal.reason(), refusal.status().as_u16())
    }

    #[test]
    fn errors_about_the_pod_keep_their_status() {
        for (code, status) in POD_ERRORS {
            assert_eq!(reason(400, code, "x"), ("eks_auth_refused", status), "{code}");
        }
        let refusal = classify(404, Some("ResourceNotFoundException"), Some("No association"), Some("id-1"));
        assert_eq!(refusal.message(), "[id-1]: (ResourceNotFoundException): No association, fault: client");
    }

    #[test]
    fn errors_about_the_nodes_signature_are_not_the_pods() {
        for code in SIGNATURE_ERRORS {
            assert_eq!(reason(403, code, "x"), ("node_credentials", 503), "{code}");
        }
        let denied = "User: arn:aws:sts::123456789012:assumed-role/node/i-0 is not authorized to perform: \
                      eks-auth:AssumeRoleForPodIdentity on resource: arn:aws:eks:…";
        assert_eq!(reason(403, "AccessDeniedException", denied), ("node_credentials", 503));
        let expired = "The security token included in the request is expired";
        assert_eq!(reason(403, "ExpiredTokenException", expired), ("node_credentials", 503));
        assert_eq!(reason(403, "ExpiredToken", expired), ("node_credentials", 503));
    }

    #[test]
    fn the_same_types_about_the_pod_stay_the_pods() {
        assert_eq!(reason(400, "ExpiredTokenException", "Token is expired").0, "eks_auth_refused");
        assert_eq!(reason(400, "AccessDeniedException", "cannot assume the associated role").0, "eks_auth_refused");
    }

    #[test]
    fn throttling_and_outages_will_pass() {
        assert_eq!(reason(429, "", ""), ("eks_auth_throttled", 503));
        assert_eq!(reason(400, "ThrottlingException", ""), ("eks_auth_throttled", 503));
        assert_eq!(reason(500, "InternalServerException", ""), ("eks_auth_unavailable", 503));
        assert_eq!(reason(503, "ServiceUnavailableException", ""), ("eks_auth_unavailable", 503));
        assert_eq!(reason(502, "", ""), ("eks_auth_unavailable", 503));
        assert_eq!(reason(418, "SomethingNew", ""), ("eks_auth_unavailable", 503));
    }
}
