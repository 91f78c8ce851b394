//! What processes use: processor time, switches between tasks, memory.
use std::{fs, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, Serialize};

/// What processes have used since their start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// In user and kernel mode together: to the nanosecond, where utime and stime are rounded to ticks.
    pub cpu: Duration,
    /// Times that a thread gave the processor up, and times that it was taken away.
    pub switches: u64,
    /// The former alone: each is followed by a wake-up.
    pub waits: u64,
}

/// What processes have in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Kilobytes, each shared page counted in part.
    pub pss_kb: u64,
    /// Kilobytes with a place in memory.
    pub rss_kb: u64,
    /// Of those, what is no file's: the heap and stacks.
    pub anonymous_kb: u64,
}

impl Usage {
    /// Of these processes together.
    pub fn of(pids: &[u32]) -> Result<Self> {
        let mut usage = Self::default();
        for pid in pids {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let task = task?.path();
                usage.cpu += on_processor(&task)?;
                let status = fs::read_to_string(task.join("status"))?;
                let count = |name: &str| -> Option<u64> {
                    status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
                };
                let waits = count("voluntary_ctxt_switches:").unwrap_or_default();
                usage.switches += waits + count("nonvoluntary_ctxt_switches:").unwrap_or_default();
                usage.waits += waits;
            }
        }
        Ok(usage)
    }

    /// What was used between an earlier moment and this one.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            switches: self.switches.saturating_sub(earlier.switches),
            waits: self.waits.saturating_sub(earlier.waits),
        }
    }
}

impl Memory {
    /// Of these processes together.
    pub fn of(pids: &[u32]) -> Result<Self> {
        let mut memory = Self::default();
        for pid in pids {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let kilobytes = |name: &str| -> Result<u64> {
                let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
                Ok(line.trim().trim_end_matches("kB").trim().parse()?)
            };
            memory.pss_kb += kilobytes("Pss:")?;
            memory.rss_kb += kilobytes("Rss:")?;
            memory.anonymous_kb += kilobytes("Anonymous:")?;
        }
        Ok(memory)
    }
}

/// Processor time of a process's thread of this name so far.
pub fn thread_time(pid: u32, name: &str) -> Result<Duration> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() == name {
            return on_processor(&task);
        }
    }
    Err(anyhow!("process {pid} has no thread '{name}'"))
}

fn on_processor(task: &std::path::Path) -> Result<Duration> {
    let schedstat = fs::read_to_string(task.join("schedstat"))?;
    let nanoseconds = schedstat.split(' ').next().context("an empty schedstat")?.trim().parse()?;
    Ok(Duration::from_nanos(nanoseconds))
}

/// Processor time that this machine has spent on anything, in ticks' precision.
pub fn machine_time() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields: Vec<u64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal: what is neither idle nor waiting.
    let busy: u64 = fields.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, n)| n).sum();
    Ok(Duration::from_millis(busy * 10))
}

/// What else runs on this machine must not decide what is measured: with automatic groups, processes of another session
/// get no more of a processor than all of this one together, whatever their number and nice values. For as long as this
/// lives the session comes before others. A kernel without such groups has nothing to raise.
#[derive(Debug)]
pub struct Priority(());

const AUTOGROUP: &str = "/proc/self/autogroup";

impl Priority {
    /// Raises it.
    #[must_use]
    pub fn raise() -> Self {
        let _ = fs::write(AUTOGROUP, "-15");
        Self(())
    }
}

impl Drop for Priority {
    fn drop(&mut self) {
        let _ = fs::write(AUTOGROUP, "0");
    }
}
