//! `cargo xtask demo`: a node with two pods, real AWS clients in them, and what the kernel shows of the way between.
//!
//! Everything is of the demo's own: network namespaces without an uplink, cgroups below one of its own, processes that
//! the kernel kills should the demo be killed. It ends by itself and leaves nothing behind, also after Ctrl-C.
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

mod keep;
mod kernel;
mod pods;
mod scene;
mod screen;
mod summary;

use pod_identity_tests::signals::Signals;
use scene::Scene;
use screen::Screen;

/// Shows a pod getting its credentials through the kernel, with real AWS clients
#[derive(Debug, Parser)]
#[command(name = "cargo xtask demo")]
struct Args {
    /// Leave it running until Enter or a signal, and say how to enter the pods
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Before anything is started: a signal from now on ends the demo by the way that cleans up.
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("cannot listen for signals: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let screen = Screen::new(signals);
    match run(&screen, args.keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen.failed(&error);
            screen.exit_code()
        }
    }
}

fn run(screen: &Screen, keep: bool) -> Result<()> {
    let scene = Scene::start(screen)?;
    // The scene is taken down whatever comes of this; its own failure counts when nothing failed before.
    let played = play(screen, &scene, keep);
    let stopped = scene.stop(screen);
    played.and(stopped)
}

fn play(screen: &Screen, scene: &Scene, keep: bool) -> Result<()> {
    let first = pods::first_fetch(screen, scene)?;
    pods::associated(screen, scene)?;
    pods::not_associated(screen, scene)?;
    kernel::show(screen, scene)?;
    summary::show(screen, scene, &first)?;
    if keep { keep::wait(screen, scene) } else { Ok(()) }
}
