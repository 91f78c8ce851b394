//! The command line and the environment, made into values that are right.
//!
//! AWS's agent's flags are taken with their meaning, so that its `DaemonSet` and add-on configuration carry over.
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

use crate::commands::{Action, Form, Inquiry, Where};
use crate::operator::Selection;
use crate::probe::Question;
use crate::telemetry::{LogFormat, Verbosity};

mod args;
mod server;
#[cfg(test)]
mod tests;
mod values;

pub use args::HostNetworkPods;
pub use server::{Misconfigured, ServerConfig, Steer, TARGET_V4, TARGET_V6, is_cluster_name};

use args::{AnswerArgs, Args, AuditArgs, CommandArgs, CompletionsArgs, DoctorArgs, FlushArgs, PlaceArgs};

/// Exit code for a bad configuration (`EX_USAGE`).
const EX_USAGE: u8 = 64;

/// What the process is to do.
#[derive(Debug)]
pub enum Command {
    /// Serve pods.
    Server(Box<ServerConfig>),
    /// Nothing: there is no link-local interface to make.
    Initialize,
    /// Print the version.
    Version,
    /// Ask the agent in the same container.
    Probe {
        /// What to ask.
        question: Question,
        /// Where its admin socket is.
        run_dir: PathBuf,
    },
    /// Ask the running agent about pods.
    Inquire(Inquiry),
}

/// Why there is no command to carry out.
#[derive(Debug)]
pub enum Stop {
    /// Help, version or completions were asked for.
    Shown(String),
    /// Something has to be changed first; one line that says what.
    Misconfigured(String),
}

/// The exit code of a configuration that cannot work.
#[must_use]
pub fn misconfigured() -> ExitCode {
    ExitCode::from(EX_USAGE)
}

impl Stop {
    /// Prints it where it belongs and says how to exit: 0 after help, 64 after a bad configuration.
    #[must_use]
    #[expect(clippy::print_stdout, clippy::print_stderr, reason = "help is output, and there is no log yet")]
    pub fn report(self) -> ExitCode {
        match self {
            Self::Shown(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Self::Misconfigured(line) => {
                eprintln!("pod-identity-agent: {line}");
                misconfigured()
            }
        }
    }
}

/// Reads a command line (with the program's name first) and the environment.
pub fn read(command_line: impl IntoIterator<Item = OsString>) -> Result<Command, Stop> {
    let args = Args::try_parse_from(command_line).map_err(|error| stop(&error))?;
    match args.command {
        CommandArgs::Server(server) => ServerConfig::new(*server, args.verbosity)
            .map(|config| Command::Server(Box::new(config)))
            .map_err(|error| Stop::Misconfigured(error.to_string())),
        CommandArgs::Initialize(_) => Ok(Command::Initialize),
        CommandArgs::Version => Ok(Command::Version),
        CommandArgs::Probe(probe) => Ok(Command::Probe {
            question: if probe.live { Question::Live } else { Question::Ready },
            run_dir: probe.run_dir,
        }),
        CommandArgs::Status(status) => Ok(inquire(Action::Status { watch: status.watch }, status.answer)),
        CommandArgs::Explain(explain) => Ok(inquire(Action::Explain(explain.pod), explain.answer)),
        CommandArgs::Audit(AuditArgs { follow, run_dir }) => {
            Ok(Command::Inquire(Inquiry { action: Action::Audit { follow }, run_dir, form: Form::Json }))
        }
        CommandArgs::Completions(CompletionsArgs { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "pod-identity-agent", &mut script);
            Err(Stop::Shown(String::from_utf8_lossy(&script).into_owned()))
        }
        CommandArgs::Doctor(doctor) => {
            let DoctorArgs { place, kubelet_root, answer } = doctor;
            let PlaceArgs { cluster_name, endpoint, listener_ports, kubepods_cgroup } = place;
            let listener_ports =
                server::listener_ports(&listener_ports).map_err(|error| Stop::Misconfigured(error.to_string()))?;
            // An empty variable is none, as for `server`.
            let given = |text: Option<String>| text.filter(|text| !text.is_empty());
            let (cluster_name, endpoint) = (given(cluster_name), given(endpoint));
            let run_dir = answer.run_dir.clone();
            let place = Where { run_dir, kubelet_root, kubepods_cgroup, listener_ports, cluster_name, endpoint };
            Ok(inquire(Action::Doctor(Box::new(place)), answer))
        }
        CommandArgs::Flush(FlushArgs { pod, service_account, all: _, answer }) => {
            let selection = pod.map(Selection::Pod).or(service_account.map(Selection::ServiceAccount));
            Ok(inquire(Action::Flush(selection.unwrap_or(Selection::All)), answer))
        }
    }
}

fn inquire(action: Action, answer: AnswerArgs) -> Command {
    Command::Inquire(Inquiry { action, run_dir: answer.run_dir, form: answer.output })
}

fn stop(error: &clap::Error) -> Stop {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Shown(error.to_string()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => Stop::Misconfigured(
            "name a command: server, status, explain, doctor, audit, flush, probe, initialize or version (--help tells more)"
                .to_owned(),
        ),
        _ => Stop::Misconfigured(one_line(error)),
    }
}

/// clap explains in paragraphs; here is the first, which says what is wrong, and the name that was meant if it knows one.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut line = String::new();
    for part in text.lines().map(str::trim).take_while(|part| !part.starts_with("Usage:")) {
        if part.starts_with("tip: a similar") {
            line.push_str("; ");
            line.push_str(part.strip_prefix("tip: ").unwrap_or(part));
        } else if !part.is_empty() && !part.starts_with("tip:") && !part.starts_with("For more") {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(part.strip_prefix("error: ").unwrap_or(part));
        }
    }
    if line.contains("invalid value ''") {
        line.push_str(" (unset the variable for the default)");
    }
    line
}

/// How to log, for every command that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Text or JSON.
    pub format: LogFormat,
    /// From which level on.
    pub verbosity: Verbosity,
}
