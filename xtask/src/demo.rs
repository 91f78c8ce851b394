//! `demo`: installs what is missing, builds, and becomes the demo.

use std::{env, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Args;

use crate::{kit::Kit, process, setup};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Leave everything running until Enter or SIGTERM, and say how to enter the pods.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        process::is_root(),
        "the demo makes network namespaces, cgroups and mounts and attaches programs, which needs root: run it as root"
    );
    setup::ensure()?;
    process::timed("build", process::build_programs).0?;

    // Cargo has put it beside this command. `cargo run` would build it once more: alone, it gets its dependencies with
    // fewer features.
    let demo = env::current_exe()?.with_file_name("demo");
    ensure!(demo.is_file(), "{} was not built: run this as `cargo xtask demo`", demo.display());
    let mut demo = Command::new(demo);
    demo.args(options.keep.then_some("--keep"));
    let clients = Kit::clients()?;
    let (variable, directory) = clients.variable();
    demo.env(variable, directory);
    // Not a child: a Ctrl-C ends all of a terminal's processes, and this one would be gone, and the prompt back, before
    // the demo has cleaned up.
    Err(anyhow!(demo.exec())).context("start the demo")
}
