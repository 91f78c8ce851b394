//! Verification of service account tokens, as an OIDC relying party does it.
use std::sync::{PoisonError, RwLock};

use anyhow::{Context as _, Result, anyhow, ensure};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use serde::{Deserialize, de::DeserializeOwned};

use super::answer::Failure;
use crate::{
    time,
    token::{AUDIENCE, Subject},
};

/// Knows the issuer's keys.
#[derive(Debug)]
pub(super) struct Verifier {
    issuer: String,
    keys: RwLock<Vec<Key>>,
}

#[derive(Debug)]
struct Key {
    id: String,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<PublishedKey>,
}

#[derive(Deserialize)]
struct PublishedKey {
    kid: String,
    n: String,
    e: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

#[derive(Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: u64,
    nbf: u64,
    iss: String,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    pod: Named,
    serviceaccount: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    uid: String,
}

impl Verifier {
    pub(super) fn new(jwks: &[u8], issuer: &str) -> Result<Self> {
        Ok(Self { issuer: issuer.to_owned(), keys: RwLock::new(read(jwks)?) })
    }

    /// From now on the issuer's keys are these, and those before are not known.
    pub(super) fn replace_keys(&self, jwks: &[u8]) -> Result<()> {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = read(jwks)?;
        Ok(())
    }

    /// Whose token it is, if it is a good one.
    pub(super) fn verify(&self, token: &str) -> Result<Subject, Failure> {
        let invalid = |why: &str| Failure::new(400, "InvalidTokenException", why);
        let segments: Vec<&str> = token.split('.').collect();
        let Ok([head, body, signature]) = <[&str; 3]>::try_from(segments) else {
            return Err(invalid("The token is not a JWT"));
        };
        let header: Header = decode(head).ok_or_else(|| invalid("The token's header cannot be read"))?;
        if header.alg != "RS256" {
            return Err(invalid("The token is not signed with RS256"));
        }
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let key = keys.iter().find(|key| key.id == header.kid).ok_or_else(|| invalid("The key is not known"))?;
        let signature =
            BASE64_URL_SAFE_NO_PAD.decode(signature).map_err(|_| invalid("The signature cannot be read"))?;
        RsaPublicKeyComponents { n: &key.modulus, e: &key.exponent }
            .verify(&RSA_PKCS1_2048_8192_SHA256, format!("{head}.{body}").as_bytes(), &signature)
            .map_err(|_| invalid("The token's signature is invalid"))?;
        let claims: Claims = decode(body).ok_or_else(|| invalid("The token's claims cannot be read"))?;
        self.check(claims)
    }

    fn check(&self, claims: Claims) -> Result<Subject, Failure> {
        let invalid = |why: &str| Failure::new(400, "InvalidTokenException", why);
        let now = time::now();
        if claims.iss != self.issuer {
            return Err(invalid("The token's issuer is not the cluster's"));
        }
        if !claims.aud.iter().any(|audience| audience == AUDIENCE) {
            return Err(invalid("The audience in the token is not valid"));
        }
        if claims.exp <= now {
            return Err(Failure::new(400, "ExpiredTokenException", "Token is expired"));
        }
        if claims.nbf > now + 5 {
            return Err(invalid("The token is not valid yet"));
        }
        let Kubernetes { namespace, pod, serviceaccount } = claims.kubernetes;
        if claims.sub != format!("system:serviceaccount:{namespace}:{}", serviceaccount.name) {
            return Err(invalid("The token's subject does not match its claims"));
        }
        Ok(Subject { namespace, service_account: serviceaccount.name, pod_name: pod.name, pod_uid: pod.uid })
    }
}

fn read(jwks: &[u8]) -> Result<Vec<Key>> {
    let set: KeySet = serde_json::from_slice(jwks).context("the key set cannot be read")?;
    ensure!(!set.keys.is_empty(), "the key set has no key");
    let number = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|error| anyhow!("key set: {error}"));
    let key = |key: PublishedKey| Ok(Key { id: key.kid, modulus: number(&key.n)?, exponent: number(&key.e)? });
    set.keys.into_iter().map(key).collect()
}

/// The pod UID that a token names, whoever signed it.
pub(super) fn unverified_pod_uid(token: &str) -> Option<String> {
    decode::<Claims>(token.split('.').nth(1)?).map(|claims| claims.kubernetes.pod.uid)
}

fn decode<T: DeserializeOwned>(segment: &str) -> Option<T> {
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(segment).ok()?).ok()
}
