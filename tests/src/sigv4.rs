//! AWS Signature Version 4, by which the stand-in knows the node and asks STS itself.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>
use std::{fmt::Write as _, time::SystemTime};

use ring::{digest, hmac};
use serde::{Deserialize, Serialize};

use crate::time;

/// The only algorithm that there is.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// An access key with its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AccessKey {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: String,
}

/// Where and when a signature holds: `20261124/eu-central-1/eks-auth/aws4_request`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Eight digits.
    pub date: String,
    /// The region.
    pub region: String,
    /// The service's name for signing.
    pub service: String,
}

/// What is signed of a request.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its path, as it was sent.
    pub path: &'a str,
    /// What follows the question mark, its parameters in order.
    pub query: &'a str,
    /// The signed headers: names in lower case, in order.
    pub headers: &'a [(String, String)],
    /// Its body.
    pub body: &'a [u8],
}

/// What an `Authorization` header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// The access key's id.
    pub access_key_id: String,
    /// Where and when it holds.
    pub scope: Scope,
    /// Names of the signed headers.
    pub signed_headers: Vec<String>,
    /// The signature.
    pub signature: String,
}

impl Authorization {
    /// Reads `AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…`.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let parts = header.strip_prefix(ALGORITHM)?;
        let part = |name: &str| {
            let named = parts.split(',').map(str::trim).find_map(|part| part.strip_prefix(name));
            named.and_then(|value| value.strip_prefix('='))
        };
        let [access_key_id, date, region, service, "aws4_request"] =
            <[&str; 5]>::try_from(part("Credential")?.split('/').collect::<Vec<_>>()).ok()?
        else {
            return None;
        };
        Some(Self {
            access_key_id: access_key_id.to_owned(),
            scope: Scope { date: date.to_owned(), region: region.to_owned(), service: service.to_owned() },
            signed_headers: part("SignedHeaders")?.split(';').map(str::to_owned).collect(),
            signature: part("Signature")?.to_owned(),
        })
    }
}

/// The signature of a request that was made at `timestamp` (`20261124T023652Z`).
#[must_use]
pub fn signature(secret: &str, scope: &Scope, timestamp: &str, request: &Signed<'_>) -> String {
    let names: Vec<&str> = request.headers.iter().map(|(name, _)| name.as_str()).collect();
    let headers = request.headers.iter().fold(String::new(), |mut text, (name, value)| {
        let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
        let _ = writeln!(text, "{name}:{value}");
        text
    });
    let canonical = format!(
        "{}\n{}\n{}\n{headers}\n{}\n{}",
        request.method,
        request.path,
        request.query,
        names.join(";"),
        hex(digest::digest(&digest::SHA256, request.body).as_ref())
    );
    let Scope { date, region, service } = scope;
    let hashed = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    let to_sign = format!("{ALGORITHM}\n{timestamp}\n{date}/{region}/{service}/aws4_request\n{hashed}");
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [date.as_str(), region, service, "aws4_request", &to_sign] {
        key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
    }
    hex(&key)
}

/// The headers that sign a request to `host` now: `host`, `x-amz-date` and `authorization`.
#[must_use]
pub fn sign(key: &AccessKey, region: &str, service: &str, host: &str, request: &Signed<'_>) -> Vec<(String, String)> {
    let timestamp = time::basic_format(SystemTime::now());
    let scope = Scope {
        date: timestamp.get(..8).unwrap_or_default().to_owned(),
        region: region.to_owned(),
        service: service.to_owned(),
    };
    let headers = [("host".to_owned(), host.to_owned()), ("x-amz-date".to_owned(), timestamp.clone())];
    let signature = signature(&key.secret, &scope, &timestamp, &Signed { headers: &headers, ..*request });
    let authorization = format!(
        "{ALGORITHM} Credential={}/{}/{region}/{service}/aws4_request, SignedHeaders=host;x-amz-date, Signature={signature}",
        key.id, scope.date
    );
    let mut signed = Vec::from(headers);
    signed.push(("authorization".to_owned(), authorization));
    signed
}

/// Hexadecimal digits in lower case.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of AWS's documentation (`get-vanilla` of its signature test suite).
    #[test]
    fn the_signature_of_the_test_suite_comes_out() {
        let scope = Scope { date: "20150830".into(), region: "us-east-1".into(), service: "service".into() };
        let headers = [
            ("host".to_owned(), "example.amazonaws.com".to_owned()),
            ("x-amz-date".to_owned(), "20150830T123600Z".to_owned()),
        ];
        let request = Signed { method: "GET", path: "/", query: "", headers: &headers, body: b"" };
        let signed = signature("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", &scope, "20150830T123600Z", &request);
        assert_eq!(signed, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31");
    }

    #[test]
    fn an_authorization_header_is_read() {
        let header = "AWS4-HMAC-SHA256 Credential=AKID/20150830/r/eks-auth/aws4_request, SignedHeaders=host;x-amz-date, \
                      Signature=abc";
        let read = Authorization::parse(header).map(|a| (a.access_key_id, a.scope.service, a.signed_headers.len()));
        assert_eq!(read, Some(("AKID".to_owned(), "eks-auth".to_owned(), 2)));
        assert_eq!(Authorization::parse("Bearer x"), None);
    }
}
