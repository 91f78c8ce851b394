use http_body_util::BodyExt as _;

use super::*;

const HOST_MESSAGE: &str = "Access Denied. Called agent through invalid address, please use either \
                            [169.254.170.23 fd00:ec2::23] address not example.com";

/// One of each kind, with what the contract says about it: reason, status, Retry-After, message (or how it begins).
fn table() -> Vec<(Refusal, &'static str, u16, Option<u32>, &'static str)> {
    use Refusal::*;
    let denied = UpstreamError::new(400, "6b0c", "AccessDeniedException", "No association");
    let unknown = UpstreamError::new(404, "7f", "ResourceNotFoundException", "No cluster found for name: x");
    vec![
        (UnknownSocket, "unknown_socket", 403, None, "Access Denied. The kernel knows no calling socket"),
        (NotAPod, "not_a_pod", 403, None, "Access Denied. The calling process is not in a pod"),
        (StaticPod, "static_pod", 403, None, "Access Denied. Static pods have no service account"),
        (PodGone, "pod_gone", 403, None, "Access Denied. The calling pod has ended"),
        (HostNetworkPod, "host_network_pod", 403, None, "Access Denied. Host-network pods are not served"),
        (AttestationFailed, "attestation_failed", 503, Some(1), "The caller could not be attested"),
        (PodLimit, "pod_limit", 503, Some(1), "This pod has too many"),
        (UnknownPath, "unknown_path", 404, None, "Not Found."),
        (MethodNotAllowed, "method_not_allowed", 405, None, "Method Not Allowed."),
        (Forwarded, "forwarded", 403, None, "Access Denied. Forwarded requests"),
        (AmbiguousRequest(Ambiguity::TwoHosts), "ambiguous_request", 400, None, "The request is ambiguous: "),
        (WrongHost(Shown::new("example.com")), "wrong_host", 403, None, HOST_MESSAGE),
        (NoToken, "no_token", 400, None, "Service account token cannot be empty"),
        (
            MalformedToken(TokenFault::Segments),
            "malformed_token",
            400,
            None,
            "Service account token cannot be parsed: token is not three parts",
        ),
        (
            TokenExpired,
            "token_expired",
            400,
            None,
            "Service account token failed basic claim validations: token is expired",
        ),
        (
            TokenNotYetValid,
            "token_not_yet_valid",
            400,
            None,
            "Service account token failed basic claim validations: token is not valid yet",
        ),
        (WrongAudience, "wrong_audience", 400, None, "Service account token failed basic claim validations: "),
        (
            NoPodUid(PodUidFault::NoPod),
            "no_pod_uid",
            400,
            None,
            "failed to get pod uid from service account token: the token is not bound to a pod",
        ),
        (ForeignToken, "foreign_token", 403, None, "Access Denied. The service account token belongs to another pod"),
        (NodeCredentials, "node_credentials", 503, Some(1), "EKS Auth refuses the credentials of this node"),
        (
            EksAuthRefused(denied),
            "eks_auth_refused",
            400,
            None,
            "[6b0c]: (AccessDeniedException): No association, fault: client",
        ),
        (
            EksAuthRefused(unknown),
            "eks_auth_refused",
            404,
            None,
            "[7f]: (ResourceNotFoundException): No cluster found for name: x, fault: client",
        ),
        (EksAuthThrottled { retry_after: 7 }, "eks_auth_throttled", 503, Some(7), "EKS Auth throttles this node"),
        (EksAuthThrottled { retry_after: 0 }, "eks_auth_throttled", 503, Some(1), "EKS Auth throttles this node"),
        (EksAuthUnavailable(Outage::Timeout), "eks_auth_unavailable", 503, Some(1), "EKS Auth did not answer in time"),
        (SubjectMismatch, "subject_mismatch", 503, Some(1), "EKS Auth answered for another service account"),
        (AnswerDeadline, "answer_deadline", 503, Some(1), "The credentials have been asked for"),
        (Expiring, "expiring", 503, Some(1), "fetched credentials are expired or will expire within 15 seconds"),
        (MalformedRequest, "malformed_request", 400, None, "The request is not valid HTTP/1"),
    ]
}

#[test]
fn each_refusal_is_answered_as_the_contract_says() {
    for (refusal, reason, status, retry_after, message) in table() {
        assert_eq!(refusal.reason(), reason);
        assert_eq!(refusal.status().as_u16(), status, "{reason}");
        assert_eq!(refusal.retry_after(), retry_after, "{reason}");
        assert!(refusal.message().starts_with(message), "{reason}: {}", refusal.message());
    }
}

#[test]
fn the_list_of_reasons_is_the_table_without_repetition() {
    let mut seen: Vec<&str> = table().iter().map(|row| row.1).collect();
    seen.dedup();
    assert_eq!(seen, Refusal::REASONS);
}

#[tokio::test]
async fn the_answer_is_json_that_both_go_and_js_read() {
    for (refusal, reason, status, retry_after, _) in table() {
        let (head, body) = refusal.response().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let json: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(head.status.as_u16(), status);
        assert_eq!(head.headers["content-type"], "application/json");
        assert_eq!(head.headers["cache-control"], "no-store");
        assert_eq!(head.headers.get("retry-after").map(|v| v.to_str().unwrap().parse().unwrap()), retry_after);
        assert_eq!(head.headers.contains_key("allow"), reason == "method_not_allowed");
        for (code, message) in [("code", "message"), ("Code", "Message")] {
            assert_eq!(json[code], status);
            assert_eq!(json[message], refusal.message());
        }
    }
}

#[test]
fn the_body_begins_with_the_members_that_go_reads() {
    assert_eq!(
        Refusal::NoToken.body(),
        r#"{"code":400,"message":"Service account token cannot be empty","Code":400,"Message":"Service account token cannot be empty"}"#
    );
}

#[test]
fn text_from_outside_cannot_break_out_of_the_body() {
    let body = Refusal::WrongHost(Shown::new("a\",\"Code\":200,\"x\":\"\u{1}")).body();
    let json: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(json["Code"], 403);
    assert!(json.get("x").is_none());
}

#[test]
fn eks_auth_echoing_the_token_does_not_pass_it_on() {
    let error = UpstreamError::new(400, "id", "InvalidTokenException", "bad token eyJhbGciOiJSUzI1NiJ9.e30.c2ln");
    let refusal = Refusal::EksAuthRefused(error);
    assert_eq!(refusal.message(), "[id]: (InvalidTokenException): bad token [token], fault: client");
}
