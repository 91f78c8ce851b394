//! The machine the tests run on: what they need of it, names that no two tests share, and the size of a run.
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Result, ensure};

use crate::{cgroup, netns, process};

/// All that tests make on the machine has a name that starts so, then the process and a number.
const PREFIX: &str = "pit-";

/// Where run directories are made.
const RUN_DIRS: &str = "/tmp";

/// Fails without root: namespaces, cgroups and eBPF programs are real here, and a test that skipped them would say
/// nothing.
pub fn require_root() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "this test makes network namespaces, cgroups and mounts and loads eBPF programs: run it as root"
    );
    Ok(())
}

/// A name for something on this machine that no other test has, now or in another process. Short enough to lead an
/// interface's name.
#[must_use]
pub fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    static SWEEP: Once = Once::new();
    SWEEP.call_once(sweep);
    format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A new directory for one node's files.
pub fn run_dir(name: &str) -> Result<PathBuf> {
    let dir = Path::new(RUN_DIRS).join(name);
    fs::create_dir(&dir)?;
    Ok(dir)
}

/// Whether the long forms of tests were asked for (`POD_IDENTITY_TEST_SIZE=full`).
#[must_use]
pub fn full_size() -> bool {
    std::env::var("POD_IDENTITY_TEST_SIZE").is_ok_and(|size| size == "full")
}

/// The process that made something of this name, if it is one of ours.
fn maker(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// Removes what a test process left behind that was killed before it could clean up. What it ran has ended with it
/// (every process of a test asks the kernel to be killed with its parent), so only names are left.
fn sweep() {
    let dead = |name: &str| maker(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
    let names = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| dead(name)).collect()
    };
    for name in names(Path::new(netns::DIRECTORY)) {
        let _ = process::run(std::process::Command::new("ip").args(["netns", "del", &name]), process::QUICK);
    }
    if let Ok(mount) = cgroup::mount_point() {
        for name in names(mount) {
            let _ = cgroup::remove_tree(&mount.join(name));
        }
    }
    for mount in cgroup::v1_mounts() {
        for name in names(&mount) {
            let _ = cgroup::remove_below(&mount.join(name));
        }
    }
    for name in names(Path::new(RUN_DIRS)) {
        remove_run_dir(&Path::new(RUN_DIRS).join(name));
    }
}

/// Unmounts everything below a run directory, then removes it.
pub(crate) fn remove_run_dir(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // Later mounts lie deeper, or on top.
    for line in mounts.lines().rev() {
        if let Some(target) = line.split(' ').nth(4).filter(|target| Path::new(target).starts_with(dir)) {
            let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
        }
    }
    let _ = fs::remove_dir_all(dir);
}
