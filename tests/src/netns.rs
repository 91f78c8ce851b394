//! Network namespaces that end with their owner.
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::AsFd as _;

use crate::process::{must, must_with_input};

/// Where named network namespaces are.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// A named network namespace, with its loopback up.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a new one.
    pub fn create(name: &str) -> Result<Self> {
        must(Command::new("ip").args(["netns", "add", name]))?;
        let netns = Self { name: name.to_owned() };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Names the namespace that a process lives in.
    pub fn of_process(name: &str, pid: u32) -> Result<Self> {
        must(Command::new("ip").args(["netns", "attach", name, &pid.to_string()]))?;
        Ok(Self { name: name.to_owned() })
    }

    /// Its name, as `ip netns` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Runs commands of `ip` in it, one a line.
    pub fn ip(&self, commands: &str) -> Result<()> {
        must_with_input(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), commands.as_bytes())?;
        Ok(())
    }

    /// Loads rules of nftables into it.
    pub fn nft(&self, rules: &str) -> Result<()> {
        must_with_input(self.command("nft").args(["-f", "-"]), rules.as_bytes())?;
        Ok(())
    }

    /// Sets a value below /proc/sys/net.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let file = format!("/proc/sys/net/{key}");
        // Which namespace the file is about is decided by the thread that opens it.
        self.within(|| fs::write(&file, value))?.with_context(|| format!("cannot set {file} to {value}"))
    }

    /// A command that will run in it, with everything else (mounts, cgroup) as it is here. Not `ip netns exec`: that
    /// mounts a new /sys, and the cgroups are gone from sight.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a closure in it, on a thread that ends with it: no other code ever runs in the wrong namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let netns = File::open(self.path()).with_context(|| format!("network namespace {} is gone", self.name))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || -> Result<T> {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(work())
            });
            thread.join().map_err(|_| anyhow!("a thread in network namespace {} panicked", self.name))?
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = must(Command::new("ip").args(["netns", "del", &self.name]));
    }
}
