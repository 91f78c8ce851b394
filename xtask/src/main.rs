//! Commands of the repository, for people and for CI alike: `cargo xtask help`.

#[path = "../../agent/build/ebpf.rs"]
mod ebpf;

mod bench;
mod build_ebpf;
mod cache;
mod check;
mod cluster_test;
mod demo;
mod fuzz;
mod image;
mod inventory;
mod kit;
mod kubernetes;
mod manifest;
mod memcheck;
mod mutants;
mod object_file;
mod pictures;
mod process;
mod setup;
mod systemd_node;
mod test;
mod tools;
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
    /// Test the chart in a Kubernetes of one node, which is built first, once: 10 minutes. Installs what is missing. Needs root.
    ClusterTest(cluster_test::Options),
    /// Show a pod getting its credentials, with real AWS clients. Installs first what is missing.
    Demo(demo::Options),
    /// Feed made-up inputs to everything that reads what others wrote; a minute each, with AddressSanitizer.
    Fuzz(fuzz::Options),
    /// Run unit tests of parsers and of unsafe code under valgrind.
    Memcheck,
    /// Build the container image of this machine's architecture, and its bill of materials.
    Image(image::Options),
    /// Measure the agent: `serve` (answers, beside the floor and rivals), `kernel` (programs), `scale` (many pods).
    Bench(bench::Options),
    /// Make the documentation's pictures from a running agent: the dashboard, and what the commands show. Takes minutes.
    Pictures(pictures::Options),
    /// Change the credential engine's policies in every small way, and see that a test fails for each. Takes an hour.
    Mutants,
    /// Render the chart into the plain manifest below deploy/kustomize.
    Manifest,
    /// Print the directory of the SDK tier's clients.
    ClientsDir,
    /// Print the directory of the deploy tier's tools.
    DeployToolsDir,
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
        Command::ClusterTest(options) => cluster_test::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Memcheck => memcheck::run(),
        Command::Image(options) => image::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Pictures(options) => pictures::run(&options),
        Command::Mutants => mutants::run(),
        Command::Manifest => manifest::run(),
        Command::ClientsDir => kit::print_directory(&kit::Kit::clients()?),
        Command::DeployToolsDir => kit::print_directory(&kit::Kit::deploy()?),
    }
}
