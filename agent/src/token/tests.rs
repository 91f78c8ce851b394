use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::refusal::TokenPart;

const NOW: u64 = 1_800_000_000;
const POD: &str = "0c2ad6e1-5d1b-4f5e-9a37-77d0f0a4be01";

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

fn payload() -> Value {
    json!({
        "aud": [AUDIENCE], "exp": NOW + 86_400, "iat": NOW - 10, "nbf": NOW - 10, "iss": "https://issuer.test",
        "sub": "system:serviceaccount:shop:cart",
        "kubernetes.io": {
            "namespace": "shop",
            "node": {"name": "node-1", "uid": "d0d0d0d0-5d1b-4f5e-9a37-77d0f0a4be01"},
            "pod": {"name": "cart-0", "uid": POD},
            "serviceaccount": {"name": "cart", "uid": "abababab-5d1b-4f5e-9a37-77d0f0a4be01"},
            "warnafter": NOW + 3607,
        },
    })
}

fn with(pointer: &str, value: impl Into<Value>) -> Value {
    let mut payload = payload();
    *payload.pointer_mut(pointer).unwrap() = value.into();
    payload
}

fn without(parent: &str, member: &str) -> Value {
    let mut payload = payload();
    payload.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(member).unwrap();
    payload
}

fn joined(header: &str, payload: &str) -> String {
    format!("{}.{}.c2lnbmF0dXJl", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload))
}

fn token(payload: &Value) -> String {
    joined(r#"{"alg":"RS256","kid":"k1"}"#, &payload.to_string())
}

fn judge(token: &str) -> Result<Claims, Refusal> {
    ServiceAccountToken::parse(token)?.validate(now())
}

fn fault(token: &str) -> TokenFault {
    match ServiceAccountToken::parse(token) {
        Err(Refusal::MalformedToken(fault)) => fault,
        other => panic!("{other:?}"),
    }
}

fn outcome(payload: &Value) -> &'static str {
    judge(&token(payload)).map_or_else(|refusal| refusal.reason(), |_| "accepted")
}

#[test]
fn a_kubelets_token_names_its_pod() {
    let claims = judge(&token(&payload())).unwrap();
    assert_eq!(
        claims,
        Claims {
            pod_uid: POD.parse().unwrap(),
            pod_name: Some("cart-0".into()),
            namespace: "shop".into(),
            service_account: "cart".into(),
            expires_at: now() + Duration::from_hours(24),
        }
    );
}

#[test]
fn the_audience_may_be_one_string_or_one_of_many() {
    assert_eq!(outcome(&with("/aud", AUDIENCE)), "accepted");
    assert_eq!(outcome(&with("/aud", json!(["other", AUDIENCE]))), "accepted");
    for audience in [json!([]), json!("sts.amazonaws.com"), json!(["sts.amazonaws.com"]), json!(null), json!("")] {
        assert_eq!(outcome(&with("/aud", audience)), "wrong_audience");
    }
    assert_eq!(outcome(&without("", "aud")), "wrong_audience");
}

#[test]
fn thirty_seconds_of_clock_skew_are_forgiven_and_no_more() {
    assert_eq!(outcome(&with("/exp", NOW - 29)), "accepted");
    assert_eq!(outcome(&with("/exp", NOW - 30)), "token_expired");
    assert_eq!(outcome(&with("/nbf", NOW + 30)), "accepted");
    assert_eq!(outcome(&with("/nbf", NOW + 31)), "token_not_yet_valid");
    assert_eq!(outcome(&without("", "nbf")), "accepted");
}

#[test]
fn instants_may_have_fractions() {
    assert_eq!(outcome(&with("/exp", 1_799_999_970.5)), "accepted");
    assert_eq!(outcome(&with("/exp", 1_799_999_969.5)), "token_expired");
}

#[test]
fn the_first_failed_check_decides() {
    let mut wrong = without("/kubernetes.io", "pod");
    wrong["sub"] = json!("system:serviceaccount:shop:other");
    assert_eq!(outcome(&wrong), "no_pod_uid");
    wrong["aud"] = json!("other");
    assert_eq!(outcome(&wrong), "wrong_audience");
    wrong["nbf"] = json!(NOW + 100);
    assert_eq!(outcome(&wrong), "token_not_yet_valid");
    wrong["exp"] = json!(NOW - 100);
    assert_eq!(outcome(&wrong), "token_expired");
}

#[test]
fn a_token_without_a_pod_uid_says_what_is_missing() {
    let cases = [
        (without("", "kubernetes.io"), PodUidFault::NoKubernetes),
        (without("/kubernetes.io", "pod"), PodUidFault::NoPod),
        (without("/kubernetes.io/pod", "uid"), PodUidFault::NoUid),
        (with("/kubernetes.io/pod/uid", POD.replace('-', "")), PodUidFault::NotAUid),
        (with("/kubernetes.io/pod/uid", ""), PodUidFault::NotAUid),
    ];
    for (payload, fault) in cases {
        assert_eq!(judge(&token(&payload)), Err(Refusal::NoPodUid(fault)));
    }
}

#[test]
fn sub_and_kubernetes_io_must_name_one_service_account() {
    for subject in ["system:serviceaccount:shop:other", "system:serviceaccount:cart:shop", "shop:cart", ""] {
        assert_eq!(judge(&token(&with("/sub", subject))), Err(Refusal::MalformedToken(TokenFault::Subject)));
    }
    let missing = |claim| Err(Refusal::MalformedToken(TokenFault::NoClaim(claim)));
    assert_eq!(judge(&token(&without("", "sub"))), missing("sub"));
    assert_eq!(judge(&token(&without("/kubernetes.io", "namespace"))), missing("kubernetes.io.namespace"));
    let account = "kubernetes.io.serviceaccount.name";
    assert_eq!(judge(&token(&without("/kubernetes.io", "serviceaccount"))), missing(account));
    assert_eq!(judge(&token(&without("/kubernetes.io/serviceaccount", "name"))), missing(account));
}

#[test]
fn what_is_not_a_jwt_is_refused_with_its_reason() {
    let good = token(&payload());
    let (header, rest) = good.split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    let standard = STANDARD.encode(r#"{"alg":"RS256","k":"???"}"#);
    let cases = [
        ("abc".to_owned(), TokenFault::Segments),
        (format!("{good}.{signature}"), TokenFault::Segments),
        (format!("{header}.{body}"), TokenFault::Segments),
        (format!("Bearer {good}"), TokenFault::Bearer),
        (format!("bearer {good}"), TokenFault::Bearer),
        (format!("{standard}.{body}.{signature}"), TokenFault::Base64(TokenPart::Header)),
        (format!("{header}.{body}=.{signature}"), TokenFault::Base64(TokenPart::Payload)),
        (format!("{header}.{body}."), TokenFault::Base64(TokenPart::Signature)),
        (format!("{good} "), TokenFault::Base64(TokenPart::Signature)),
        (format!("{good}é"), TokenFault::Base64(TokenPart::Signature)),
        ("a".repeat(MAX_TOKEN_BYTES + 1), TokenFault::TooLong),
        (joined("[\"RS256\"]", "{}"), TokenFault::Object(TokenPart::Header)),
        (joined("{\"alg\":5}", "{}"), TokenFault::Object(TokenPart::Header)),
        (joined(r#"{"alg":"RS256"}"#, "{}{}"), TokenFault::Object(TokenPart::Payload)),
        (joined(r#"{"alg":"RS256"}"#, "[1,2,3,4,5,6,7]"), TokenFault::Object(TokenPart::Payload)),
        (joined(r#"{"alg":"RS256"}"#, "{}"), TokenFault::NoClaim("exp")),
    ];
    for (token, expected) in cases {
        assert_eq!(fault(&token), expected, "{token}");
    }
    assert_eq!(ServiceAccountToken::parse("").unwrap_err(), Refusal::NoToken);
}

#[test]
fn only_asymmetric_signing_methods_are_accepted() {
    let payload = payload().to_string();
    for alg in ["RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA"] {
        assert!(judge(&joined(&json!({ "alg": alg }).to_string(), &payload)).is_ok(), "{alg}");
    }
    let cases = [
        (json!({"alg": "none"}), TokenFault::Unsigned),
        (json!({"alg": "NoNe"}), TokenFault::Unsigned),
        (json!({"alg": "HS256"}), TokenFault::Symmetric),
        (json!({"alg": "rs256"}), TokenFault::UnknownAlgorithm),
        (json!({"alg": "RS257"}), TokenFault::UnknownAlgorithm),
        (json!({"alg": ""}), TokenFault::NoAlgorithm),
        (json!({"alg": null}), TokenFault::NoAlgorithm),
        (json!({"typ": "JWT"}), TokenFault::NoAlgorithm),
    ];
    for (header, expected) in cases {
        assert_eq!(fault(&joined(&header.to_string(), &payload)), expected);
    }
}

#[test]
fn a_claim_of_another_type_or_value_is_named() {
    let long = "a".repeat(254);
    let cases = [
        ("/exp", json!("1800000000"), "exp"),
        ("/exp", json!(-1), "exp"),
        ("/exp", json!(1e300), "exp"),
        ("/nbf", json!([]), "nbf"),
        ("/iat", json!("now"), "iat"),
        ("/iss", json!(7), "iss"),
        ("/aud", json!({}), "aud"),
        ("/aud", json!([1]), "aud"),
        ("/sub", json!(["a"]), "sub"),
        ("/kubernetes.io", json!("x"), "kubernetes.io"),
        ("/kubernetes.io", json!(["shop", {}, {}]), "kubernetes.io"),
        ("/kubernetes.io/namespace", json!("a/b"), "kubernetes.io.namespace"),
        ("/kubernetes.io/namespace", json!("a\nb"), "kubernetes.io.namespace"),
        ("/kubernetes.io/pod", json!("x"), "kubernetes.io.pod"),
        ("/kubernetes.io/pod/uid", json!(1), "kubernetes.io.pod"),
        ("/kubernetes.io/pod/name", json!("\u{1b}[2J"), "kubernetes.io.pod"),
        ("/kubernetes.io/serviceaccount/name", json!(long), "kubernetes.io.serviceaccount"),
    ];
    for (pointer, value, claim) in cases {
        assert_eq!(fault(&token(&with(pointer, value))), TokenFault::Claim(claim), "{pointer}");
    }
}

#[test]
fn a_claim_that_stands_twice_is_refused() {
    let twice = |inside: &str, add: &str| {
        let payload = payload().to_string();
        joined(r#"{"alg":"RS256"}"#, &payload.replacen(inside, &format!("{inside}{add},"), 1))
    };
    assert_eq!(fault(&twice("{", r#""aud":"other""#)), TokenFault::Object(TokenPart::Payload));
    let other = r#""uid":"ffffffff-5d1b-4f5e-9a37-77d0f0a4be01""#;
    assert_eq!(fault(&twice(r#""pod":{"#, other)), TokenFault::Claim("kubernetes.io.pod"));
    let header = joined(r#"{"alg":"none","alg":"RS256"}"#, &payload().to_string());
    assert_eq!(fault(&header), TokenFault::Object(TokenPart::Header));
}

#[test]
fn a_token_and_its_digest_cannot_be_printed() {
    let token = token(&payload());
    let parsed = ServiceAccountToken::parse(&token).unwrap();
    assert_eq!(format!("{parsed:?}"), "ServiceAccountToken { .. }");
    assert_eq!(parsed.secret(), token);
    assert_eq!(format!("{:?}", TokenDigest::of(&token)), "TokenDigest(…)");
}

#[test]
fn a_digest_is_the_tokens_sha256() {
    assert_eq!(TokenDigest::of("a.b.c"), TokenDigest::of("a.b.c"));
    assert_ne!(TokenDigest::of("a.b.c"), TokenDigest::of("a.b.d"));
    let abc = [0xba, 0x78, 0x16, 0xbf];
    assert_eq!(TokenDigest::of("abc").0[..4], abc);
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC*") {
        let _ = judge(&text);
    }

    #[test]
    fn no_payload_makes_the_reader_panic(header in ".{0,40}", payload in ".{0,80}") {
        let _ = judge(&joined(&header, &payload));
        let _ = judge(&joined(r#"{"alg":"RS256"}"#, &payload));
    }

    #[test]
    fn no_change_of_a_byte_makes_the_reader_panic(at in 0usize..800, byte in 0u8..128) {
        let mut bytes = token(&payload()).into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = judge(&String::from_utf8(bytes).unwrap());
    }

    #[test]
    fn no_change_of_the_json_names_another_pod_than_it_says(at in 0usize..600, byte in 32u8..127) {
        let mut json = payload().to_string().into_bytes();
        let at = at % json.len();
        json[at] = byte;
        let text = String::from_utf8(json).unwrap();
        if let Ok(claims) = judge(&joined(r#"{"alg":"RS256"}"#, &text)) {
            prop_assert!(text.to_lowercase().contains(&claims.pod_uid.to_string()));
        }
    }
}
