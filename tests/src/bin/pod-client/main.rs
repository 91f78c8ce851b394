//! A client with full control over how it connects and what it sends; prints one line of JSON for each request.
use std::{
    fmt::Write as _,
    io::{self, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use clap::Parser;
use pod_identity_tests::{
    client::{Answer, Tally},
    http1,
};

mod connect;
mod forge;
mod garble;
mod pass;
mod uring;

use connect::{Connection, Mode};

/// Asks for credentials as clients in pods do, or as they should not
#[derive(Clone, Debug, Parser)]
#[command(args_override_self = true)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
struct Args {
    /// Address to connect to
    #[arg(long, default_value = "169.254.170.23:80")]
    to: SocketAddr,
    /// How to connect
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Local address to bind to, for the modes that bind
    #[arg(long)]
    bind: Option<SocketAddr>,
    /// Unix socket over which a TCP socket is taken or given, for the modes that pass one on
    #[arg(long)]
    unix: Option<PathBuf>,
    /// Cgroup id to claim, for the mode that forges an answer
    #[arg(long)]
    cgroup_id: Option<u64>,
    /// Method
    #[arg(long, default_value = "GET")]
    method: String,
    /// What the request line asks for
    #[arg(long, default_value = "/v1/credentials")]
    path: String,
    /// A header, as `Name: value` (repeatable)
    #[arg(long = "header", action = clap::ArgAction::Append)]
    headers: Vec<String>,
    /// Value of Host; the address without one
    #[arg(long)]
    host: Option<String>,
    /// Send no Host
    #[arg(long)]
    no_host: bool,
    /// HTTP/1.0
    #[arg(long)]
    http10: bool,
    /// Send standard input instead of a request, and read so many answers
    #[arg(long)]
    raw_answers: Option<usize>,
    /// Requests on the connection
    #[arg(long, default_value_t = 1)]
    requests: usize,
    /// Between them
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// Clients at once
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// So many times, each on a connection of its own; a tally is printed instead of answers
    #[arg(long)]
    tries: Option<u64>,
    /// With --tries: garble Authorization, each time in a way that follows from this number and that of the try
    #[arg(long, requires = "tries")]
    garble: Option<u64>,
    /// Close the connection so long after sending, without reading
    #[arg(long)]
    hang_up_after_ms: Option<u64>,
    /// Hang up with a reset instead of an orderly end
    #[arg(long)]
    reset: bool,
    /// Close the sending direction after the request
    #[arg(long)]
    half_close: bool,
    /// Try again for so long while the connection is refused, as SDKs do
    #[arg(long, default_value_t = 0)]
    connect_within_ms: u64,
    /// Make a request so often at most while the answer is 503, when that says so
    #[arg(long, default_value_t = 1)]
    attempts: u32,
    /// Unix socket to connect to first: when the other side closes, clients begin
    #[arg(long)]
    starting_line: Option<PathBuf>,
    /// Wait for anything so long at most
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
}

/// Ports from --bind upwards that --tries binds in turn.
const PORTS: u64 = 15_000;

fn main() -> Result<()> {
    let args = Arc::new(Args::parse());
    if args.mode == Mode::GiveSocket {
        return pass::give(args.unix.as_deref().context("--unix is missing")?, args.to);
    }
    if args.mode == Mode::Listen {
        return Ok(std::net::TcpListener::bind(args.to).map(drop)?);
    }
    if let Some(tries) = args.tries {
        println!("{}", serde_json::to_string(&tally(&args, tries))?);
        return Ok(());
    }
    let mut input = Vec::new();
    if args.raw_answers.is_some() {
        io::stdin().read_to_end(&mut input)?;
    }
    if let Some(line) = &args.starting_line {
        UnixStream::connect(line)?.read_to_end(&mut Vec::new())?;
    }
    let input = Arc::new(input);
    let start = Arc::new(Barrier::new(args.clients));
    let threads: Vec<_> = (0..args.clients)
        .map(|client| {
            let (args, input, start) = (Arc::clone(&args), Arc::clone(&input), Arc::clone(&start));
            thread::spawn(move || {
                start.wait();
                converse(&args, &input, client)
            })
        })
        .collect();
    let mut out = io::stdout().lock();
    for thread in threads {
        for answer in thread.join().map_err(|_| anyhow!("a client panicked"))? {
            // In one piece: other clients may write into the same pipe.
            let mut line = serde_json::to_string(&answer)?;
            line.push('\n');
            out.write_all(line.as_bytes())?;
        }
    }
    Ok(())
}

/// Many connections with a request each.
fn tally(args: &Args, tries: u64) -> Tally {
    let mut tally = Tally::default();
    let mut args = args.clone();
    let (headers, bind) = (args.headers.clone(), args.bind);
    for number in 0..tries {
        if let Some(seed) = args.garble {
            args.headers = headers.iter().map(|header| garble::header(header, seed, number)).collect();
        }
        // A port of its own each time, where one was asked for.
        let spread = |address: SocketAddr| {
            let port = address.port() + u16::try_from(number % PORTS).unwrap_or_default();
            SocketAddr::new(address.ip(), if address.port() == 0 { 0 } else { port })
        };
        args.bind = bind.map(spread);
        for answer in converse(&args, &[], 0) {
            tally.add(&answer);
        }
    }
    tally
}

/// All requests of one client.
fn converse(args: &Args, input: &[u8], client: usize) -> Vec<Answer> {
    let mut first = Answer { client, ..Answer::default() };
    let started = Instant::now();
    let connection = connect_until(args, &mut first.refused_connects);
    first.connect_us = micros(started);
    let stream = match connection {
        Ok(Connection::Stream(stream)) => stream,
        Ok(Connection::Datagram { peer, local }) => {
            return vec![Answer { peer: Some(peer.to_string()), local: Some(local.to_string()), ..first }];
        }
        Err(error) => return vec![Answer { error: Some(format!("{error:#}")), ..first }],
    };
    first.local = stream.local_addr().map(|address| address.to_string()).ok();
    first.peer = stream.peer_addr().map(|address| address.to_string()).ok();
    let mut reader = BufReader::new(stream);
    let mut answers = Vec::new();
    for request in 0..args.raw_answers.unwrap_or(args.requests) {
        let mut answer = Answer { request, ..first.clone() };
        let sent = Instant::now();
        let bytes = if args.raw_answers.is_none() {
            compose(args)
        } else if request == 0 {
            input.to_vec()
        } else {
            Vec::new()
        };
        match exchange_until_served(args, &mut reader, &bytes, &mut answer.attempts) {
            Ok(Some(response)) => {
                answer.status = Some(response.status);
                answer.body = response.text();
                answer.headers = response.headers;
            }
            Ok(None) => answer.error = Some("hung up".to_owned()),
            Err(error) => answer.error = Some(format!("{error:#}")),
        }
        answer.latency_us = micros(sent);
        let ended = answer.error.is_some();
        answers.push(answer);
        if ended {
            break;
        }
        thread::sleep(Duration::from_millis(args.pause_ms));
    }
    answers
}

/// Connects, and does so again after a refusal for as long as was asked for.
fn connect_until(args: &Args, refused: &mut u32) -> Result<Connection> {
    let deadline = Instant::now() + Duration::from_millis(args.connect_within_ms);
    loop {
        match connect::open(args.mode, args.to, args.bind, args.unix.as_deref(), args.cgroup_id, timeout(args)) {
            Err(error) if is_refusal(&error) => {
                *refused += 1;
                if Instant::now() >= deadline {
                    return Err(error);
                }
                thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

fn is_refusal(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        || error.downcast_ref::<rustix::io::Errno>() == Some(&rustix::io::Errno::CONNREFUSED)
}

/// Sends a request, and again for as long as it is answered that this will help.
fn exchange_until_served(
    args: &Args,
    reader: &mut BufReader<TcpStream>,
    bytes: &[u8],
    attempts: &mut u32,
) -> Result<Option<http1::Response>> {
    loop {
        *attempts += 1;
        let response = exchange(args, reader, bytes)?;
        match response.as_ref().filter(|response| response.status == 503 && *attempts < args.attempts) {
            None => return Ok(response),
            Some(refused) => {
                let after = refused.header("retry-after").context("503 without Retry-After")?;
                thread::sleep(Duration::from_secs(after.parse()?));
            }
        }
    }
}

/// Sends a request and reads its answer; `None` if the client hung up instead.
fn exchange(args: &Args, reader: &mut BufReader<TcpStream>, bytes: &[u8]) -> Result<Option<http1::Response>> {
    reader.get_mut().write_all(bytes).context("cannot send")?;
    if let Some(ms) = args.hang_up_after_ms.or((args.mode == Mode::CloseEarly).then_some(0)) {
        thread::sleep(Duration::from_millis(ms));
        if args.reset {
            // The close that follows sends a reset.
            rustix::net::sockopt::set_socket_linger(reader.get_ref(), Some(Duration::ZERO))?;
        } else {
            reader.get_ref().shutdown(Shutdown::Both)?;
        }
        return Ok(None);
    }
    if args.half_close || args.mode == Mode::ShutWr {
        reader.get_ref().shutdown(Shutdown::Write)?;
    }
    http1::read_response(reader, args.method == "HEAD").map(Some)
}

fn compose(args: &Args) -> Vec<u8> {
    let version = if args.http10 { "1.0" } else { "1.1" };
    let mut text = format!("{} {} HTTP/{version}\r\n", args.method, args.path);
    if !args.no_host {
        let address = match args.to {
            SocketAddr::V4(v4) => v4.ip().to_string(),
            SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
                Some(v4) => v4.to_string(),
                None => format!("[{}]", v6.ip()),
            },
        };
        let _ = write!(text, "Host: {}\r\n", args.host.as_deref().unwrap_or(&address));
    }
    for header in &args.headers {
        let _ = write!(text, "{header}\r\n");
    }
    text.push_str("\r\n");
    text.into_bytes()
}

fn timeout(args: &Args) -> Duration {
    Duration::from_millis(args.timeout_ms)
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
