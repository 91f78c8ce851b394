//! Whether a call comes from the node: its signature is computed anew and compared.
use std::{
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use hyper::http::request::Parts;

use super::answer::Failure;
use crate::{
    sigv4::{self, AccessKey, Authorization, Signed},
    time,
};

/// The service's name in signatures.
const SERVICE: &str = "eks-auth";

/// The nodes that are known: one.
#[derive(Debug)]
pub(super) struct Nodes {
    key: Mutex<AccessKey>,
    region: String,
}

impl Nodes {
    pub(super) fn new(key: AccessKey, region: String) -> Self {
        Self { key: Mutex::new(key), region }
    }

    /// From now on the node has this key, and the one before is not known.
    pub(super) fn replace_key(&self, key: AccessKey) {
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = key;
    }

    /// Verifies the signature of a call.
    pub(super) fn verify(&self, head: &Parts, body: &[u8]) -> Result<(), Failure> {
        let key = self.key.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        let authorization = header("authorization")
            .ok_or_else(|| Failure::new(403, "MissingAuthenticationTokenException", "Missing Authentication Token"))?;
        let signed = Authorization::parse(authorization)
            .ok_or_else(|| Failure::new(400, "IncompleteSignature", "The Authorization header cannot be read."))?;
        if signed.access_key_id != key.id {
            let message = "The security token included in the request is invalid.";
            return Err(Failure::new(403, "UnrecognizedClientException", message));
        }
        let invalid = |message: &str| Failure::new(403, "InvalidSignatureException", message);
        if signed.scope.service != SERVICE || signed.scope.region != self.region {
            return Err(invalid("Credential should be scoped to a valid region and to service: 'eks-auth'."));
        }
        let timestamp = header("x-amz-date").unwrap_or_default();
        let today = time::basic_format(SystemTime::now());
        if timestamp.get(..8) != Some(&*signed.scope.date) || timestamp.get(..8) != today.get(..8) {
            return Err(invalid("Signature expired."));
        }
        for must in ["host", "x-amz-date"] {
            if !signed.signed_headers.iter().any(|name| name == must) {
                return Err(invalid(&format!("'{must}' must be a signed header.")));
            }
        }
        let headers: Vec<(String, String)> = signed
            .signed_headers
            .iter()
            .map(|name| (name.clone(), header(name).unwrap_or_default().to_owned()))
            .collect();
        let request = Signed {
            method: head.method.as_str(),
            path: head.uri.path(),
            query: head.uri.query().unwrap_or_default(),
            headers: &headers,
            body,
        };
        if sigv4::signature(&key.secret, &signed.scope, timestamp, &request) == signed.signature {
            Ok(())
        } else {
            Err(invalid("The request signature we calculated does not match the signature you provided."))
        }
    }
}
