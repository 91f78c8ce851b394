//! Sends bytes as they are, each exchange on a connection of its own, and prints what comes back until the agent closes
//! or falls silent. Exchanges come as JSON on standard input, outcomes go as JSON to standard output. Run it in a pod.
use std::{
    io::{self, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::Result;
use clap::Parser;
use pod_identity_tests::{
    http1,
    wire::{Exchange, Outcome},
};

/// Sends bytes as they are
#[derive(Debug, Parser)]
struct Args {
    /// Address to connect to
    #[arg(long, default_value = "169.254.170.23:80")]
    to: SocketAddr,
    /// Silence after which nothing more is expected
    #[arg(long, default_value_t = 300)]
    silence_ms: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let exchanges: Vec<Exchange> = serde_json::from_reader(io::stdin())?;
    let outcomes: Vec<Outcome> = exchanges.iter().map(|exchange| make(&args, exchange)).collect::<Result<_>>()?;
    writeln!(io::stdout(), "{}", serde_json::to_string(&outcomes)?)?;
    Ok(())
}

fn make(args: &Args, exchange: &Exchange) -> Result<Outcome> {
    let mut stream = TcpStream::connect(args.to)?;
    stream.set_read_timeout(Some(Duration::from_millis(args.silence_ms)))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    let mut outcome = Outcome::default();
    // The agent may close before it has read all.
    let _ = stream.write_all(&exchange.sent);
    (outcome.statuses, outcome.closed) = answers(&mut stream, &mut outcome.rest);
    if !outcome.closed && stream.write_all(&exchange.then).is_ok() {
        (outcome.then, _) = answers(&mut stream, &mut outcome.rest);
    }
    Ok(outcome)
}

/// All answers until the end or silence, and whether it was the end.
fn answers(stream: &mut TcpStream, rest: &mut String) -> (Vec<u16>, bool) {
    let mut bytes = Vec::new();
    let closed = match stream.read_to_end(&mut bytes) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
    };
    let mut reader = BufReader::new(bytes.as_slice());
    let mut statuses = Vec::new();
    while let Ok(response) = http1::read_response(&mut reader, false) {
        statuses.push(response.status);
    }
    let mut unread = Vec::new();
    let _ = reader.read_to_end(&mut unread);
    rest.push_str(&String::from_utf8_lossy(&unread));
    (statuses, closed)
}
