//! The binary: telemetry, configuration, runtime, exit code. Everything else is the library's.
use std::{process::ExitCode, sync::Arc};

use pod_identity_agent::{
    agent, commands,
    config::{self, Command, ServerConfig},
    confinement::{self, Role},
    metrics::Metrics,
    probe, sys, telemetry,
};

fn main() -> ExitCode {
    match config::read(std::env::args_os()) {
        Ok(Command::Server(config)) => serve(*config),
        Ok(Command::Initialize) => say("nothing to initialize: this agent needs no link and no address"),
        Ok(Command::Version) => say(env!("CARGO_PKG_VERSION")),
        Ok(Command::Probe { question, run_dir }) => match probe::ask(&run_dir, question) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => fail(&failure),
        },
        Ok(Command::Inquire(inquiry)) => match commands::run(&inquiry, &mut std::io::stdout().lock()) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => fail(&error),
        },
        Err(stop) => stop.report(),
    }
}

fn serve(config: ServerConfig) -> ExitCode {
    sys::return_large_blocks();
    let confinement = config.confinement();
    let (format, verbosity) = (config.log.format, config.log.verbosity);
    // The thread that writes the log is started by a library: it has what the thread has that asks for it.
    let telemetry =
        confinement::begin().and_then(|()| confinement.within(Role::Log, move || telemetry::init(format, verbosity)));
    let telemetry = match telemetry {
        Ok(Ok(telemetry)) => telemetry,
        Ok(Err(error)) => return fail(&error),
        Err(error) => return fail(&error),
    };
    for notice in &config.notices {
        tracing::warn!("{notice}");
    }
    let metrics = Arc::new(Metrics::new());
    metrics.read_dropped_log_lines_from(telemetry.dropped_lines());
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = match runtime.enable_io().enable_time().on_thread_park(sys::stack::scrub).build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(agent::run(config, metrics)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", with_causes(&error));
            if error.is_configuration() { config::misconfigured() } else { ExitCode::FAILURE }
        }
    }
}

/// An error with what its own text leaves out of its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = error.source();
    }
    text
}

#[expect(clippy::print_stdout, reason = "commands for people answer on stdout")]
fn say(text: &str) -> ExitCode {
    println!("{text}");
    ExitCode::SUCCESS
}

#[expect(clippy::print_stderr, reason = "there is no log yet, or none at all")]
fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("pod-identity-agent: {error}");
    ExitCode::FAILURE
}
