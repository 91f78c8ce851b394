//! The root of a node with a systemd, for the containers tier in full size: a Debian with little else than a systemd and a
//! container runtime, made once into the user's cache.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{kit, process, setup};

/// Tells the tests where it is.
pub(crate) const VARIABLE: &str = "POD_IDENTITY_SYSTEMD_ROOT";

/// Another number for other contents.
const DIRECTORY: &str = "pod-identity-agent/systemd-node-1";

/// The Debian whose containerd and runc the tier was made with.
const SUITE: &str = "bookworm";
const PACKAGES: &str = "systemd,containerd,runc,containernetworking-plugins";

/// Its directory, made first where it is missing.
pub(crate) fn root() -> Result<PathBuf> {
    let directory = kit::cache()?.join(DIRECTORY);
    let root = directory.join("root");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    // Two clones may come here at once. The lock ends with the file.
    let lock = fs::File::create(directory.with_extension("lock")).context("create the lock of the node's root")?;
    lock.lock().context("lock the node's root")?;
    if !root.is_dir() {
        setup::require(&[("debootstrap", "debootstrap")])?;
        let unfinished = directory.join("build");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).context("remove what an interrupted installation left")?;
        }
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE]).arg(&unfinished);
        process::timed("install a Debian for nodes with a systemd, once", || process::run(&mut debootstrap)).0?;
        fs::rename(&unfinished, &root)?;
    }
    Ok(root)
}
