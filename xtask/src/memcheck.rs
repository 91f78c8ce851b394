//! `memcheck`: unit tests under valgrind. All memory of the agent passes through an allocator of its own that writes to each
//! block before it is freed (`agent/src/sys/heap.rs`), so any test shows whether it keeps to the block.
//!
//! Miri would interpret little of the agent's `unsafe`: nearly every block is a call to the kernel or to the C library.

use anyhow::{Context as _, Result};

use crate::{process, setup};

/// What has unsafe code, or reads what others wrote; the rest would show the same allocator at work, for minutes.
const TESTS: [&str; 8] = [
    "sys::locked",
    "fuzzing::",
    "attestation::",
    "cgroup::",
    "credentials::issued",
    "refusal::",
    "server::host",
    "token::",
];

pub(crate) fn run() -> Result<()> {
    setup::ensure()?;
    let valgrind = process::find("valgrind").context("valgrind is not in PATH")?;
    let runner = format!("{} --quiet --error-exitcode=1 --errors-for-leak-kinds=none", valgrind.display());
    let mut cargo = process::cargo(&["test", "--locked", "-p", "pod-identity-agent", "--lib", "--"]);
    cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", runner);
    // valgrind runs one thread at a time anyway.
    process::run(cargo.args(TESTS).arg("--test-threads=1"))
}
