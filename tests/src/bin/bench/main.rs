//! `cargo xtask bench`: what the agent costs, beside what can hardly be undercut, in one run on one machine.
//!
//! Seconds of one machine say little about another's, and on a busy machine little about anything: all that is compared
//! here was measured in turns of less than a second, and what counts are ratios.
use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};
use pod_identity_tests::{host, usage::Priority};

mod compare;
mod contestant;
mod first;
mod kernel;
mod machine;
mod report;
mod scale;
mod scene;
mod spread;
mod svg;
mod table;

/// Measures the agent, and what it is measured against
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Directory for the results: JSON and pictures
    #[arg(long, global = true, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Cached answers, beside a bare responder's and those of other agents
    Serve(ServeArgs),
    /// What the programs cost connections, ours and everybody's
    Kernel(KernelArgs),
    /// What the agent costs as pods become many
    Scale(ScaleArgs),
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// A command that serves the endpoint on 169.254.170.23:80 in the network namespace that it is started in; {endpoint}
    /// in it stands for the URL of EKS Auth, {cluster} and {region} for what they are called. Can be given more than once
    #[arg(long)]
    rival: Vec<String>,
    /// Turns of everybody
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Length of a turn
    #[arg(long, default_value_t = 400)]
    turn_ms: u64,
    /// Clients at once
    #[arg(long, value_delimiter = ',', default_value = "1,16,256")]
    clients: Vec<usize>,
    /// Another agent beside the usual one, started with these flags as well; can be given more than once
    #[arg(long, allow_hyphen_values = true)]
    variant: Vec<String>,
}

impl ServeArgs {
    fn turn(&self) -> Duration {
        Duration::from_millis(self.turn_ms)
    }
}

#[derive(Debug, Args)]
struct KernelArgs {
    /// Turns of everybody
    #[arg(long, default_value_t = 60)]
    rounds: usize,
}

#[derive(Debug, Args)]
struct ScaleArgs {
    /// Pods
    #[arg(long, value_delimiter = ',', default_value = "10,110,250,737,2000")]
    pods: Vec<usize>,
    /// For how long an idle agent is watched: the least that holds a whole number of all that it does now and then
    #[arg(long, default_value_t = 52)]
    idle_seconds: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    host::require_root()?;
    // Beside this program lies one without optimization.
    ensure!(
        std::env::var_os("POD_IDENTITY_AGENT_BIN").is_some(),
        "run this as `cargo xtask bench`, or say in \
        POD_IDENTITY_AGENT_BIN which agent to measure"
    );
    std::fs::create_dir_all(&arguments.out)?;
    let _priority = Priority::raise();
    match &arguments.what {
        What::Serve(args) => compare::run(args, &arguments.out),
        What::Kernel(args) => kernel::run(args, &arguments.out),
        What::Scale(args) => scale::run(args, &arguments.out),
    }
}
