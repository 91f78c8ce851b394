//! One pod's process at its worst: threads that never sleep, each doing one harmful thing as fast as it can; and the
//! controls, threads that burn the same processor time and do not touch the agent. Prints what it did as JSON.
use std::{
    io::{self, Write as _},
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use clap::{Parser, ValueEnum};
use pod_identity_tests::{load::FloodReport, process::cpu_time};

mod connections;
mod namespaces;
mod talk;

/// Does one harmful thing as fast as it can
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// What to do
    #[arg(value_enum)]
    kind: Kind,
    /// Address to connect to
    #[arg(long, default_value = "169.254.170.23:80")]
    pub(crate) to: SocketAddr,
    /// Service account token to present, or to make others of
    #[arg(long, default_value = "")]
    pub(crate) token: String,
    /// Bytes of each token that is made
    #[arg(long, default_value_t = 0)]
    pub(crate) token_bytes: usize,
    /// Threads, none of which ever sleeps
    #[arg(long, default_value_t = 2)]
    pub(crate) threads: usize,
    /// Connections of all threads together
    #[arg(long, default_value_t = 512)]
    pub(crate) connections: usize,
    /// For how long
    #[arg(long, default_value_t = 1000)]
    for_ms: u64,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Burn processor time
    Spin,
    /// Requests on connections that are kept alive
    Requests,
    /// The same, each with another token
    Tokens,
    /// Requests without end on each connection, before any answer is read
    Pipelined,
    /// Heads that come byte by byte, as fast as that goes
    Bytes,
    /// Heads that come byte by byte, one a second
    Slow,
    /// Connections that are made and reset
    Connects,
    /// The same with a listener of its own, which takes and drops them: as much for the kernel, nothing for the agent
    OwnConnects,
    /// Connections on which nothing is sent, replaced when they end
    Idle,
    /// Network namespaces, and a connection in each
    Namespaces,
    /// Connections in namespaces that have no listener
    Misses,
}

fn main() -> Result<()> {
    let args = Arc::new(Args::parse());
    let ends = Instant::now() + Duration::from_millis(args.for_ms);
    if args.kind == Kind::Misses {
        namespaces::occupy(&args, ends);
    }
    let threads: Vec<_> = (0..args.threads)
        .map(|thread| {
            let args = Arc::clone(&args);
            thread::spawn(move || match args.kind {
                Kind::Spin => spin(ends),
                Kind::Requests => talk::requests(&args, ends),
                Kind::Tokens => talk::tokens(&args, thread, ends),
                Kind::Pipelined => talk::pipelined(&args, ends),
                Kind::Bytes => talk::bytes(&args, Duration::ZERO, ends),
                Kind::Slow => talk::bytes(&args, Duration::from_secs(1), ends),
                Kind::Connects => connections::connects(&args, ends),
                Kind::OwnConnects => connections::own_connects(&args, ends),
                Kind::Idle => connections::idle(&args, ends),
                Kind::Namespaces => namespaces::make(&args, ends),
                Kind::Misses => namespaces::misses(&args, ends),
            })
        })
        .collect();
    let mut report = FloodReport::default();
    for thread in threads {
        report.attempts += thread.join().map_err(|_| anyhow!("a thread panicked"))?;
    }
    report.cpu_seconds = cpu_time().as_secs_f64();
    writeln!(io::stdout(), "{}", serde_json::to_string(&report)?)?;
    Ok(())
}

fn spin(ends: Instant) -> u64 {
    let mut rounds = 0_u64;
    while Instant::now() < ends {
        rounds = std::hint::black_box(rounds + 1);
    }
    rounds
}
