//! Which role a service account's pods get.
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::task::block_in_place;

use super::control::Association;
use crate::{
    aws::call::Caller,
    sigv4::Signed,
    token::{Subject, random_hex},
};

/// An association that was found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) id: String,
    pub(super) arn: String,
    pub(super) role_arn: String,
}

/// Who is asked.
#[derive(Debug)]
pub(super) enum Associations {
    /// Those that a test told, by namespace and service account.
    Told(Mutex<HashMap<(String, String), Found>>),
    /// An EKS.
    Eks { caller: Caller, url: String },
}

impl Associations {
    pub(super) fn told() -> Self {
        Self::Told(Mutex::default())
    }

    pub(super) fn of_eks(caller: Caller, url: String) -> Self {
        Self::Eks { caller, url }
    }

    /// Adds one, or replaces it.
    pub(super) fn add(&self, cluster: &str, association: Association) -> Result<()> {
        let Self::Told(table) = self else { anyhow::bail!("associations are kept by the EKS that --eks names") };
        let id = format!("a-{}", random_hex(9).get(..17).unwrap_or_default());
        let account = association.role_arn.split(':').nth(4).unwrap_or_default();
        let arn = format!("arn:aws:eks:eu-central-1:{account}:podidentityassociation/{cluster}/{id}");
        let Association { namespace, service_account, role_arn } = association;
        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
        table.insert((namespace, service_account), Found { id, arn, role_arn });
        Ok(())
    }

    /// The association of a token's subject.
    pub(super) fn find(&self, cluster: &str, subject: &Subject) -> Result<Option<Found>> {
        match self {
            Self::Told(table) => {
                let key = (subject.namespace.clone(), subject.service_account.clone());
                Ok(table.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned())
            }
            Self::Eks { caller, url } => find_in_eks(caller, url, cluster, subject),
        }
    }
}

fn find_in_eks(caller: &Caller, url: &str, cluster: &str, subject: &Subject) -> Result<Option<Found>> {
    let path = format!("/clusters/{cluster}/pod-identity-associations");
    let query = format!("namespace={}&serviceAccount={}", subject.namespace, subject.service_account);
    let get = |path: &str, query: &str| {
        let request = Signed { method: "GET", path, query, headers: &[], body: b"" };
        let body = block_in_place(|| caller.ask(url, "eks", &request, "application/json"))?;
        serde_json::from_slice::<Value>(&body).context("EKS's answer is no JSON")
    };
    let list = get(&path, &query)?;
    let same = |item: &&Value| {
        item.get("namespace").and_then(Value::as_str) == Some(&subject.namespace)
            && item.get("serviceAccount").and_then(Value::as_str) == Some(&subject.service_account)
    };
    let items = list.get("associations").and_then(Value::as_array).context("EKS's answer has no associations")?;
    let Some(id) = items.iter().find(same).and_then(|item| item.get("associationId")).and_then(Value::as_str) else {
        return Ok(None);
    };
    let described = get(&format!("{path}/{id}"), "")?;
    let association = described.get("association").context("EKS's answer has no association")?;
    let text = |name: &str| association.get(name).and_then(Value::as_str).map(str::to_owned);
    Ok(Some(Found {
        id: id.to_owned(),
        arn: text("associationArn").context("the association has no ARN")?,
        role_arn: text("roleArn").context("the association has no role")?,
    }))
}
