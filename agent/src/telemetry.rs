//! Structured logs on stderr, written by a thread of their own.
use std::fmt;
use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry};

mod rate_limiter;
#[cfg(test)]
mod tests;

pub use rate_limiter::{RateLimiter, Verdict};

/// Lines that wait for stderr before more are dropped: a second of the worst that the rate limits let through, and not
/// more than a few megabytes.
const QUEUED_LINES: usize = 8192;

/// Whose records are taken at the chosen level: the agent's own, those of its eBPF programs (they come through
/// aya-log under the name of their crate), and the loader's.
const OWN_TARGETS: [&str; 3] = [env!("CARGO_CRATE_NAME"), "agent_ebpf", "aya"];

/// What a log line looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// From which level on records are logged, under the names that AWS's agent takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verbosity(LevelFilter);

impl Verbosity {
    /// Whether the programs' own log is wanted: it is compiled out of them otherwise.
    #[must_use]
    pub fn includes_debug(self) -> bool {
        self.0 >= LevelFilter::DEBUG
    }
}

impl Default for Verbosity {
    fn default() -> Self {
        Self(LevelFilter::INFO)
    }
}

/// The text names no level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use one of panic, fatal, error, warn, info, debug, trace")]
pub struct UnknownLevel;

impl FromStr for Verbosity {
    type Err = UnknownLevel;

    /// Reads logrus' names in any case. Its two levels above error are errors here: there is nothing quieter that an
    /// operator could want.
    fn from_str(name: &str) -> Result<Self, UnknownLevel> {
        Ok(Self(match name.to_ascii_lowercase().as_str() {
            "panic" | "fatal" | "error" => LevelFilter::ERROR,
            "warn" | "warning" => LevelFilter::WARN,
            "info" => LevelFilter::INFO,
            "debug" => LevelFilter::DEBUG,
            "trace" => LevelFilter::TRACE,
            _ => return Err(UnknownLevel),
        }))
    }
}

impl fmt::Display for Verbosity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Keeps the log going. What is queued is written when it is dropped, so it lives as long as `main`.
#[must_use = "dropping it ends the log"]
pub struct Telemetry {
    dropped: ErrorCounter,
    _writer: WorkerGuard,
}

impl Telemetry {
    /// Reads the number of lines that were dropped since the start because stderr did not take them.
    pub fn dropped_lines(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let dropped = self.dropped.clone();
        move || dropped.dropped_lines() as u64
    }
}

/// Another log was set up before.
#[derive(Debug, thiserror::Error)]
#[error("the log is set up already: {0}")]
pub struct AlreadySetUp(#[from] tracing_subscriber::util::TryInitError);

/// Sets the process's log up, for records of `tracing` and of the `log` crate.
pub fn init(format: LogFormat, verbosity: Verbosity) -> Result<Telemetry, AlreadySetUp> {
    // A blocked stderr (a full pipe, a stuck container runtime) must not stop answers: lines are dropped and counted.
    let (writer, guard): (NonBlocking, _) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUED_LINES)
        .thread_name("log")
        .finish(std::io::stderr());
    let dropped = writer.error_counter();
    let colours = std::io::stderr().is_terminal();
    Registry::default().with(filter(verbosity)).with(lines(format, colours, writer)).try_init()?;
    Ok(Telemetry { dropped, _writer: guard })
}

fn lines<W>(format: LogFormat, colours: bool, writer: W) -> Box<dyn Layer<Filtered> + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Text => lines.with_ansi(colours).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    }
}

type Filtered = tracing_subscriber::layer::Layered<Targets, Registry>;

/// Everybody who is not named is a dependency and is held at warn, at info when tracing; never lower, whatever is asked for.
///
/// That is how tokens and keys stay out of the log: at debug and trace the AWS SDK prints whole requests and responses
/// (`aws_smithy_runtime::client::orchestrator`: the service account token in one, the credentials in the other), signed
/// headers and resolved identities, and TLS and HTTP libraries print frames. At info it names access keys, no secrets.
/// A list of the known talkers would have to be right about every new version; this list has not.
fn filter(Verbosity(chosen): Verbosity) -> Targets {
    let others = if chosen == LevelFilter::TRACE { LevelFilter::INFO } else { chosen.min(LevelFilter::WARN) };
    Targets::new().with_default(others).with_targets(OWN_TARGETS.map(|target| (target, chosen)))
}
