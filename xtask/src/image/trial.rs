//! The image's program, started from the image's root: nothing of this machine is there to help it.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::layer::PROGRAM;
use crate::process;

/// Fails when the program does not start, or is another version's.
pub(super) fn run(root: &Path) -> Result<()> {
    let version = start(root, &["version"])?;
    ensure!(version.0 && version.1.trim() == env!("CARGO_PKG_VERSION"), "it calls itself {:?}", version.1);
    let help = start(root, &["server", "--help"])?;
    ensure!(help.0 && help.1.contains("--cluster-name"), "it does not explain itself: {}", help.1);
    // No agent runs there: the answer that probes give to the kubelet.
    let probe = start(root, &["probe", "--ready"])?;
    ensure!(!probe.0 && probe.1.contains("/run/pod-identity-agent"), "it probes without an agent: {}", probe.1);
    Ok(())
}

/// Whether it succeeds, and what it says.
fn start(root: &Path, arguments: &[&str]) -> Result<(bool, String)> {
    let mut unshare = Command::new("unshare");
    unshare.args((!process::is_root()).then_some("--map-root-user")).arg("--root").arg(root);
    let output = unshare.arg(PROGRAM).args(arguments).output().context("start unshare")?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}
