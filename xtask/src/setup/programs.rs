//! Programs that are built here because no package has them.

use std::{env, ffi::OsString};

use anyhow::Result;

use crate::process;

const LINKER_VERSION: &str = "0.13.0";
/// Where Debian puts the `llvm-config` of the LLVM that fits its rustc-web.
const LLVM_BIN: &str = "/usr/lib/llvm-22/bin";

pub(super) fn linker_sentence() -> String {
    format!("build bpf-linker {LINKER_VERSION} with LLVM 22, by cargo install")
}

pub(super) fn install_linker() -> Result<()> {
    let mut path = OsString::from(LLVM_BIN);
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    process::run(
        process::cargo(&["install", "bpf-linker", "--quiet", "--version", LINKER_VERSION, "--locked"])
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("PATH", path)
            // Flags for the project's own binaries, such as a static C library, do not fit a shared LLVM.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )
}
