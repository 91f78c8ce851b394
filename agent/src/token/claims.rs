//! From the three parts of a JWT to typed claims.
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::MAX_TOKEN_BYTES;
use crate::refusal::{TokenFault, TokenPart};

/// Signing methods that a service account issuer may use: asymmetric ones.
const ALGORITHMS: [&str; 10] =
    ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "EdDSA"];

/// Methods with a shared secret.
const SYMMETRIC: [&str; 3] = ["HS256", "HS384", "HS512"];

/// The end of year 9999 in seconds, the last instant that RFC 3339 can write.
const LAST_SECOND: f64 = 253_402_300_799.0;

/// Longest name that Kubernetes gives to anything.
const MAX_NAME: usize = 253;

/// The claims that matter here, each of its type, none yet compared with anything.
pub(super) struct RawClaims {
    pub(super) expires_at: SystemTime,
    pub(super) not_before: Option<SystemTime>,
    pub(super) audience: Vec<String>,
    pub(super) subject: Option<String>,
    pub(super) kubernetes: Option<Kubernetes>,
}

/// The claim `kubernetes.io`.
pub(super) struct Kubernetes {
    pub(super) namespace: Option<Box<str>>,
    pub(super) pod: Option<Named>,
    pub(super) service_account: Option<Named>,
}

/// An object that the token names.
pub(super) struct Named {
    pub(super) name: Option<Box<str>>,
    pub(super) uid: Option<String>,
}

/// Reads the claims of a token.
pub(super) fn read(raw: &str) -> Result<RawClaims, TokenFault> {
    if raw.len() > MAX_TOKEN_BYTES {
        return Err(TokenFault::TooLong);
    }
    if raw.get(..7).is_some_and(|prefix| prefix.eq_ignore_ascii_case("bearer ")) {
        return Err(TokenFault::Bearer);
    }
    let mut parts = raw.split('.');
    let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenFault::Segments);
    };
    let header = decode(header, TokenPart::Header)?;
    check_algorithm(&header)?;
    let payload = decode(payload, TokenPart::Payload)?;
    decode(signature, TokenPart::Signature)?;
    read_payload(&payload)
}

fn decode(part: &str, name: TokenPart) -> Result<Vec<u8>, TokenFault> {
    match URL_SAFE_NO_PAD.decode(part) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err(TokenFault::Base64(name)),
    }
}

/// Members are taken raw first, so that a fault can name its claim. A member that appears twice makes serde refuse the
/// whole object, and that is wanted: of two `aud` or two `kubernetes.io` one reader takes the first, another the last,
/// and the agent would judge by one value what EKS Auth grants by the other.
#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    exp: Option<&'a RawValue>,
    #[serde(borrow)]
    nbf: Option<&'a RawValue>,
    #[serde(borrow)]
    iat: Option<&'a RawValue>,
    #[serde(borrow)]
    iss: Option<&'a RawValue>,
    #[serde(borrow)]
    aud: Option<&'a RawValue>,
    #[serde(borrow)]
    sub: Option<&'a RawValue>,
    #[serde(borrow, rename = "kubernetes.io")]
    kubernetes: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct KubernetesMembers<'a> {
    #[serde(borrow)]
    namespace: Option<&'a RawValue>,
    #[serde(borrow)]
    pod: Option<&'a RawValue>,
    #[serde(borrow)]
    serviceaccount: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct NamedMembers {
    name: Option<String>,
    uid: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Header {
    alg: Option<String>,
}

fn check_algorithm(header: &[u8]) -> Result<(), TokenFault> {
    let header: Header = object(header).ok_or(TokenFault::Object(TokenPart::Header))?;
    match header.alg.as_deref() {
        None | Some("") => Err(TokenFault::NoAlgorithm),
        Some(alg) if ALGORITHMS.contains(&alg) => Ok(()),
        Some(alg) if alg.eq_ignore_ascii_case("none") => Err(TokenFault::Unsigned),
        Some(alg) if SYMMETRIC.contains(&alg) => Err(TokenFault::Symmetric),
        Some(_) => Err(TokenFault::UnknownAlgorithm),
    }
}

fn read_payload(payload: &[u8]) -> Result<RawClaims, TokenFault> {
    let members: Payload<'_> = object(payload).ok_or(TokenFault::Object(TokenPart::Payload))?;
    // Not used, but no issuer writes them otherwise.
    time("iat", members.iat)?;
    typed::<String>("iss", members.iss)?;
    let audience = match typed("aud", members.aud)? {
        None => Vec::new(),
        Some(Audience::One(audience)) => vec![audience],
        Some(Audience::Many(audiences)) => audiences,
    };
    Ok(RawClaims {
        expires_at: time("exp", members.exp)?.ok_or(TokenFault::NoClaim("exp"))?,
        not_before: time("nbf", members.nbf)?,
        audience,
        subject: typed("sub", members.sub)?,
        kubernetes: members.kubernetes.map(read_kubernetes).transpose()?,
    })
}

fn read_kubernetes(claim: &RawValue) -> Result<Kubernetes, TokenFault> {
    let members: KubernetesMembers<'_> = object(claim.get().as_bytes()).ok_or(TokenFault::Claim("kubernetes.io"))?;
    Ok(Kubernetes {
        namespace: name("kubernetes.io.namespace", typed("kubernetes.io.namespace", members.namespace)?)?,
        pod: named("kubernetes.io.pod", members.pod)?,
        service_account: named("kubernetes.io.serviceaccount", members.serviceaccount)?,
    })
}

fn named(claim: &'static str, value: Option<&RawValue>) -> Result<Option<Named>, TokenFault> {
    let Some(value) = value else { return Ok(None) };
    let members: NamedMembers = object(value.get().as_bytes()).ok_or(TokenFault::Claim(claim))?;
    Ok(Some(Named { name: name(claim, members.name)?, uid: members.uid }))
}

/// An object whose known members appear at most once. An array is refused, although serde would take it for a struct, and
/// so is what is not UTF-8, which serde would not notice in members that nobody reads: no other reader takes it for JSON.
fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    let json = str::from_utf8(json).ok()?;
    if json.trim_ascii_start().starts_with('{') { serde_json::from_str(json).ok() } else { None }
}

fn typed<T: DeserializeOwned>(claim: &'static str, value: Option<&RawValue>) -> Result<Option<T>, TokenFault> {
    value.map(|value| serde_json::from_str(value.get())).transpose().map_err(|_| TokenFault::Claim(claim))
}

/// Seconds since 1970, fractions allowed (RFC 7519's `NumericDate`).
fn time(claim: &'static str, value: Option<&RawValue>) -> Result<Option<SystemTime>, TokenFault> {
    let Some(seconds) = typed::<f64>(claim, value)? else { return Ok(None) };
    if !(0.0..=LAST_SECOND).contains(&seconds) {
        return Err(TokenFault::Claim(claim));
    }
    // Within the range just checked the sum fits; the error is mapped all the same.
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs_f64(seconds)).map(Some).ok_or(TokenFault::Claim(claim))
}

/// A name as Kubernetes writes one. The token is unverified and its names go to the log, so nothing else passes.
fn name(claim: &'static str, value: Option<String>) -> Result<Option<Box<str>>, TokenFault> {
    let Some(value) = value else { return Ok(None) };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    if value.is_empty() || value.len() > MAX_NAME || !value.bytes().all(plain) {
        return Err(TokenFault::Claim(claim));
    }
    Ok(Some(value.into_boxed_str()))
}
