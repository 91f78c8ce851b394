//! Where credentials come from.
use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result};
use tokio::task::block_in_place;

use super::associations::Found;
use crate::{
    aws::call::{Caller, form_value, xml_text},
    sigv4::Signed,
    time,
    token::{Subject, random_hex},
};

/// Credentials, and whose they are.
#[derive(Debug)]
pub(super) struct Issued {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: String,
    pub(super) session_token: String,
    /// Seconds since 1970.
    pub(super) expiration: u64,
    pub(super) assumed_role_arn: String,
    pub(super) assumed_role_id: String,
}

/// Where they come from.
#[derive(Debug)]
pub(super) enum Source {
    /// Nowhere: new ones for each call, accepted by nobody.
    MadeUp { lifetime: Duration },
    /// An STS's `AssumeRole`.
    Sts { caller: Caller, url: String },
}

impl Source {
    /// Credentials for the association's role, tagged for the pod.
    pub(super) fn issue(&self, cluster: &str, found: &Found, subject: &Subject) -> Result<Issued> {
        match self {
            Self::MadeUp { lifetime } => make_up(*lifetime, found, subject),
            Self::Sts { caller, url } => assume_role(caller, url, cluster, found, subject),
        }
    }
}

/// EKS names sessions so, and cuts what does not fit.
fn session_name(subject: &Subject) -> String {
    let name = format!("eks-{}-{}", subject.pod_name, random_hex(8));
    name.chars().take(64).collect()
}

fn make_up(lifetime: Duration, found: &Found, subject: &Subject) -> Result<Issued> {
    // arn:aws:iam::123456789012:role/path/NAME
    let account = found.role_arn.split(':').nth(4).context("the role's ARN has no account")?;
    let role = found.role_arn.rsplit('/').next().unwrap_or_default();
    let session = session_name(subject);
    let role_id = format!("AROA{}", random_hex(8).to_uppercase());
    Ok(Issued {
        access_key_id: format!("ASIA{}", random_hex(8).to_uppercase()),
        secret_access_key: random_hex(20),
        // As long as STS's are.
        session_token: format!("IQoJb3JpZ2luX2Vj{}", random_hex(420)),
        expiration: time::now() + lifetime.as_secs(),
        assumed_role_arn: format!("arn:aws:sts::{account}:assumed-role/{role}/{session}"),
        assumed_role_id: format!("{role_id}:{session}"),
    })
}

fn assume_role(caller: &Caller, url: &str, cluster: &str, found: &Found, subject: &Subject) -> Result<Issued> {
    let tags = [
        ("eks-cluster-name", cluster),
        ("kubernetes-namespace", &subject.namespace),
        ("kubernetes-service-account", &subject.service_account),
        ("kubernetes-pod-name", &subject.pod_name),
        ("kubernetes-pod-uid", &subject.pod_uid),
    ];
    let mut body = format!(
        "Action=AssumeRole&Version=2011-06-15&RoleArn={}&RoleSessionName={}",
        form_value(&found.role_arn),
        form_value(&session_name(subject))
    );
    for (number, (key, value)) in (1..).zip(tags) {
        write!(body, "&Tags.member.{number}.Key={key}&Tags.member.{number}.Value={}", form_value(value))?;
    }
    let request = Signed { method: "POST", path: "/", query: "", headers: &[], body: body.as_bytes() };
    let answer = block_in_place(|| caller.ask(url, "sts", &request, "application/x-www-form-urlencoded"))?;
    let answer = String::from_utf8(answer)?;
    let text = |name: &str| xml_text(&answer, name).with_context(|| format!("STS's answer has no {name}"));
    let expiration = time::parse_rfc3339(&text("Expiration")?).context("STS's Expiration cannot be read")?;
    Ok(Issued {
        access_key_id: text("AccessKeyId")?,
        secret_access_key: text("SecretAccessKey")?,
        session_token: text("SessionToken")?,
        expiration: time::unix_seconds(expiration),
        assumed_role_arn: text("Arn")?,
        assumed_role_id: text("AssumedRoleId")?,
    })
}
