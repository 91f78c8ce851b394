//! `check`: what a change must pass before its tests are worth running.

use std::{env, process::Command};

use anyhow::{Result, anyhow, ensure};

use crate::{ebpf::Toolchain, inventory, process, tools, workspace};

pub(crate) fn run() -> Result<()> {
    process::timed("format", format).0?;
    process::timed("dependencies", dependencies).0?;
    process::timed("unsafe code", inventory::unsafe_code).0?;
    process::timed("clippy, user space", clippy_host).0?;
    process::timed("clippy, eBPF programs", clippy_programs).0?;
    process::timed("documentation", documentation).0
}

fn format() -> Result<()> {
    process::run(&mut process::cargo(&["fmt", "--all", "--check"]))
}

/// Licences, sources, what is banned: `deny.toml`. Not advisories: their list changes without this repository, and is not on
/// crates.io.
fn dependencies() -> Result<()> {
    inventory::dependencies()?;
    let mut deny = Command::new(tools::DENY.file()?);
    deny.current_dir(workspace::root()).args([
        "--locked",
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ]);
    process::run(&mut deny)
}

fn clippy_host() -> Result<()> {
    process::run(&mut process::cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny=warnings"]))
}

/// The host's clippy does not see the programs: on the host their binary is empty.
fn clippy_programs() -> Result<()> {
    let toolchain = Toolchain::find().map_err(|failure| anyhow!("{failure}"))?;
    let driver = toolchain.bin().join("clippy-driver");
    ensure!(
        driver.is_file(),
        "{} not found: install Debian's rust-web-clippy, or rustup's component clippy",
        driver.display()
    );
    process::run(
        toolchain
            .cargo(workspace::root(), env::consts::ARCH, "check", &["--deny=warnings"])
            .env("RUSTC_WORKSPACE_WRAPPER", driver),
    )
}

fn documentation() -> Result<()> {
    process::run(
        process::cargo(&["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"])
            .env("RUSTDOCFLAGS", "--deny=warnings"),
    )
}
