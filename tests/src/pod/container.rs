//! A container of a pod: a cgroup of its own with a process in it.
use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Result, bail};

use super::{ask_with, sandbox::Sandbox};
use crate::{
    cgroup::Cgroup,
    client::{Answer, Client},
    node::Ground,
    process::{Process, binary, eventually},
    token::random_hex,
};

/// For its process to be in its cgroup.
const ARRIVES: Duration = Duration::from_secs(10);

/// A container.
#[derive(Debug)]
pub struct Container {
    process: Process,
    name: String,
    id: String,
    cgroup: Cgroup,
    way: Way,
}

/// How a process becomes one of a pod's.
#[derive(Clone, Debug)]
pub(super) struct Way {
    /// The node's namespace, from which runtimes start it.
    pub(super) from: PathBuf,
    pub(super) netns: PathBuf,
    pub(super) userns: Option<PathBuf>,
}

impl Container {
    pub(super) fn start(ground: &Ground, pod: &Cgroup, sandbox: &Sandbox, name: &str) -> Result<Self> {
        let id = random_hex(32);
        let cgroup = pod.child(&ground.kubepods.container_name(&id))?;
        let way = sandbox.way(ground);
        let mut command = way.enter(&cgroup)?;
        let log = ground.dir.0.join("containers.log");
        let what = format!("container {name}");
        let mut process = Process::start(&what, command.args(["sleep", "infinity"]), &log)?;
        eventually(&format!("{what} to run"), ARRIVES, || {
            if let Some(status) = process.ended()? {
                bail!("it ended with {status}");
            }
            Ok(cgroup.processes()?.contains(&process.pid()).then_some(()))
        })?;
        Ok(Self { process, name: name.to_owned(), id, cgroup, way })
    }

    /// Its name in the pod.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id, 64 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its first process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// A command that will run in it, as `kubectl exec` starts one.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = self.command_line()?;
        command.arg(program);
        Ok(command)
    }

    /// The beginning of a command line that runs in it.
    pub fn command_line(&self) -> Result<Command> {
        self.way.enter(&self.cgroup)
    }

    /// Makes requests from it.
    pub fn ask(&self, client: &Client) -> Result<Vec<Answer>> {
        ask_with(&mut self.command_line()?, client)
    }

    /// Ends it and removes its cgroup.
    pub(super) fn remove(self) -> Result<()> {
        let Self { process, cgroup, .. } = self;
        drop(process);
        if cgroup.exists() {
            cgroup.kill()?;
            cgroup.remove()?;
        }
        Ok(())
    }
}

impl Way {
    /// The beginning of a command line that ends in the command to be run.
    pub(super) fn enter(&self, cgroup: &Cgroup) -> Result<Command> {
        let mut command = Command::new(binary("pod-exec")?);
        command.arg("--from").arg(&self.from).arg("--cgroup").arg(cgroup.dir()).arg("--netns").arg(&self.netns);
        if let Some(userns) = &self.userns {
            command.arg("--userns").arg(userns);
        }
        command.arg("--");
        Ok(command)
    }
}
