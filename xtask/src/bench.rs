//! `bench`: builds the agent as it is released, and becomes the benchmark.

use std::{env, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Args;

use crate::{process, setup, workspace};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to measure, and how: `serve` (without anything), `kernel` or `scale`; `--help` after it tells more.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        process::is_root(),
        "the benchmarks make network namespaces and cgroups and attach programs, which needs root: run them as root"
    );
    setup::ensure()?;
    let agent = release_agent()?;
    let (built, _) = process::timed("build what measures", process::build_programs);
    built?;
    let bench = env::current_exe()?.with_file_name("bench");
    ensure!(bench.is_file(), "{} was not built: run this as `cargo xtask bench`", bench.display());
    let mut bench = Command::new(bench);
    bench.current_dir(workspace::root()).env(AGENT, agent);
    let named = options.arguments.first().is_some_and(|first| !first.starts_with('-') || first == "--help");
    bench.args((!named).then_some("serve")).args(&options.arguments);
    // Not a child: as with the demo, whoever ends it waits for what it cleans up.
    Err(anyhow!(bench.exec())).context("start the benchmark")
}

/// Tells tests and benchmarks which agent to run.
pub(crate) const AGENT: &str = "POD_IDENTITY_AGENT_BIN";

/// Builds the agent as it is released.
pub(crate) fn release_agent() -> Result<std::path::PathBuf> {
    let (built, _) = process::timed("build the agent, optimized", || {
        process::run(&mut process::cargo(&["build", "--locked", "--release", "-p", "pod-identity-agent"]))
    });
    built?;
    Ok(workspace::root().join("target/release/pod-identity-agent"))
}
