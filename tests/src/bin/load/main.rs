//! Clients in one process that ask for credentials at a fixed rate, or each as soon as it was answered; prints a report
//! as JSON. Run it as a process of a pod.
//!
//! At a fixed rate a request is due when it is due, whatever became of the one before it, and its latency counts from
//! then: a server that stalls is seen by every request that fell due meanwhile (no coordinated omission).
//!
//! One thread and epoll, with no allocation for a request: what it takes itself must not be what it measures.
use std::{
    io::{self, Write as _},
    net::SocketAddr,
    time::Duration,
};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use rustix::thread::{CpuSet, sched_setaffinity};

mod client;
mod run;

/// Asks for credentials again and again
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Address to connect to
    #[arg(long, default_value = "169.254.170.23:80")]
    pub(crate) to: SocketAddr,
    /// Value of Authorization
    #[arg(long, default_value = "")]
    pub(crate) token: String,
    /// Clients at once
    #[arg(long, default_value_t = 1)]
    pub(crate) clients: usize,
    /// Requests per second of all clients together; without it each asks as soon as it was answered
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// What a request is made on
    #[arg(long, value_enum, default_value_t)]
    pub(crate) connections: Connections,
    /// For how long to ask
    #[arg(long, default_value_t = 1000)]
    pub(crate) for_ms: u64,
    /// How often to ask at most
    #[arg(long)]
    pub(crate) requests: Option<u64>,
    /// A request without an answer has failed after this time
    #[arg(long, default_value_t = 5000)]
    pub(crate) timeout_ms: u64,
    /// The processor to run on
    #[arg(long)]
    pub(crate) processor: Option<usize>,
}

/// What requests are made on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Connections {
    /// A new connection for each
    #[default]
    New,
    /// One connection for each client
    Kept,
}

impl Args {
    /// Between two requests of one client, at a fixed rate.
    pub(crate) fn interval(&self) -> Option<Duration> {
        #[expect(clippy::cast_precision_loss, reason = "not that many clients")]
        self.rate.map(|rate| Duration::from_secs_f64(self.clients as f64 / rate))
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(processor) = args.processor {
        let mut set = CpuSet::new();
        set.set(processor);
        sched_setaffinity(None, &set)?;
    }
    let report = run::run(&args)?;
    writeln!(io::stdout(), "{}", serde_json::to_string(&report)?)?;
    Ok(())
}
