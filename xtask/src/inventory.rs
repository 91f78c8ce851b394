//! What documents list, held against the tree: the places of unsafe code, and the direct dependencies.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::workspace;

/// Where unsafe code may be (SECURITY.md says why, and how each is checked).
const UNSAFE: [&str; 9] = [
    "agent-ebpf/src/lib.rs",
    "agent-ebpf/src/main.rs",
    "agent/benches/heap.rs",
    "agent/src/confinement/tests.rs",
    "agent/src/sys.rs",
    "tests/attacks/raw.rs",
    "tests/src/bin/pod-client/uring.rs",
    "tests/src/bin/pod-exec.rs",
    "tests/src/bpf.rs",
];

const MANIFESTS: [&str; 5] =
    ["agent/Cargo.toml", "agent/fuzz/Cargo.toml", "agent-ebpf/Cargo.toml", "tests/Cargo.toml", "xtask/Cargo.toml"];

/// Unsafe code is denied everywhere (`Cargo.toml`), so each place of it begins with an exception from that.
pub(crate) fn unsafe_code() -> Result<()> {
    let git = Command::new("git")
        .current_dir(workspace::root())
        .args(["grep", "--untracked", "-lE", r"(expect|allow|warn)\(\s*unsafe_code", "--", "*.rs"])
        .output()
        .context("start git")?;
    let found = String::from_utf8(git.stdout).context("names of files")?;
    let found: Vec<&str> = found.lines().collect();
    ensure!(
        found == UNSAFE,
        "unsafe code is in {found:?}; what SECURITY.md and xtask/src/inventory.rs know is {UNSAFE:?}"
    );
    Ok(())
}

/// Every direct dependency has a line in CONTRIBUTING.md, and every line there is one of a dependency.
pub(crate) fn dependencies() -> Result<()> {
    let read = |name: &str| fs::read_to_string(workspace::root().join(name)).with_context(|| format!("read {name}"));
    let mut direct = Vec::new();
    for manifest in MANIFESTS {
        direct.extend(dependencies_of(&read(manifest)?));
    }
    // Members of the workspace depend on each other.
    direct.retain(|name| !matches!(&**name, "agent-ebpf" | "pod-identity-agent"));
    direct.sort();
    direct.dedup();
    let contributing = read("CONTRIBUTING.md")?;
    let (_, list) =
        contributing.split_once("## Dependencies").context("CONTRIBUTING.md has no list of dependencies")?;
    let mut explained: Vec<String> = list
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |").map(|(names, _)| names))
        .flat_map(|names| names.split("`, `").map(str::to_owned))
        .collect();
    explained.sort();
    ensure!(explained == direct, "CONTRIBUTING.md explains {explained:?}; the dependencies are {direct:?}");
    Ok(())
}

/// The keys of a manifest's tables of dependencies.
fn dependencies_of(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut in_table = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_table = line.ends_with("dependencies]");
        } else if in_table && line.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            names.extend(line.split(['.', ' ', '=']).next().map(str::to_owned));
        }
    }
    names
}
