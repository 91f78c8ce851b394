//! `mutants`: whether the tests of the credential engine's pure policies notice when these are changed. Takes about an
//! hour on two cores, so it is part of no other command; what may survive is argued in `.cargo/mutants.toml`.

use std::process::Command;

use anyhow::Result;

use crate::{clients, process, workspace};

const VERSION: &str = "27.1.0";

pub(crate) fn run() -> Result<()> {
    // Beside the other pinned downloads: built once for each version.
    let root = clients::cache()?.join(format!("pod-identity-agent/cargo-mutants-{VERSION}"));
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
    // Each change is built in a copy of the tree, with the unit tests of the engine alone.
    let mut mutants = Command::new(&tool);
    mutants.current_dir(workspace::root()).args(["mutants", "--package", "pod-identity-agent", "--timeout", "120"]);
    mutants.args(["--output", "target", "--", "--locked", "--lib", "credentials"]);
    process::run(&mut mutants)
}
