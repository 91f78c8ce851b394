//! Many requests, and how often each answer came.
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Answer;

/// Different refusals that are told apart; what garbled tokens provoke may be worded in many ways.
const KINDS: usize = 200;

/// What became of many requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// How many there were.
    pub tries: u64,
    /// How many got credentials.
    pub granted: u64,
    /// The access keys that were served.
    pub access_keys: BTreeSet<String>,
    /// Refusals by status and message.
    pub refusals: BTreeMap<u16, BTreeMap<String, u64>>,
    /// What kept the others from an answer.
    pub errors: BTreeMap<String, u64>,
}

impl Tally {
    /// Adds one.
    pub fn add(&mut self, answer: &Answer) {
        self.tries += 1;
        match (answer.status, &answer.error) {
            (Some(200), _) => {
                self.granted += 1;
                self.access_keys.insert(answer.access_key_id());
            }
            (Some(status), _) => {
                let messages = self.refusals.entry(status).or_default();
                let message = answer.member("message");
                let known = messages.len() < KINDS || messages.contains_key(&message);
                *messages.entry(if known { message } else { "…".to_owned() }).or_default() += 1;
            }
            (None, error) => *self.errors.entry(error.clone().unwrap_or_default()).or_default() += 1,
        }
    }

    /// Adds others.
    pub fn merge(&mut self, other: Self) {
        self.tries += other.tries;
        self.granted += other.granted;
        self.access_keys.extend(other.access_keys);
        for (status, messages) in other.refusals {
            let mine = self.refusals.entry(status).or_default();
            for (message, count) in messages {
                *mine.entry(message).or_default() += count;
            }
        }
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
    }

    /// Refusals of this status whose message contains this.
    #[must_use]
    pub fn refused(&self, status: u16, message: &str) -> u64 {
        let messages = self.refusals.get(&status).into_iter().flatten();
        messages.filter(|(text, _)| text.contains(message)).map(|(_, count)| count).sum()
    }
}
