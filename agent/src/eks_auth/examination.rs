//! One call without a pod: whether EKS Auth can be reached, takes the node's signature, and agrees on the time.
use std::time::SystemTime;

use aws_sdk_eksauth::error::SdkError;
use aws_smithy_types::{DateTime, date_time::Format};

use super::{EksAuth, failure};
use crate::refusal::Refusal;

/// What is shown in a token's place. It is none, so that nothing can be granted for it.
const NO_TOKEN: &str = "doctor";

/// What the call found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examined {
    /// How it ended.
    pub outcome: Outcome,
    /// What EKS Auth's clock said, to the second.
    pub date: Option<SystemTime>,
}

/// How the call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// EKS Auth took the signature and refused the token: the node's role may call it. In EKS Auth's words.
    Permitted(String),
    /// For the node's or EKS Auth's reasons.
    Failed(Refusal),
}

impl EksAuth {
    /// Makes the call. CloudTrail shows it as one that failed.
    pub async fn examine(&self) -> Examined {
        let call = self.client.assume_role_for_pod_identity().cluster_name(&*self.cluster).token(NO_TOKEN).send().await;
        let date = match &call {
            Err(SdkError::ServiceError(error)) => error.raw().headers().get("date").and_then(instant),
            _ => None,
        };
        let outcome = match call {
            Ok(_) => Outcome::Permitted("it granted credentials for no token".to_owned()),
            Err(error) => match failure::refusal(&error) {
                Refusal::EksAuthRefused(words) => Outcome::Permitted(words.to_string()),
                refusal => Outcome::Failed(refusal),
            },
        };
        Examined { outcome, date }
    }
}

fn instant(date: &str) -> Option<SystemTime> {
    DateTime::from_str(date, Format::HttpDate).ok()?.try_into().ok()
}
