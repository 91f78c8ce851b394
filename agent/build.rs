//! Builds the eBPF programs and hands their object to the crate as `OUT_DIR/agent-ebpf.o`.

#[path = "build/ebpf.rs"]
mod ebpf;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// What the object is made from, relative to the workspace.
const SOURCES: [&str; 6] =
    ["agent-ebpf/src", "agent-ebpf/Cargo.toml", "Cargo.lock", "Cargo.toml", "agent/build.rs", "agent/build"];

fn main() -> ExitCode {
    let variable = |name| PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")));
    let manifest = variable("CARGO_MANIFEST_DIR");
    let workspace = manifest.parent().expect("the package lies in the workspace");
    let object = variable("OUT_DIR").join("agent-ebpf.o");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", workspace.join(source).display());
    }

    match embed(workspace, &object) {
        Ok(()) => ExitCode::SUCCESS,
        // An exit code of success keeps cargo from printing this script's whole output around the one line.
        Err(missing @ ebpf::Failure::Missing(_)) => {
            println!("cargo::error={missing}");
            ExitCode::SUCCESS
        }
        // Here the output is wanted: it holds the compiler's errors.
        Err(failure) => {
            println!("cargo::error={failure}");
            ExitCode::FAILURE
        }
    }
}

fn embed(workspace: &Path, object: &Path) -> Result<(), ebpf::Failure> {
    let toolchain = ebpf::Toolchain::find()?;
    for file in toolchain.files() {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    toolchain.build(workspace, &architecture, object).map(drop)
}
