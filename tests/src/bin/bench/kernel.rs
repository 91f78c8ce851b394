//! What the programs cost: connections that are none of ours, those that are, and the verifier.
//!
//! A socket has the cgroup of the process that made it for as long as it lives, and can connect again and again. So one
//! process holds sockets of all kinds and uses them in turns of a fraction of a millisecond: whatever else the machine
//! does, it does to all of them.
use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::Agent,
    bpf::{self, Link, Map, Program},
    cgroup::{self, Cgroup},
    host,
    netns::Netns,
    node::Node,
    process::{QUICK, run as run_command},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, connect_unspec, sockopt::set_socket_linger};
use serde::Serialize;

use crate::{
    KernelArgs,
    machine::{Machine, Watch},
    spread::Spread,
    table::range,
};

/// Connects of one kind in a row, and turns of each kind in a round.
const IN_A_ROW: u32 = 200;
const TURNS: usize = 9;
const STOPS: Duration = Duration::from_secs(10);

/// Where a socket was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Below the cgroup that our programs are attached to.
    Ours,
    /// Below one with a program that does nothing.
    Empty,
    /// Elsewhere.
    Outside,
}

/// Everything that is measured.
#[derive(Debug, Serialize)]
struct Costs {
    machine: Machine,
    rounds: usize,
    others_used: f64,
    /// Programs for `connect` that somebody else has attached on this machine: they make "no program" cost as "outside".
    foreign_programs: usize,
    programs: Vec<Cost>,
    rows: Vec<Row>,
    targets: Vec<Target>,
}

#[derive(Debug, Serialize)]
struct Cost {
    name: String,
    instructions_verified: u32,
    machine_code_bytes: u32,
}

/// A kind of connect; nanoseconds each.
#[derive(Debug, Serialize)]
struct Row {
    what: &'static str,
    no_program: Spread,
    outside: Spread,
    empty: Spread,
    ours: Spread,
    /// Of the same round.
    ours_over_empty: Spread,
    ours_over_none: Spread,
}

#[derive(Debug, Serialize)]
struct Target {
    what: &'static str,
    at_most_ns: f64,
    measured_ns: Spread,
    met: bool,
}

pub(crate) fn run(args: &KernelArgs, out: &Path) -> Result<()> {
    let node = Node::new()?;
    let mut agent = node.agent()?;
    let programs = bpf::programs_of(agent.pid())?;
    let maps = bpf::maps_of(agent.pid())?;
    // From here on this process holds what it needs of the agent's.
    stop(&mut agent)?;
    let foreign_programs = attached_by_others()?;
    let mut watch = Watch::new();
    watch.begin()?;
    let netns = Netns::create(&host::unique_name())?;
    let rows = netns.within(|| Bench::new(&node, &programs, &maps)?.rows(args.rounds))??;
    watch.end(pod_identity_tests::process::cpu_time())?;
    let costs = Costs {
        machine: Machine::here()?,
        rounds: args.rounds,
        others_used: watch.others(),
        foreign_programs,
        programs: programs.iter().map(verified).collect(),
        targets: targets(&rows),
        rows,
    };
    print(&costs);
    fs::write(out.join("kernel.json"), serde_json::to_string_pretty(&costs)?)?;
    println!("\nwritten: {}", out.join("kernel.json").display());
    if let Some(warning) = watch.warning() {
        println!("\n{warning}");
    }
    Ok(())
}

fn verified(program: &Program) -> Cost {
    Cost {
        name: program.name.clone(),
        instructions_verified: program.verified_instructions,
        machine_code_bytes: program.machine_code_bytes,
    }
}

fn stop(agent: &mut Agent) -> Result<()> {
    let status = agent.terminate(STOPS)?;
    ensure!(status.success(), "the agent ended with {status}");
    Ok(())
}

/// Programs for `connect4` anywhere on the machine. With one of them all connects pay for the way to the hook.
fn attached_by_others() -> Result<usize> {
    let mut tree = Command::new("bpftool");
    tree.args(["cgroup", "tree"]).arg(cgroup::mount_point()?);
    let output = run_command(&mut tree, QUICK)?;
    Ok(String::from_utf8_lossy(&output.stdout).matches("inet4_connect").count())
}

/// Sockets and what they connect to.
struct Bench<'a> {
    connect4: &'a Program,
    empty: Program,
    ours_cgroup: File,
    empty_cgroup: File,
    tcp: [(Place, OwnedFd); 3],
    udp: [(Place, OwnedFd); 3],
    listener: TcpListener,
    port: u16,
}

impl<'a> Bench<'a> {
    /// In the namespace of the calling thread, which is nobody's: in the host netns connections have a pace.
    fn new(node: &Node, programs: &'a [Program], maps: &[Map]) -> Result<Self> {
        let connect4 = programs.iter().find(|program| program.name == "connect4").context("no program connect4")?;
        let listeners = maps.iter().find(|map| map.name == "LISTENERS4").context("no map LISTENERS4")?;
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let port = listener.local_addr()?.port();
        listeners.insert_socket(bpf::netns_cookie(&listener)?, &listener)?;
        let (ours, empty) = (node.top_cgroup().child("ours")?, node.top_cgroup().child("empty")?);
        let outside = node.top_cgroup().child("outside")?;
        let make = |kind| -> Result<[(Place, OwnedFd); 3]> {
            Ok([
                (Place::Ours, made_in(&ours, kind)?),
                (Place::Empty, made_in(&empty, kind)?),
                (Place::Outside, made_in(&outside, kind)?),
            ])
        };
        Ok(Self {
            connect4,
            empty: Program::empty()?,
            ours_cgroup: File::open(ours.dir())?,
            empty_cgroup: File::open(empty.dir())?,
            tcp: make(SocketType::STREAM)?,
            udp: make(SocketType::DGRAM)?,
            listener,
            port,
        })
    }

    fn rows(&self, rounds: usize) -> Result<Vec<Row>> {
        let at = |ip: [u8; 4], port| SocketAddr::new(Ipv4Addr::from(ip).into(), port);
        let other = at([127, 0, 0, 2], self.port);
        let direct = at([127, 0, 0, 1], self.port);
        let target = at([169, 254, 170, 23], 80);
        Ok(vec![
            row("UDP connect", rounds, |place| self.udp_connects(place, at([127, 0, 0, 2], 9)), self)?,
            row("TCP connect, elsewhere", rounds, |place| self.tcp_connects(place, other), self)?,
            row("TCP connect, to 127.0.0.1", rounds, |place| self.tcp_connects(place, direct), self)?,
            row(
                "TCP connect, steered",
                rounds,
                |place| {
                    // Without our program nothing leads to the listener but its own address.
                    let to = if place == Some(Place::Ours) { target } else { direct };
                    self.tcp_connects(place, to)
                },
                self,
            )?,
        ])
    }

    fn attach(&self) -> Result<[Link; 2]> {
        Ok([self.connect4.attach_connect4(&self.ours_cgroup, 0)?, self.empty.attach_connect4(&self.empty_cgroup, 0)?])
    }

    fn udp_connects(&self, place: Option<Place>, to: SocketAddr) -> Result<f64> {
        let socket = socket(&self.udp, place)?;
        let started = Instant::now();
        for _ in 0..IN_A_ROW {
            connect(socket, &to)?;
        }
        Ok(started.elapsed().as_secs_f64() * 1e9 / f64::from(IN_A_ROW))
    }

    fn tcp_connects(&self, place: Option<Place>, to: SocketAddr) -> Result<f64> {
        let socket = socket(&self.tcp, place)?;
        let mut took = Vec::new();
        for _ in 0..IN_A_ROW {
            let started = Instant::now();
            connect(socket, &to)?;
            took.push(started.elapsed().as_secs_f64() * 1e9);
            let (accepted, _) = self.listener.accept()?;
            // A reset, or ports would wait out their time.
            set_socket_linger(&accepted, Some(Duration::ZERO))?;
            drop(accepted);
            connect_unspec(socket)?;
        }
        Ok(Spread::of(took).median)
    }
}

/// `None` is a socket of ours while nothing is attached.
fn socket(sockets: &[(Place, OwnedFd)], place: Option<Place>) -> Result<&OwnedFd> {
    let place = place.unwrap_or(Place::Ours);
    sockets.iter().find(|(of, _)| *of == place).map(|(_, socket)| socket).context("there is one of each")
}

fn row(
    what: &'static str,
    rounds: usize,
    mut measure: impl FnMut(Option<Place>) -> Result<f64>,
    bench: &Bench<'_>,
) -> Result<Row> {
    let places = [Place::Outside, Place::Empty, Place::Ours];
    let mut found: [Vec<f64>; 4] = Default::default();
    let [none, outside, empty, ours] = &mut found;
    for _ in 0..rounds {
        let before = (0..TURNS).map(|_| measure(None)).collect::<Result<Vec<_>>>()?;
        none.push(Spread::of(before).median);
        let _links = bench.attach()?;
        let mut turns: [Vec<f64>; 3] = Default::default();
        for turn in 0..TURNS {
            // Each is as often after each of the others.
            for number in (0..places.len()).map(|number| (number + turn) % places.len()) {
                if let (Some(place), Some(values)) = (places.get(number), turns.get_mut(number)) {
                    values.push(measure(Some(*place))?);
                }
            }
        }
        for (to, values) in [&mut *outside, &mut *empty, &mut *ours].into_iter().zip(turns) {
            to.push(Spread::of(values).median);
        }
    }
    let over = |base: &[f64], ours: &[f64]| Spread::of(ours.iter().zip(base).map(|(ours, base)| ours - base));
    Ok(Row {
        what,
        ours_over_empty: over(empty, ours),
        ours_over_none: over(none, ours),
        no_program: Spread::of(none.clone()),
        outside: Spread::of(outside.clone()),
        empty: Spread::of(empty.clone()),
        ours: Spread::of(ours.clone()),
    })
}

/// A socket that was made by a process in this cgroup: by this one, which goes back to its own.
fn made_in(cgroup: &Cgroup, kind: SocketType) -> Result<OwnedFd> {
    let _back = Back(own_cgroup()?);
    cgroup::join_self(cgroup.dir())?;
    Ok(rustix::net::socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?)
}

/// Where this process goes when it is dropped.
struct Back(PathBuf);

impl Drop for Back {
    fn drop(&mut self) {
        let _ = cgroup::join_self(&self.0);
    }
}

fn own_cgroup() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).context("this process is in no cgroup2")?;
    Ok(cgroup::mount_point()?.join(path))
}

fn targets(rows: &[Row]) -> Vec<Target> {
    rows.iter()
        .map(|row| {
            let steered = row.what.ends_with("steered");
            let (what, at_most_ns, measured_ns) = if steered {
                ("steered, over a direct connect without programs", 1000.0, row.ours_over_none)
            } else {
                (row.what, 30.0, row.ours_over_empty)
            };
            Target { what, at_most_ns, measured_ns, met: measured_ns.median <= at_most_ns }
        })
        .collect()
}

fn print(costs: &Costs) {
    println!("| program | instructions verified | bytes of machine code |\n|---|---|---|");
    for program in &costs.programs {
        println!("| {} | {} | {} |", program.name, program.instructions_verified, program.machine_code_bytes);
    }
    println!("\n| ns | no program | outside the subtree | an empty program | ours | over empty | over none |");
    println!("|---|---|---|---|---|---|---|");
    for row in &costs.rows {
        println!(
            "| {} | {:.0} | {:.0} | {:.0} | {:.0} | {} | {} |",
            row.what,
            row.no_program.median,
            row.outside.median,
            row.empty.median,
            row.ours.median,
            range(row.ours_over_empty, 0),
            range(row.ours_over_none, 0)
        );
    }
    println!("\n| target, ns | at most | measured | |\n|---|---|---|---|");
    for target in &costs.targets {
        let verdict = if target.met { "met" } else { "MISSED" };
        println!("| {} | {} | {} | {verdict} |", target.what, target.at_most_ns, range(target.measured_ns, 0));
    }
    if costs.foreign_programs > 0 {
        println!(
            "\n{} programs of somebody else are attached to connect4: 'no program' pays for the way to them",
            costs.foreign_programs
        );
    }
}
