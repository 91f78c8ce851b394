//! The root of a node with a systemd, for the containers tier in full size: a Debian with little else than a systemd and a
//! container runtime, made once into the user's cache.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{cache, process, setup};

/// Tells the tests where it is.
pub(crate) const VARIABLE: &str = "POD_IDENTITY_SYSTEMD_ROOT";

/// Another number for other contents.
const DIRECTORY: &str = "systemd-node-1";

/// The Debian whose containerd and runc the tier was made with.
const SUITE: &str = "bookworm";
const PACKAGES: &str = "systemd,containerd,runc,containernetworking-plugins";

/// Its directory, made first where it is missing.
pub(crate) fn root() -> Result<PathBuf> {
    cache::part(&cache::directory(DIRECTORY)?, "root", |work| {
        setup::require(&[("debootstrap", "debootstrap")])?;
        let root = work.join("root");
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE]).arg(&root);
        process::timed("install a Debian for nodes with a systemd, once", || process::run(&mut debootstrap)).0?;
        Ok(root)
    })
}
