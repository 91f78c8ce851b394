//! The static program: the same bytes from the same sources, wherever the repository and cargo's home lie.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{process, workspace};

/// The agent's package, and its program.
pub(super) const PACKAGE: &str = "pod-identity-agent";

/// Builds it and says where it is.
pub(super) fn build() -> Result<PathBuf> {
    let target = target();
    let flags = flags()?.join("\u{1f}");
    // With a target named, the flags reach the program only: a build script or procedural macro cannot be static.
    process::run(
        process::cargo(&["build", "--locked", "--release", "--package", PACKAGE, "--target", &target])
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            .env_remove("RUSTFLAGS")
            .env("CARGO_INCREMENTAL", "0"),
    )?;
    let directory = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace::root().join("target"), PathBuf::from);
    let program = directory.join(target).join("release").join(PACKAGE);
    ensure_static(&program)?;
    Ok(program)
}

/// glibc's target: it resolves names from a static program as well, as long as nothing but files and DNS is asked.
pub(super) fn target() -> String {
    format!("{}-unknown-linux-gnu", env::consts::ARCH)
}

/// A static program, with no path of this machine in its panic messages.
fn flags() -> Result<Vec<String>> {
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    let mut hide = |directory: &Path| flags.push(format!("--remap-path-prefix={}/=", directory.display()));
    hide(workspace::root());
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let sources = home.context("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    // One directory for each registry, named for its address: a mirror's would show.
    for entry in fs::read_dir(&sources).with_context(|| format!("list {}", sources.display()))? {
        hide(&entry?.path());
    }
    // The order of a directory's entries is nobody's promise.
    flags.sort();
    Ok(flags)
}

/// A program that asks for a loader would not start from an empty root.
fn ensure_static(program: &Path) -> Result<()> {
    use object::read::elf::{ElfFile64, ProgramHeader as _};
    let bytes = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    let file = ElfFile64::<object::LittleEndian>::parse(bytes.as_slice())?;
    let endian = file.endian();
    let loader = file.elf_program_headers().iter().any(|header| header.p_type(endian) == object::elf::PT_INTERP);
    ensure!(!loader, "{} is not static", program.display());
    Ok(())
}
