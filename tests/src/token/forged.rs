//! Tokens that must not be accepted, each wrong in one way.
use anyhow::Result;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{Claims, Issuer, Subject, signing_input};
use crate::time;

/// In which way a token is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgery {
    /// `alg` is `none`, and there is no signature.
    AlgorithmNone,
    /// Signed with a shared secret: the issuer's public key.
    SharedSecret,
    /// Signed with another key under the issuer's key id.
    OtherKey,
    /// A claim was changed after it was signed.
    ChangedClaims,
    /// For another audience.
    WrongAudience,
    /// Expired an hour ago.
    Expired,
    /// Not valid for an hour yet.
    NotYetValid,
    /// Signed by another issuer, so its URL says.
    OtherIssuer,
    /// Not bound to a pod.
    NoPodUid,
    /// Two segments only.
    TwoSegments,
    /// A header that is not base64url.
    BadBase64,
    /// Claims that are not JSON.
    BadJson,
    /// `exp` is text.
    ClaimOfWrongType,
    /// No `alg` in the header.
    NoAlgorithm,
    /// `Bearer ` before the token.
    Bearer,
}

impl Forgery {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::AlgorithmNone,
        Self::SharedSecret,
        Self::OtherKey,
        Self::ChangedClaims,
        Self::WrongAudience,
        Self::Expired,
        Self::NotYetValid,
        Self::OtherIssuer,
        Self::NoPodUid,
        Self::TwoSegments,
        Self::BadBase64,
        Self::BadJson,
        Self::ClaimOfWrongType,
        Self::NoAlgorithm,
        Self::Bearer,
    ];
}

impl Issuer {
    /// A token for this subject that is wrong in the given way and right in every other.
    pub fn forge(&self, subject: &Subject, forgery: Forgery) -> Result<String> {
        let claims = Claims::of(subject);
        let (good, now) = (self.sign(&claims)?, time::now());
        let (head, rest) = good.split_once('.').unwrap_or_default();
        let (body, signature) = rest.split_once('.').unwrap_or_default();
        Ok(match forgery {
            Forgery::AlgorithmNone => format!("{}.", signing_input(&json!({"alg": "none"}), &claims.0)),
            Forgery::SharedSecret => self.sign_hs256(&claims),
            Forgery::OtherKey => {
                let header = json!({"alg": "RS256", "kid": self.key_id});
                Self::generate()?.sign_with_header(&header, &claims)?
            }
            Forgery::ChangedClaims => {
                let changed = claims.with("jti", json!("another")).0.to_string();
                format!("{head}.{}.{signature}", BASE64_URL_SAFE_NO_PAD.encode(changed))
            }
            Forgery::WrongAudience => self.sign(&claims.with("aud", json!(["sts.amazonaws.com"])))?,
            Forgery::Expired => self.sign(&claims.with("exp", json!(now - 3600)).with("nbf", json!(now - 90_000)))?,
            Forgery::NotYetValid => self.sign(&claims.with("nbf", json!(now + 3600)))?,
            Forgery::OtherIssuer => self.sign(&claims.with("iss", json!("https://oidc.example.com/id/0")))?,
            Forgery::NoPodUid => self.sign(&claims.with("kubernetes.io/pod", Value::Null))?,
            Forgery::TwoSegments => format!("{head}.{body}"),
            Forgery::BadBase64 => format!("{head}*.{body}.{signature}"),
            Forgery::BadJson => {
                format!("{head}.{}.{signature}", BASE64_URL_SAFE_NO_PAD.encode("{\"aud\": [\"pods.eks"))
            }
            Forgery::ClaimOfWrongType => self.sign(&claims.with("exp", json!("tomorrow")))?,
            Forgery::NoAlgorithm => {
                format!("{}.{signature}", signing_input(&json!({"kid": self.key_id}), &claims.0))
            }
            Forgery::Bearer => format!("Bearer {good}"),
        })
    }
}
