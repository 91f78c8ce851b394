//! The demo of the README runs to its end, fails when a step fails, and leaves nothing behind either way.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use pod_identity_tests::{
    aws::clients::Clients,
    cgroup::mount_point,
    host::unique_name,
    process::{Process, binary, eventually},
};
use rustix::process::Signal;

/// It takes 12 s on an idle machine.
const PLAYS: Duration = Duration::from_mins(2);
/// For its children to be gone once it has been told.
const ENDS: Duration = Duration::from_secs(20);

#[test]
fn it_runs_to_its_end() -> Result<()> {
    let mut demo = Demo::start(&[])?;
    let status = demo.process.wait(PLAYS)?;
    let shown = demo.shown();
    ensure!(status.success(), "it ended with {status}:\n{shown}");
    for part in [
        "the pod is the role, in a session named for the pod",
        "the bucket of the role's policy is listed",
        "another bucket is denied",
        "refused, with the reason that EKS Auth gave",
        "the counters have names",
        "no process, namespace, cgroup, mount or file is left",
    ] {
        ensure!(shown.contains(&format!("✓ {part}")), "it does not show that {part}:\n{shown}");
    }
    ensure!(!shown.contains('\x1b'), "colours without a terminal:\n{shown}");
    demo.left_nothing()
}

#[test]
fn a_signal_ends_it_and_it_cleans_up() -> Result<()> {
    let mut demo = Demo::start(&["--keep"])?;
    eventually("a pod of the demo", PLAYS, || Ok(demo.shown().contains("\nIn pod ").then_some(())))?;
    demo.process.signal(Signal::TERM)?;
    let status = demo.process.wait(ENDS)?;
    ensure!(status.code() == Some(128 + 15), "it ended with {status}:\n{}", demo.shown());
    demo.left_nothing()
}

#[test]
fn a_step_that_fails_fails_it_and_it_cleans_up() -> Result<()> {
    let mut demo = Demo::start_with(&[], |command| command.env("POD_IDENTITY_AGENT_BIN", "/bin/false"))?;
    let status = demo.process.wait(PLAYS)?;
    let shown = demo.shown();
    ensure!(status.code() == Some(1), "it ended with {status}:\n{shown}");
    ensure!(shown.contains("✗ pod-identity-agent: programs attached, ready"), "{shown}");
    demo.left_nothing()
}

/// The demo as `cargo xtask demo` starts it, with its output in a file.
struct Demo {
    process: Process,
    output: PathBuf,
}

impl Demo {
    fn start(args: &[&str]) -> Result<Self> {
        Self::start_with(args, |command| command)
    }

    fn start_with(args: &[&str], change: impl FnOnce(&mut Command) -> &mut Command) -> Result<Self> {
        let output = std::env::temp_dir().join(format!("{}-demo", unique_name()));
        let mut command = Command::new(binary("demo")?);
        command.args(args).env("POD_IDENTITY_CLIENTS", Clients::find()?.directory());
        Ok(Self { process: Process::start("the demo", change(&mut command), &output)?, output })
    }

    fn shown(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Whatever it makes has a name with its process id.
    fn left_nothing(&self) -> Result<()> {
        let prefix = format!("pit-{}-", self.process.pid());
        for place in [Path::new("/run/netns"), mount_point()?, Path::new("/tmp")] {
            for entry in fs::read_dir(place)? {
                let name = entry?.file_name();
                if name.to_string_lossy().starts_with(&prefix) {
                    bail!("{} is left in {}\n{}", name.display(), place.display(), self.shown());
                }
            }
        }
        Ok(())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Before the process is killed, should it still run: only by its own way does it clean up.
        if self.process.ended().is_ok_and(|ended| ended.is_none()) && self.process.signal(Signal::TERM).is_ok() {
            let _ = self.process.wait(ENDS);
        }
        let _ = fs::remove_file(&self.output);
    }
}
