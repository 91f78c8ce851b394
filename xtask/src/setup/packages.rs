//! What comes from Debian's packages.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};

use crate::process;

/// A program that the build starts, and Debian's package of it: links build scripts, and compiles the C of one crate.
const COMPILER: (&str, &str) = ("cc", "gcc");

/// Programs that the tests start, and their packages.
const PROGRAMS: [(&str, &str); 14] = [
    // Shows programs and maps.
    ("bpftool", "bpftool"),
    // Network namespaces of nodes and pods; sockets in them.
    ("ip", "iproute2"),
    ("ss", "iproute2"),
    // What breaks agents that live on a link-local address.
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("tcpdump", "tcpdump"),
    // Counts instructions.
    ("valgrind", "valgrind"),
    // Ways into namespaces that keep the cgroup mount in sight.
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    // Makes the key of the tests' token issuer.
    ("openssl", "openssl"),
    ("python3", "python3"),
    // Makes containers, of images with little else than one program.
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("busybox", "busybox-static"),
];

/// Files that the tests use, and their packages.
const FILES: [(&str, &str); 2] = [
    // Networks of containers.
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    // An SDK does not start without.
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
];

/// Packages for what is not there: of the build, and of the tests too if `tests` says so.
pub(super) fn missing(tests: bool) -> Vec<&'static str> {
    let wanted = PROGRAMS.iter().filter(|_| tests).chain([&COMPILER]);
    let mut packages: Vec<_> =
        wanted.filter(|(program, _)| process::find(program).is_none()).map(|(_, package)| *package).collect();
    // Debian ships Python without what makes a virtual environment.
    if tests && process::output("python3", &["-c", "import ensurepip, venv"]).is_none() {
        packages.push("python3-venv");
    }
    if !Path::new("/usr/include/stdlib.h").is_file() {
        packages.push("libc6-dev");
    }
    packages.extend(FILES.iter().filter(|(file, _)| tests && !Path::new(file).is_file()).map(|(_, package)| *package));
    packages
}

/// Says what to do by hand where this command cannot install.
pub(super) fn installable(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    ensure!(
        process::find("apt-get").is_some(),
        "this system has no apt-get; install by its own means what Debian calls: {list}"
    );
    ensure!(
        process::is_root(),
        "installing packages needs root; run this, then setup again:\n  \
         sudo apt-get update && sudo apt-get install --no-install-recommends {list}"
    );
    Ok(())
}

pub(super) fn install(packages: &[&str]) -> Result<()> {
    // Lists that are missing or old make apt-get ask for files that are not there. One list of many that cannot be
    // fetched is no reason to stop: the installation tells whether it mattered.
    if let Err(error) = process::run(apt().arg("update")) {
        println!("{error}: going on with the package lists that are there");
    }
    process::run(apt().args(["install", "--yes", "--no-install-recommends"]).args(packages))
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    // Unattended upgrades of a fresh machine hold the lock for a while.
    apt.args(["-qq", "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0"]);
    apt
}
