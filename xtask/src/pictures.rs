//! `pictures`: makes what the documentation shows of a running agent: docs/dashboard.png and docs/transcripts.md.

use std::{
    env,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::{Args, ValueEnum};

use crate::{bench, kit::Kit, process, setup, workspace};

/// Draws the page. Only this command needs it, so it is none of what `setup` installs.
const CHROMIUM: [&str; 2] = ["chromium-headless-shell", "chromium"];
/// What the page is written with.
const FONT: (&str, &str) = ("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf", "fonts-dejavu-core");

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this one.
    #[arg(long)]
    only: Option<Picture>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Picture {
    /// Four minutes of load, drawn.
    Dashboard,
    /// What the commands show; takes seconds.
    Transcripts,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        process::is_root(),
        "the pictures are taken of an agent on a node made of namespaces and cgroups, which needs root: run this as root"
    );
    setup::ensure()?;
    let current = env::current_exe()?;
    let mut pictures = Command::new(current.with_file_name("pictures"));
    pictures.arg("--out").arg(workspace::root().join("docs"));
    if options.only == Some(Picture::Transcripts) {
        pictures.arg("--only=transcripts");
    } else {
        pictures.args(options.only.map(|_| "--only=dashboard"));
        pictures.arg("--dashboard").arg(workspace::root().join("deploy/chart/files/dashboard.json"));
        pictures.arg("--prometheus").arg(prometheus()?).arg("--chromium").arg(chromium()?);
        // What it shows of times is the released agent's.
        pictures.env(bench::AGENT, bench::release_agent()?);
    }
    process::timed("build", process::build_programs).0?;
    let clients = Kit::clients()?;
    let (variable, directory) = clients.variable();
    pictures.env(variable, directory);
    // Not a child: as with the demo, whoever ends it waits for what it cleans up.
    Err(anyhow!(pictures.exec())).context("start taking pictures: run this as `cargo xtask pictures`")
}

fn chromium() -> Result<PathBuf> {
    let found = || CHROMIUM.iter().find_map(|name| process::find(name));
    let mut missing = Vec::new();
    missing.extend(found().is_none().then_some(CHROMIUM[0]));
    missing.extend((!Path::new(FONT.0).is_file()).then_some(FONT.1));
    setup::packages(&missing)?;
    found().context("the package has no chromium-headless-shell")
}

/// Debian's, unpacked with the deploy tier's promtool: installed, it would start a server.
fn prometheus() -> Result<PathBuf> {
    let unpacked = Kit::deploy()?.directory().join("prometheus/usr/bin/prometheus");
    let found = Some(unpacked).filter(|file| file.is_file()).or_else(|| process::find("prometheus"));
    found.context("there is a promtool in PATH but no prometheus: install Prometheus by this system's own means")
}
