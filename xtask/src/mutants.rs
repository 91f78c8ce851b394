//! `mutants`: whether the fast unit tests of the credential engine notice when its pure policies are changed. Each change is
//! built and tested for some 15 s on two cores, so it is part of no other command; what may survive is argued in
//! `.cargo/mutants.toml`. A change that is not noticed fails the command, as does one that makes a test hang.

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
    // In a copy of the tree. The tests take 2 s with so few random cases; a hang is no kill, and 60 s tell it from a busy
    // machine.
    let mut mutants = Command::new(&tool);
    mutants.current_dir(workspace::root()).args(["mutants", "--package", "pod-identity-agent", "--timeout", "60"]);
    mutants.env("PROPTEST_CASES", "64");
    mutants.args(["--output", "target", "--", "--locked", "--lib", "credentials::", "--"]);
    // The simulations take longer than all others together, and find nothing here that these do not.
    mutants.args(["--skip", "simulation::", "--skip", "eks_auth::"]);
    process::run(&mut mutants)
}
