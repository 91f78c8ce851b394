//! The static program: the same bytes from the same sources, wherever the repository and cargo's home lie.

use std::{env, fs, path::PathBuf};

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
    let bytes = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    ensure!(is_static(&bytes)?, "{} asks for a loader, and would not start from an empty root", program.display());
    for hidden in hidden()? {
        let path = format!("{}/", hidden.display());
        let shows = bytes.windows(path.len()).any(|window| window == path.as_bytes());
        ensure!(!shows, "{} has {path} in it, so another machine would make another image", program.display());
    }
    Ok(program)
}

/// glibc's target: it resolves names from a static program as well, as long as nothing but files and DNS is asked.
pub(super) fn target() -> String {
    format!("{}-unknown-linux-gnu", env::consts::ARCH)
}

/// A static program, with no path of this machine in its panic messages.
fn flags() -> Result<Vec<String>> {
    let hide = |directory: PathBuf| format!("--remap-path-prefix={}/=", directory.display());
    let mut flags: Vec<_> = hidden()?.into_iter().map(hide).collect();
    flags.push("-Ctarget-feature=+crt-static".to_owned());
    Ok(flags)
}

/// Directories whose names would otherwise be in the program, in one order.
fn hidden() -> Result<Vec<PathBuf>> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let sources = home.context("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    let mut hidden = vec![workspace::root().to_owned()];
    // One directory for each registry, named for its address: a mirror's would show. None where crates are vendored.
    if sources.is_dir() {
        for entry in fs::read_dir(&sources).with_context(|| format!("list {}", sources.display()))? {
            hidden.push(entry?.path());
        }
    }
    hidden.sort();
    Ok(hidden)
}

fn is_static(program: &[u8]) -> Result<bool> {
    use object::read::elf::{ElfFile64, ProgramHeader as _};
    let file = ElfFile64::<object::LittleEndian>::parse(program)?;
    let endian = file.endian();
    Ok(!file.elf_program_headers().iter().any(|header| header.p_type(endian) == object::elf::PT_INTERP))
}
