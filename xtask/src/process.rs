//! Programs that commands start, and what they need to know of the machine.

use std::{
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::workspace;

/// The cargo that runs this command, in the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace::root()).args(arguments);
    // `cargo run` tells this command its own package in them. Build scripts that watch these (ring's does) would run
    // again, and with them half of the build, whenever cargo is started now by hand and now from here.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Runs a program to its end. It has no standard input: nothing here may wait for an answer.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("start {name}"))?;
    ensure!(status.success(), "{} failed ({status})", line(command));
    Ok(())
}

/// What a program prints, if it can be started and succeeds.
pub(crate) fn output(program: impl AsRef<Path>, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program.as_ref());
    let output = command.args(arguments).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program's file, in `PATH` or where administration programs are; a user's `PATH` often lacks the latter.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let administration = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(administration).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// Whether this process may do what root may.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Runs `work` below a heading and says how long it took.
pub(crate) fn timed<T>(title: &str, work: impl FnOnce() -> Result<T>) -> (Result<T>, Duration) {
    println!("── {title}");
    let start = Instant::now();
    let result = work();
    let duration = start.elapsed();
    println!("── {title}: {} in {:.1} s\n", if result.is_ok() { "done" } else { "FAILED" }, duration.as_secs_f64());
    (result, duration)
}

fn line(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Builds the agent, and the programs that lie in the tests' package; cargo puts all of them beside this command.
pub(crate) fn build_programs() -> Result<()> {
    run(&mut cargo(&["build", "--locked", "-p", "pod-identity-agent", "-p", "pod-identity-tests"]))
}
