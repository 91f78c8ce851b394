//! Commands for people, which ask the running agent over its admin socket.
use std::{
    fmt::Write as _,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use aws_smithy_types::{DateTime, date_time::Format};

use crate::{
    admin::client::{self, Answer, NoAnswer},
    operator::{Failure, FlushOutcome, FlushedPod, PodName, PodState, PodStatus, Selection, Status},
};

mod table;
#[cfg(test)]
mod tests;

/// For an answer from memory.
const AT_ONCE: Duration = Duration::from_secs(5);
/// For calls to EKS Auth: longer than the agent waits for them.
const AFTER_CALLS: Duration = Duration::from_secs(25);

/// What is asked, and of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// What to do.
    pub action: Action,
    /// Directory of the admin socket.
    pub run_dir: PathBuf,
    /// Print the agent's JSON instead of a table.
    pub json: bool,
}

/// What people ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The pods and their credentials.
    Status,
    /// Credentials fetched anew.
    Flush(Selection),
}

/// What to print, and whether all went well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// For stdout.
    pub text: String,
    /// Whether the command succeeded for every pod.
    pub good: bool,
}

/// Why a command has nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The agent did not answer.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    /// No pod is meant.
    #[error("no pod of this node is called so: `status` shows those that there are")]
    NoSuchPod,
    /// The agent said no.
    #[error("the agent answered {status}: {text}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it said.
        text: String,
    },
    /// The agent is of another version.
    #[error("the agent's answer cannot be read: {0} (is it of another version than this command?)")]
    Unreadable(#[from] serde_json::Error),
}

/// Asks the agent, and writes its answer for people.
pub fn run(inquiry: &Inquiry) -> Result<Report, CommandError> {
    match &inquiry.action {
        Action::Status => {
            let body = good(client::ask(&inquiry.run_dir, "/status", None, AT_ONCE)?)?;
            let status: Status = serde_json::from_str(&body)?;
            let text = if inquiry.json { body } else { status_table(&status, SystemTime::now()) };
            Ok(Report { text, good: true })
        }
        Action::Flush(selection) => {
            let question = serde_json::to_string(selection)?;
            let body = good(client::ask(&inquiry.run_dir, "/flush", Some(&question), AFTER_CALLS)?)?;
            let pods: Vec<FlushedPod> = serde_json::from_str(&body)?;
            let good = pods
                .iter()
                .all(|pod| matches!(pod.outcome, FlushOutcome::Renewed | FlushOutcome::Nothing | FlushOutcome::Ended));
            let text = if inquiry.json { body } else { flush_table(&pods, SystemTime::now()) };
            Ok(Report { text, good })
        }
    }
}

fn good(answer: Answer) -> Result<String, CommandError> {
    match answer.status {
        200 => Ok(answer.body),
        404 if answer.body == "[]" => Err(CommandError::NoSuchPod),
        status => Err(CommandError::Refused { status, text: answer.body.trim_end().to_owned() }),
    }
}

fn status_table(status: &Status, now: SystemTime) -> String {
    let rows = status.pods.iter().map(|pod| {
        let served = pod.credentials.as_ref();
        let left = |at: Option<&String>| at.map_or_else(|| "-".to_owned(), |at| until(at, now));
        [
            pod_cell(&pod.pod),
            account_cell(&pod.pod),
            state_cell(pod).to_owned(),
            served.map_or_else(|| "-".to_owned(), |served| served.access_key_id.clone()),
            left(served.map(|served| &served.expires_at)),
            left(served.and_then(|served| served.renew_at.as_ref())),
            pod.last_request.as_ref().map_or_else(|| "never".to_owned(), |at| since(at, now)),
            failure_cell(pod.last_failure.as_ref()),
        ]
    });
    let heads = [
        "POD",
        "SERVICE ACCOUNT",
        "CREDENTIALS",
        "ACCESS KEY",
        "EXPIRE IN",
        "RENEWED IN",
        "LAST ASKED",
        "LAST FAILURE",
    ];
    table::render(&heads, rows)
}

fn flush_table(pods: &[FlushedPod], now: SystemTime) -> String {
    let rows = pods.iter().map(|pod| {
        let outcome = match pod.outcome {
            FlushOutcome::Renewed => "fetched anew",
            FlushOutcome::Refused => "refused: given up",
            FlushOutcome::Kept => "not fetched: what is valid is kept",
            FlushOutcome::Nothing => "nothing cached",
            FlushOutcome::Ended => "ended",
            FlushOutcome::Pending => "still being fetched",
        };
        let expires = pod.expires_at.as_ref().map_or_else(|| "-".to_owned(), |at| until(at, now));
        let failure = failure_cell(pod.failure.as_ref());
        [pod_cell(&pod.pod), account_cell(&pod.pod), outcome.to_owned(), expires, failure]
    });
    table::render(&["POD", "SERVICE ACCOUNT", "OUTCOME", "EXPIRE IN", "FAILURE"], rows)
}

fn pod_cell(pod: &PodName) -> String {
    pod.name.clone().unwrap_or_else(|| pod.uid.clone())
}

fn account_cell(pod: &PodName) -> String {
    match (&pod.namespace, &pod.service_account) {
        (Some(namespace), Some(account)) => format!("{namespace}/{account}"),
        _ => "-".to_owned(),
    }
}

fn state_cell(pod: &PodStatus) -> &'static str {
    match pod.state {
        PodState::Empty => "none",
        PodState::Available => "valid",
        PodState::Unavailable => "refused",
        PodState::Ended => "ended",
    }
}

fn failure_cell(failure: Option<&Failure>) -> String {
    failure.map_or_else(|| "-".to_owned(), |failure| format!("{}: {}", failure.reason, failure.message))
}

fn instant(text: &str) -> Option<SystemTime> {
    DateTime::from_str(text, Format::DateTime).ok()?.try_into().ok()
}

fn until(text: &str, now: SystemTime) -> String {
    instant(text).map_or_else(|| text.to_owned(), |at| at.duration_since(now).map_or_else(|_| "now".to_owned(), span))
}

fn since(text: &str, now: SystemTime) -> String {
    let ago = |at: SystemTime| format!("{} ago", span(now.duration_since(at).unwrap_or_default()));
    instant(text).map_or_else(|| text.to_owned(), ago)
}

/// The two largest units: `2h 59m`.
fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let units = [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = units.iter().position(|(count, _)| *count > 0).unwrap_or(units.len() - 1);
    let mut text = String::new();
    for (count, unit) in units.iter().skip(first).take(2) {
        let space = if text.is_empty() { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{space}{count}{unit}");
    }
    text
}
