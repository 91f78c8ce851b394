use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;

use crate::token::{AUDIENCE, CLOCK_SKEW, Claims, ServiceAccountToken};

/// A token as it is presented; or, as random bytes are seldom base64 of JSON, its payload, or its header and its payload
/// with an empty line between.
pub fn token(input: &[u8]) {
    let (head, body) = super::head_and_body(input);
    let [header, payload, both] =
        [br#"{"alg":"RS256"}"#, input, head.as_bytes()].map(|part| URL_SAFE_NO_PAD.encode(part));
    judge(&String::from_utf8_lossy(input));
    judge(&format!("{header}.{payload}.c2ln"));
    judge(&format!("{both}.{}.c2ln", URL_SAFE_NO_PAD.encode(body)));
}

/// What is read from a token is what another reader finds in it, and it is in force.
fn judge(raw: &str) {
    let now = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let Ok(claims) = ServiceAccountToken::parse(raw).and_then(|token| token.validate(now)) else { return };
    let parts: Vec<&str> = raw.split('.').collect();
    assert_eq!(parts.len(), 3, "three parts");
    let [header, payload] = [parts[0], parts[1]].map(|part| {
        let json = String::from_utf8(URL_SAFE_NO_PAD.decode(part).expect("base64url")).expect("UTF-8");
        serde_json::from_str::<Value>(&json).map_err(|error| (json, error))
    });
    let (header, payload) = match (header, payload) {
        (Ok(header), Ok(payload)) => (header, payload),
        // JSON all the same, in a member that nobody reads: half a character, numbers and depths that not all can hold.
        (Err((json, error)), _) | (_, Err((json, error))) => {
            let error = error.to_string();
            let beyond = ["hex escape", "number out of range", "recursion limit"];
            return assert!(beyond.iter().any(|what| error.contains(what)), "{error}: {json}");
        }
    };
    let algorithm = header["alg"].as_str().expect("a signing method");
    assert!(!algorithm.starts_with("HS") && !algorithm.eq_ignore_ascii_case("none"), "{algorithm}");
    agrees(&claims, &payload, now);
    round_trip(&claims, now);
}

fn agrees(claims: &Claims, payload: &Value, now: SystemTime) {
    let kubernetes = &payload["kubernetes.io"];
    let uid = kubernetes["pod"]["uid"].as_str().expect("a UID");
    assert!(uid.eq_ignore_ascii_case(&claims.pod_uid.to_string()), "{uid} was read as {}", claims.pod_uid);
    assert_eq!(kubernetes["namespace"].as_str(), Some(&*claims.namespace));
    assert_eq!(kubernetes["serviceaccount"]["name"].as_str(), Some(&*claims.service_account));
    assert_eq!(kubernetes["pod"]["name"].as_str(), claims.pod_name.as_deref());
    let subject = format!("system:serviceaccount:{}:{}", claims.namespace, claims.service_account);
    assert_eq!(payload["sub"].as_str(), Some(&*subject));
    match &payload["aud"] {
        Value::String(audience) => assert_eq!(audience, AUDIENCE),
        Value::Array(audiences) => assert!(audiences.iter().any(|audience| audience == AUDIENCE)),
        other => assert!(other.is_array(), "no audience: {other}"),
    }
    let seconds = |name: &str| payload[name].as_f64().map(|at| UNIX_EPOCH + Duration::from_secs_f64(at));
    assert_eq!(seconds("exp"), Some(claims.expires_at));
    assert!(now < claims.expires_at + CLOCK_SKEW, "it has ended");
    assert!(seconds("nbf").is_none_or(|from| from <= now + CLOCK_SKEW), "it has not begun");
    for name in [Some(&claims.namespace), Some(&claims.service_account), claims.pod_name.as_ref()].into_iter().flatten()
    {
        assert!(!name.contains(|c: char| c.is_control() || c == ':' || c == '/'), "{name:?} goes to the log");
    }
}

/// Claims written down as a token are read as the same claims.
fn round_trip(claims: &Claims, now: SystemTime) {
    let exp = claims.expires_at.duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    let written = serde_json::json!({
        "aud": AUDIENCE,
        "exp": exp,
        "sub": format!("system:serviceaccount:{}:{}", claims.namespace, claims.service_account),
        "kubernetes.io": {
            "namespace": claims.namespace,
            "pod": {"name": claims.pod_name, "uid": claims.pod_uid.to_string()},
            "serviceaccount": {"name": claims.service_account},
        },
    });
    let [header, payload] = [r#"{"alg":"ES256"}"#, &written.to_string()].map(|part| URL_SAFE_NO_PAD.encode(part));
    let raw = format!("{header}.{payload}.c2ln");
    let read = ServiceAccountToken::parse(&raw).and_then(|token| token.validate(now)).expect("it was valid before");
    let rounding = Duration::from_micros(100);
    assert!(read.expires_at < claims.expires_at + rounding && claims.expires_at < read.expires_at + rounding);
    assert_eq!(Claims { expires_at: claims.expires_at, ..read }, *claims);
}
