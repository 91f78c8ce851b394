//! The programs of Kubernetes as processes of a node.
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    node::Node,
    process::{Process, binary},
};

/// Says where they are; `cargo xtask cluster-test` sets it.
const VARIABLE: &str = "POD_IDENTITY_KUBERNETES";

/// As much of a log as says why a part has failed.
const TAIL: usize = 40;

/// Where a program is: `kubelet`, `etcd`.
pub(super) fn program(name: &str) -> Result<PathBuf> {
    let directory = env::var_os(VARIABLE).with_context(|| {
        format!("{VARIABLE} does not say where Kubernetes is: `cargo xtask cluster-test` builds it and runs this tier")
    })?;
    let program = Path::new(&directory).join(name);
    ensure!(program.is_file(), "{} is not there: run `cargo xtask cluster-test`", program.display());
    Ok(program)
}

/// A part that runs.
#[derive(Debug)]
pub(super) struct Part {
    name: &'static str,
    process: Process,
    log: PathBuf,
}

impl Part {
    /// Starts a program of Kubernetes in a node's network namespace and below its cgroup.
    pub(super) fn start(node: &Node, name: &'static str, args: &[String]) -> Result<Self> {
        let mut command = Command::new(program(name)?);
        command.args(args);
        Self::start_command(node, name, &command)
    }

    /// Starts any command likewise.
    pub(super) fn start_command(node: &Node, name: &'static str, command: &Command) -> Result<Self> {
        let mut pod_exec = Command::new(binary("pod-exec")?);
        pod_exec.arg("--from").arg(node.netns().path());
        pod_exec.arg("--cgroup").arg(node.top_cgroup().child(name)?.dir());
        pod_exec.arg("--").arg(command.get_program()).args(command.get_args());
        // No proxy and no settings of this machine's own.
        pod_exec.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default()).env("HOME", node.dir());
        let log = node.dir().join(format!("cluster/{name}.log"));
        Ok(Self { name, process: Process::start(name, &mut pod_exec, &log)?, log })
    }

    /// Fails if it has ended.
    pub(super) fn runs(&mut self) -> Result<()> {
        match self.process.ended()? {
            Some(status) => bail!("{} ended with {status}:\n{}", self.name, self.log_text()),
            None => Ok(()),
        }
    }

    /// The end of what it has logged.
    pub(super) fn log_text(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or_default().join("\n")
    }
}
