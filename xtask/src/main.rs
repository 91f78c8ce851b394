//! Commands of the repository, for people and for CI alike: `cargo xtask help`.

#[path = "../../agent/build/ebpf.rs"]
mod ebpf;

mod bench;
mod build_ebpf;
mod check;
mod clients;
mod demo;
mod mutants;
mod object_file;
mod process;
mod setup;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Commands of this repository.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what this machine lacks to build and test the project.
    Setup(setup::Options),
    /// Build the eBPF programs and tell what is in their object.
    BuildEbpf,
    /// Check format, lints and documentation, of both halves.
    Check,
    /// Run the tests: all tiers, or one. Installs first what is missing.
    Test(test::Options),
    /// Show a pod getting its credentials, with real AWS clients. Installs first what is missing.
    Demo(demo::Options),
    /// Measure the agent: `serve` (answers, beside the floor and rivals), `kernel` (programs), `scale` (many pods).
    Bench(bench::Options),
    /// Change the credential engine's policies in every small way, and see that a test fails for each. Takes an hour.
    Mutants,
    /// Print the directory of the SDK tier's clients.
    ClientsDir,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // A sentence, not a backtrace: the reader looks for what to do next.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup(options) => setup::run(&options),
        Command::BuildEbpf => build_ebpf::run(),
        Command::Check => check::run(),
        Command::Test(options) => test::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Mutants => mutants::run(),
        Command::ClientsDir => clients::print_directory(),
    }
}
