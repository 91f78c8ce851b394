//! Credentials as EKS Auth granted them and as they are served.
use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use aws_smithy_types::{DateTime, date_time::Format};
use bytes::Bytes;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::sys::Locked;

/// What EKS Auth answered. The strings are wiped when it is dropped.
pub struct Grant {
    /// Names the credentials in CloudTrail; no secret.
    pub access_key_id: String,
    /// The secret key.
    pub secret_access_key: Zeroizing<String>,
    /// The session token.
    pub session_token: Zeroizing<String>,
    /// The account of the assumed role.
    pub account_id: String,
    /// The association that was found (`a-…`); empty when EKS Auth names none.
    pub association_id: String,
    /// When AWS stops accepting them.
    pub expires_at: SystemTime,
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("access_key_id", &self.access_key_id)
            .field("association_id", &self.association_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Credentials ready to be served: the body is written once, and shared by every answer.
pub struct Issued {
    /// The body of the answer, kept out of swap. Its memory is wiped when the last answer that uses it has been sent.
    pub body: Bytes,
    /// Names the credentials in CloudTrail; no secret.
    pub access_key_id: String,
    /// The association they come from.
    pub association_id: String,
    /// Both names, for whoever keeps them longer than the credentials.
    pub names: Arc<CredentialNames>,
    /// When they were fetched.
    pub issued_at: SystemTime,
    /// When AWS stops accepting them.
    pub expires_at: SystemTime,
}

/// What names credentials, and is no secret.
#[derive(Debug, PartialEq, Eq)]
pub struct CredentialNames {
    /// In CloudTrail.
    pub access_key_id: String,
    /// The association they come from.
    pub association_id: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("access_key_id", &self.access_key_id)
            .field("association_id", &self.association_id)
            .field("issued_at", &self.issued_at)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// The members in the order of the official agent.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Body<'a> {
    access_key_id: &'a str,
    secret_access_key: &'a str,
    token: &'a str,
    account_id: &'a str,
    expiration: &'a str,
}

/// The grant cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Unservable {
    /// Its expiration is not a date that can be written.
    #[error("EKS Auth gave an expiration that is no date")]
    Expiration,
    /// It does not fit into JSON.
    #[error("EKS Auth gave credentials that cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Issued {
    /// Writes the body.
    pub fn new(grant: &Grant, issued_at: SystemTime) -> Result<Self, Unservable> {
        let expiration = written(grant.expires_at).ok_or(Unservable::Expiration)?;
        let secrets = grant.secret_access_key.len() + grant.session_token.len();
        // Room for everything, so that growing leaves no copy of a secret behind in freed memory; JSON escapes at most
        // six bytes for one, and AWS's alphabets need none.
        let mut body = Zeroizing::new(Vec::with_capacity(6 * secrets + 512));
        serde_json::to_writer(
            &mut *body,
            &Body {
                access_key_id: &grant.access_key_id,
                secret_access_key: &grant.secret_access_key,
                token: &grant.session_token,
                account_id: &grant.account_id,
                expiration: &expiration,
            },
        )?;
        Ok(Self {
            body: Bytes::from_owner(Locked::copy_of(&body)),
            access_key_id: grant.access_key_id.clone(),
            association_id: grant.association_id.clone(),
            names: Arc::new(CredentialNames {
                access_key_id: grant.access_key_id.clone(),
                association_id: grant.association_id.clone(),
            }),
            issued_at,
            expires_at: grant.expires_at,
        })
    }

    /// Whether AWS still accepts them.
    #[must_use]
    pub fn valid_at(&self, now: SystemTime) -> bool {
        now < self.expires_at
    }
}

/// RFC 3339 in UTC with `Z` and at most milliseconds: JS and Rust SDKs read nothing else.
pub(crate) fn written(instant: SystemTime) -> Option<String> {
    let since_epoch = instant.duration_since(UNIX_EPOCH).ok()?;
    let seconds = i64::try_from(since_epoch.as_secs()).ok()?;
    let date = DateTime::from_secs_and_nanos(seconds, since_epoch.subsec_millis() * 1_000_000);
    date.fmt(Format::DateTime).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    pub(crate) fn grant(expires_at: SystemTime) -> Grant {
        Grant {
            access_key_id: "ASIAEXAMPLE".to_owned(),
            secret_access_key: Zeroizing::new("planted-secret".to_owned()),
            session_token: Zeroizing::new("planted-session".to_owned()),
            account_id: "123456789012".to_owned(),
            association_id: "a-1".to_owned(),
            expires_at,
        }
    }

    fn at(millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(millis)
    }

    #[test]
    fn the_body_is_the_contracts_to_the_byte() {
        let issued = Issued::new(&grant(at(1_773_786_454_000)), at(0)).unwrap();
        assert_eq!(
            std::str::from_utf8(&issued.body).unwrap(),
            concat!(
                r#"{"AccessKeyId":"ASIAEXAMPLE","SecretAccessKey":"planted-secret","Token":"planted-session","#,
                r#""AccountId":"123456789012","Expiration":"2026-03-17T22:27:34Z"}"#
            )
        );
    }

    #[test]
    fn expirations_have_milliseconds_at_most_and_no_trailing_zeros() {
        for (instant, text) in [
            (at(1_773_786_454_000), "2026-03-17T22:27:34Z"),
            (at(1_773_786_454_500), "2026-03-17T22:27:34.5Z"),
            (at(1_773_786_454_123), "2026-03-17T22:27:34.123Z"),
            (at(1_773_786_454_123) + Duration::from_nanos(456_789), "2026-03-17T22:27:34.123Z"),
            (at(1_773_786_454_010), "2026-03-17T22:27:34.01Z"),
        ] {
            assert_eq!(written(instant).as_deref(), Some(text));
        }
    }

    #[test]
    fn secrets_are_not_in_debug_output() {
        let grant = grant(at(1_773_786_454_000));
        let issued = Issued::new(&grant, at(0)).unwrap();
        let shown = format!("{grant:?} {issued:?}");
        assert!(shown.contains("ASIAEXAMPLE") && !shown.contains("planted"), "{shown}");
    }

    #[test]
    fn an_expiration_before_the_epoch_is_refused() {
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert!(matches!(Issued::new(&grant(before), before), Err(Unservable::Expiration)));
    }
}
