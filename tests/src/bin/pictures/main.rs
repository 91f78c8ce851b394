//! `cargo xtask pictures`: what the documentation shows of a running agent, made from one.
//!
//! Two runs, each on a node of its own with an AWS of its own, as the demo has one. In the first everything happens that a
//! dashboard is for, while a Prometheus looks; the shipped dashboard is then drawn from that Prometheus' answers. In the
//! second the commands for people are asked about pods that are served and pods that are not.
use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};
use pod_identity_tests::signals::Signals;

mod drawing;
mod prometheus;
mod shop;
mod stable;
mod story;
mod terminal;
mod transcripts;

/// Makes the pictures of the documentation from a running agent
#[derive(Debug, Parser)]
#[command(name = "cargo xtask pictures")]
struct Args {
    /// Only this one
    #[arg(long, value_enum)]
    only: Option<Picture>,
    /// Directory for them
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    tools: Option<Tools>,
}

/// What a dashboard is drawn with.
#[derive(Debug, clap::Args)]
#[group(requires_all = ["dashboard", "prometheus", "chromium"])]
pub(crate) struct Tools {
    /// The dashboard to draw
    #[arg(long, required = false)]
    pub(crate) dashboard: PathBuf,
    /// A Prometheus
    #[arg(long, required = false)]
    pub(crate) prometheus: PathBuf,
    /// A Chromium without a window
    #[arg(long, required = false)]
    pub(crate) chromium: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Picture {
    /// dashboard.png, from four minutes of load
    Dashboard,
    /// transcripts.md
    Transcripts,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Before anything is started: a signal from now on ends this by the way that cleans up.
    match Signals::listen().and_then(|signals| run(&args, &signals)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, signals: &Signals) -> Result<()> {
    let wanted = |picture| args.only.is_none_or(|only| only == picture);
    if wanted(Picture::Transcripts) {
        transcripts::make(&args.out.join("transcripts.md"), signals)?;
    }
    if wanted(Picture::Dashboard) {
        let tools = args.tools.as_ref().context("name --dashboard, --prometheus and --chromium")?;
        story::draw(tools, &args.out.join("dashboard.png"), signals)?;
    }
    Ok(())
}

/// Fails when a signal has asked for the end.
pub(crate) fn go_on(signals: &Signals) -> Result<()> {
    if signals.arrived().is_some() {
        bail!("interrupted");
    }
    Ok(())
}
