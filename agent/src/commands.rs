//! Commands for people, which ask the running agent over its admin socket.
use std::{
    fmt::Write as _,
    io::{self, Write},
    path::PathBuf,
    thread,
    time::{Duration, SystemTime},
};

use aws_smithy_types::{DateTime, date_time::Format};

use crate::{
    admin::client::{self, Answer, NoAnswer},
    discovery::Place,
    operator::{Failure, FlushOutcome, FlushedPod, PodName, PodState, PodStatus, Selection, Status},
};

mod audit;
mod checks;
mod doctor;
mod explain;
mod screen;
mod table;
#[cfg(test)]
mod tests;
mod yaml;

pub use doctor::Where;
use screen::Screen;

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
    /// How to print what it tells.
    pub form: Form,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
}

/// What people ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The pods and their credentials; again and again if `watch` says how often.
    Status {
        /// The pause between two looks.
        watch: Option<Duration>,
    },
    /// Why a pod has, or has no, credentials: by UID, name, `NAMESPACE/NAME` or process id.
    Explain(String),
    /// What was granted and refused.
    Audit {
        /// Go on with what comes.
        follow: bool,
    },
    /// Whether the node lets the agent work.
    Doctor(Box<Where>),
    /// Credentials fetched anew.
    Flush(Selection),
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
    /// The same, and a UID would say more.
    #[error(
        "no pod of this node is known to be called {0}: names come from tokens, so a pod without the EKS token volume has \
         none here; name it by its UID (kubectl get pod -o jsonpath={{.metadata.uid}}) or by the id of one of its processes"
    )]
    NoSuchName(String),
    /// More than one pod is meant.
    #[error("several pods are called so: name one by its UID ({0})")]
    Ambiguous(String),
    /// No process.
    #[error("cannot see process {pid}: {error} (ids are the node's: run this in the agent's container, with hostPID)")]
    NoProcess {
        /// Which.
        pid: u32,
        /// What the kernel says.
        #[source]
        error: io::Error,
    },
    /// A process of the node itself.
    #[error("process {0} is in no pod of this node")]
    NotInAPod(u32),
    /// stdout is closed.
    #[error("cannot print the answer: {0}")]
    Print(#[source] io::Error),
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

/// Asks the agent, prints its answer, and says whether all went well.
pub fn run(inquiry: &Inquiry, out: &mut impl Write) -> Result<bool, CommandError> {
    let screen = Screen::stdout();
    match &inquiry.action {
        Action::Status { watch: None } => {
            print(out, &status(inquiry, screen)?)?;
            Ok(true)
        }
        Action::Status { watch: Some(pause) } => loop {
            let text = status(inquiry, screen)?;
            print(out, &screen.again(text))?;
            thread::sleep(*pause);
        },
        Action::Explain(pod) => {
            let explained = explain::run(&inquiry.run_dir, pod)?;
            let text = || checks::render(&explained.steps, screen);
            print(out, &formed(inquiry.form, &serde_json::to_value(&explained)?, text))?;
            Ok(explained.good)
        }
        Action::Audit { follow } => audit::run(&inquiry.run_dir, *follow, out).map(|()| true),
        Action::Doctor(place) => {
            let examination = doctor::run(place);
            let text = || checks::render(&examination.checks, screen);
            print(out, &formed(inquiry.form, &serde_json::to_value(&examination)?, text))?;
            Ok(examination.good)
        }
        Action::Flush(selection) => {
            let question = serde_json::to_string(selection)?;
            let body = good(client::ask(&inquiry.run_dir, "/flush", Some(&question), AFTER_CALLS)?)?;
            let pods: Vec<FlushedPod> = serde_json::from_str(&body)?;
            let good = pods
                .iter()
                .all(|pod| matches!(pod.outcome, FlushOutcome::Renewed | FlushOutcome::Nothing | FlushOutcome::Ended));
            let table = || flush_table(&pods, SystemTime::now(), screen);
            print(out, &formed(inquiry.form, &serde_json::from_str(&body)?, table))?;
            Ok(good)
        }
    }
}

fn status(inquiry: &Inquiry, screen: Screen) -> Result<String, CommandError> {
    let body = good(client::ask(&inquiry.run_dir, "/status", None, AT_ONCE)?)?;
    let status: Status = serde_json::from_str(&body)?;
    Ok(formed(inquiry.form, &serde_json::from_str(&body)?, || status_table(&status, SystemTime::now(), screen)))
}

fn formed(form: Form, value: &serde_json::Value, table: impl FnOnce() -> String) -> String {
    match form {
        Form::Table => table(),
        Form::Json => format!("{value}\n"),
        Form::Yaml => yaml::write(value),
    }
}

fn print(out: &mut impl Write, text: &str) -> Result<(), CommandError> {
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CommandError::Print)
}

fn good(answer: Answer) -> Result<String, CommandError> {
    match answer.status {
        200 => Ok(answer.body),
        404 if answer.body == "[]" => Err(CommandError::NoSuchPod),
        status => Err(CommandError::Refused { status, text: answer.body.trim_end().to_owned() }),
    }
}

fn status_table(status: &Status, now: SystemTime, screen: Screen) -> String {
    let rows = status.pods.iter().map(|pod| {
        let served = pod.credentials.as_ref();
        let none = || "-".to_owned();
        let left = |at: Option<&String>| at.map_or_else(none, |at| until(at, now));
        let place = pod.place.as_ref();
        [
            pod_cell(&pod.pod),
            account_cell(&pod.pod),
            place.and_then(|place| place.cgroup_id).map_or_else(none, |id| id.to_string()),
            place.map_or_else(none, listeners_cell),
            state_cell(pod).to_owned(),
            served.map_or_else(none, |served| served.access_key_id.clone()),
            served.map_or_else(none, |served| age(&served.issued_at, now)),
            left(served.map(|served| &served.expires_at)),
            left(served.and_then(|served| served.renew_at.as_ref())),
            pod.last_request.as_ref().map_or_else(|| "never".to_owned(), |at| since(at, now)),
            failure_cell(pod.last_failure.as_ref()),
            pod.last_refusal
                .as_ref()
                .map_or_else(none, |refused| format!("{}, {}", refused.failure.reason, since(&refused.at, now))),
        ]
    });
    let heads = [
        "POD",
        "SERVICE ACCOUNT",
        "CGROUP ID",
        "LISTENERS",
        "CREDENTIALS",
        "ACCESS KEY",
        "AGE",
        "EXPIRE IN",
        "RENEWED IN",
        "LAST ASKED",
        "LAST FAILURE",
        "LAST REFUSAL",
    ];
    table::render(&heads, rows, screen.width)
}

/// The ports of its own namespaces; a pod of the host network has none of its own.
fn listeners_cell(place: &Place) -> String {
    let cells: Vec<String> = place
        .listeners
        .iter()
        .map(|listener| if listener.ipv6 { format!("{}+v6", listener.port) } else { listener.port.to_string() })
        .collect();
    match (cells.is_empty(), &place.failure) {
        (true, Some(_)) => "failed".to_owned(),
        (true, None) => "-".to_owned(),
        (false, _) => cells.join(","),
    }
}

fn flush_table(pods: &[FlushedPod], now: SystemTime, screen: Screen) -> String {
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
    table::render(&["POD", "SERVICE ACCOUNT", "OUTCOME", "EXPIRE IN", "FAILURE"], rows, screen.width)
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

fn age(text: &str, now: SystemTime) -> String {
    instant(text).map_or_else(|| text.to_owned(), |at| span(now.duration_since(at).unwrap_or_default()))
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
