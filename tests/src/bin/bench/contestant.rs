//! Whoever answers, and one turn of load on it.
use std::{fs, net::SocketAddr, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    cgroup::Cgroup,
    load::Report,
    pod::Pod,
    process::binary,
    usage::{Memory, Usage},
};
use rustix::thread::{CpuSet, Pid, sched_setaffinity};

use crate::machine::Watch;

/// Whoever answers requests.
#[derive(Debug)]
pub(crate) struct Contestant<'a> {
    pub(crate) name: String,
    /// Its processes are the ones in this cgroup.
    pub(crate) cgroup: Cgroup,
    /// Where its clients run, and where they connect to.
    pub(crate) pod: &'a Pod,
    pub(crate) to: SocketAddr,
}

/// What its clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) kept: bool,
    pub(crate) clients: usize,
}

impl Case {
    pub(crate) fn name(self) -> String {
        let connection = if self.kept { "keep-alive" } else { "new connection" };
        format!("{connection}, {} client{}", self.clients, if self.clients == 1 { "" } else { "s" })
    }
}

/// What came of a turn.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    pub(crate) report: Report,
    /// What the server used.
    pub(crate) used: Usage,
}

impl Turn {
    #[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^53")]
    pub(crate) fn requests(&self) -> f64 {
        self.report.requests() as f64
    }

    /// Processor seconds of the server for 100 000 requests.
    pub(crate) fn cpu_per_100k(&self) -> f64 {
        self.used.cpu.as_secs_f64() / self.requests() * 1e5
    }

    pub(crate) fn microseconds(&self, quantile: f64) -> f64 {
        self.report.latencies.quantile(quantile).as_secs_f64() * 1e6
    }
}

impl Contestant<'_> {
    /// Keeps it on one processor.
    pub(crate) fn pin(&self, processor: usize) -> Result<()> {
        let mut set = CpuSet::new();
        set.set(processor);
        for pid in self.cgroup.processes()? {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let tid = task?.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
                sched_setaffinity(Some(tid.context("a task is a number")?), &set)?;
            }
        }
        Ok(())
    }

    /// Has its clients ask for so long. Every request must be answered with credentials.
    pub(crate) fn turn(&self, case: Case, milliseconds: u64, processor: usize, watch: &mut Watch) -> Result<Turn> {
        let pids = self.cgroup.processes()?;
        ensure!(!pids.is_empty(), "{} has ended", self.name);
        let load = binary("load")?.display().to_string();
        let mut command = self.pod.container("app")?.command(&load)?;
        command.args(["--connections", if case.kept { "kept" } else { "new" }]);
        command.args(["--clients", &case.clients.to_string(), "--for-ms", &milliseconds.to_string()]);
        command.args(["--to", &self.to.to_string(), "--token", self.pod.token()]);
        command.args(["--processor", &processor.to_string()]);
        watch.begin()?;
        let before = Usage::of(&pids)?;
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
        let used = Usage::of(&pids)?.since(before);
        ensure!(output.status.success(), "load: {}", String::from_utf8_lossy(&output.stderr));
        let report: Report = serde_json::from_slice(&output.stdout).context("what load printed")?;
        watch.end(used.cpu + std::time::Duration::from_secs_f64(report.cpu_seconds))?;
        ensure!(
            report.granted() == report.requests() && report.granted() > 0,
            "{}: {}: {:?} {:?}",
            self.name,
            case.name(),
            report.statuses,
            report.failures
        );
        Ok(Turn { report, used })
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        Memory::of(&self.cgroup.processes()?)
    }
}
