//! `mutants`: whether the tests of the credential engine's pure policies notice when these are changed. Takes a quarter of
//! an hour on two idle cores, so it is part of no other command. Fails unless each change makes a test fail; what may
//! survive is named, and argued, in `.cargo/mutants.toml`.

use std::process::Command;

use anyhow::Result;

use crate::{kit, process, workspace};

const VERSION: &str = "27.1.0";

/// Modules of `agent/src/credentials/` that are pure: no clock of their own, no tasks. Each is held against its own unit
/// tests alone. These take no time at all, and cannot hang: with a back-off of zero the engine asks for ever, and a test of
/// the engine under a paused clock would be ended by a time-out, which is no proof.
const PURE: [&str; 7] = ["policy", "tokens", "cache", "worker/restraint", "gate/policy", "gate/order", "gate/bucket"];

pub(crate) fn run() -> Result<()> {
    // Beside the other pinned downloads: built once for each version.
    let root = kit::cache()?.join(format!("pod-identity-agent/cargo-mutants-{VERSION}"));
    let tool = root.join("bin/cargo-mutants");
    if !tool.is_file() {
        let (installed, _) = process::timed(&format!("build cargo-mutants {VERSION}, by cargo install"), || {
            process::run(
                process::cargo(&["install", "cargo-mutants", "--quiet", "--locked", "--version", VERSION, "--root"])
                    .arg(&root),
            )
        });
        installed?;
    }
    // In a copy of the tree, which is built once from nothing.
    let mut mutants = Command::new(&tool);
    mutants.current_dir(workspace::root()).args(["mutants", "--package", "pod-identity-agent", "--timeout", "30"]);
    mutants.args(PURE.iter().flat_map(|module| ["--file".to_owned(), format!("agent/src/credentials/{module}.rs")]));
    mutants.args(["--output", "target", "--", "--locked", "--lib", "--"]);
    mutants.args(PURE.map(|module| format!("credentials::{}::", module.replace('/', "::"))));
    process::run(&mut mutants)
}
