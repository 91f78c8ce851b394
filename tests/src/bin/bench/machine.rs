//! The machine that is measured on: what it is, and what else it does meanwhile.
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use pod_identity_tests::{process::binary, usage};
use serde::Serialize;

/// Part of a processor that others may use before the numbers are called noisy.
const QUIET: f64 = 0.1;

/// What it is.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    processor: String,
    processors: usize,
    memory_mb: u64,
    agent_bytes: u64,
}

impl Machine {
    pub(crate) fn here() -> Result<Self> {
        let line = |file: &str, name: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map_or("", |(_, value)| value.trim()).to_owned()
        };
        let memory = line("/proc/meminfo", "MemTotal");
        Ok(Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            processor: line("/proc/cpuinfo", "model name"),
            processors: std::thread::available_parallelism()?.get(),
            memory_mb: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or_default() / 1024,
            agent_bytes: fs::metadata(Path::new(&binary("pod-identity-agent")?))?.len(),
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes of a file are far below 2^53")]
    pub(crate) fn agent_megabytes(&self) -> f64 {
        self.agent_bytes as f64 / 1024.0 / 1024.0
    }

    /// Processors for the server and for its clients: two, where there are two.
    pub(crate) fn processors(&self) -> (usize, usize) {
        if self.processors > 1 { (0, 1) } else { (0, 0) }
    }
}

/// Watches what others do on the machine.
#[derive(Debug)]
pub(crate) struct Watch {
    started: Instant,
    busy: Duration,
    ours: Duration,
    watched: Duration,
    others: Duration,
}

impl Watch {
    pub(crate) fn new() -> Self {
        let zero = Duration::ZERO;
        Self { started: Instant::now(), busy: zero, ours: zero, watched: zero, others: zero }
    }

    /// A turn begins.
    pub(crate) fn begin(&mut self) -> Result<()> {
        (self.started, self.busy) = (Instant::now(), usage::machine_time()?);
        Ok(())
    }

    /// It is over; so much of the processors' time was what is being measured.
    pub(crate) fn end(&mut self, ours: Duration) -> Result<()> {
        let busy = usage::machine_time()?.saturating_sub(self.busy);
        self.others += busy.saturating_sub(ours);
        self.ours += ours;
        self.watched += self.started.elapsed();
        Ok(())
    }

    /// The part of one processor that others used.
    pub(crate) fn others(&self) -> f64 {
        self.others.as_secs_f64() / self.watched.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// What to say about it, if the machine had too much else to do.
    pub(crate) fn warning(&self) -> Option<String> {
        let others = self.others();
        (others > QUIET).then(|| {
            format!(
                "NOISY: others used {:.0} % of a processor meanwhile: look at ratios and their spread, not at seconds",
                others * 100.0
            )
        })
    }
}
