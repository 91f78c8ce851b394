//! How a test tells the stand-in what to do, and asks what it was asked: JSON over HTTP on a unix socket.
//!
//! `POST /rules` adds a [`Rule`], `DELETE /rules` removes all; `POST /associations` adds an [`Association`];
//! `POST /node-key` replaces the node's access key, `POST /keys` the issuer's key set; `GET /counters` answers [`Counters`].
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

/// A misbehaviour, for some calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// For this service account only (`namespace/name`); for all without one.
    pub service_account: Option<String>,
    /// For so many calls; for all that follow without a number.
    pub times: Option<u32>,
    /// Wait so long before answering.
    #[serde(default)]
    pub delay_ms: u64,
    /// What to do instead of answering rightly.
    pub effect: Option<Effect>,
}

/// What to do instead of answering rightly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Answer with an error.
    Error {
        /// Its HTTP status.
        status: u16,
        /// Its type's name, as `ThrottlingException`.
        code: String,
        /// Its message.
        message: String,
    },
    /// Close the connection without an answer.
    Drop,
    /// Never answer.
    Hang,
    /// Answer for another service account.
    WrongSubject,
    /// Give credentials that expire in so many seconds.
    ExpiresIn(u64),
    /// Answer 200 with something that is no answer.
    Nonsense,
}

/// Which role a service account's pods get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Association {
    /// The pods' namespace.
    pub namespace: String,
    /// Their service account.
    pub service_account: String,
    /// The role's ARN.
    pub role_arn: String,
}

/// What was asked so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Calls, whatever they were answered with.
    pub calls: u64,
    /// Calls by the pod UID that their token names, verified or not.
    pub by_pod_uid: BTreeMap<String, u64>,
    /// Calls by the SHA-256 of their token.
    pub by_token: BTreeMap<String, u64>,
    /// Calls by what they were answered with: `ok`, an error's type, or an effect's name.
    pub by_outcome: BTreeMap<String, u64>,
    /// Calls that were under way at the same time, at most.
    pub max_concurrency: u64,
    /// Calls under way.
    pub in_flight: u64,
    /// Connections that were accepted.
    pub connections: u64,
}

/// The rules in force.
#[derive(Debug, Default)]
pub(super) struct Rules(Mutex<Vec<Rule>>);

impl Rules {
    pub(super) fn add(&self, rule: Rule) {
        lock(&self.0).push(rule);
    }

    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }

    /// The first rule for this service account that is not used up; it is used once more.
    pub(super) fn take(&self, service_account: &str) -> Option<Rule> {
        let mut rules = lock(&self.0);
        let index = rules.iter().position(|rule| {
            rule.service_account.as_deref().is_none_or(|only| only == service_account) && rule.times != Some(0)
        })?;
        let rule = rules.get_mut(index)?;
        rule.times = rule.times.map(|times| times - 1);
        Some(rule.clone())
    }
}

/// The counters, and the calls under way.
#[derive(Debug, Default)]
pub(super) struct Counting(Mutex<Counters>);

/// A call under way.
#[derive(Debug)]
pub(super) struct InFlight<'a>(&'a Counting);

impl Counting {
    pub(super) fn begin(&self, pod_uid: &str, token_digest: &str) -> InFlight<'_> {
        let mut counters = lock(&self.0);
        counters.calls += 1;
        *counters.by_pod_uid.entry(pod_uid.to_owned()).or_default() += 1;
        *counters.by_token.entry(token_digest.to_owned()).or_default() += 1;
        counters.in_flight += 1;
        counters.max_concurrency = counters.max_concurrency.max(counters.in_flight);
        InFlight(self)
    }

    pub(super) fn connection(&self) {
        lock(&self.0).connections += 1;
    }

    pub(super) fn outcome(&self, name: &str) {
        *lock(&self.0).by_outcome.entry(name.to_owned()).or_default() += 1;
    }

    pub(super) fn read(&self) -> Counters {
        lock(&self.0).clone()
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        lock(&self.0.0).in_flight -= 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
