//! Tools that are built here, each in the one version that was tried: cargo's own way to install them, into the user's
//! cache, where another clone and the next run find them.

use std::path::PathBuf;

use anyhow::Result;

use crate::{cache, process};

/// A program of crates.io.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
}

pub(crate) const DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2" };
pub(crate) const FUZZ: Tool = Tool { name: "cargo-fuzz", version: "0.13.2" };
pub(crate) const MUTANTS: Tool = Tool { name: "cargo-mutants", version: "27.1.0" };

impl Tool {
    /// Its file, built first where it is missing.
    pub(crate) fn file(&self) -> Result<PathBuf> {
        let Self { name, version } = self;
        let root = cache::directory(&format!("{name}-{version}"))?;
        let file = root.join("bin").join(name);
        if !file.is_file() {
            let mut install = process::cargo(&["install", name, "--quiet", "--locked", "--version", version, "--root"]);
            let install = install.arg(&root).env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
            process::timed(&format!("build {name} {version}, by cargo install"), || process::run(install)).0?;
        }
        Ok(file)
    }
}
