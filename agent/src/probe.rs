//! `probe`: asks the agent in the same container whether it lives or is ready, for the kubelet's exec probes.
use std::{path::Path, time::Duration};

use crate::admin::client::{self, NoAnswer};

#[cfg(test)]
mod tests;

/// For connection, question and answer together.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Does it live?
    Live,
    /// May it serve?
    Ready,
}

impl Question {
    fn path(self) -> &'static str {
        match self {
            Self::Live => "/healthz",
            Self::Ready => "/readyz",
        }
    }
}

/// Why the answer is no.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is none.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    /// It says no.
    #[error("{status} {body}")]
    No {
        /// HTTP status.
        status: u16,
        /// The agent's reasons, as JSON.
        body: String,
    },
}

/// Asks the agent whose admin socket is in `run_dir`; takes 1 s at most.
pub fn ask(run_dir: &Path, question: Question) -> Result<(), Failure> {
    let answer = client::ask(run_dir, question.path(), None, TIMEOUT)?;
    if answer.status == 200 { Ok(()) } else { Err(Failure::No { status: answer.status, body: answer.body }) }
}
