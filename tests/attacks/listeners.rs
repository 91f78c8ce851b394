//! Somebody else on the agent's port, in the namespace where the victim's connections are steered to it.
use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    time::Duration,
};

use anyhow::{Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use pod_identity_tests::{agent::Agent, client::Tally, process::must, sockets::Maker};
use rustix::net::{listen, sockopt::set_socket_reuseaddr};

use crate::{
    attack::{Attack, Books, Expected, Outcome, abridged, tries},
    raw,
    scene::{Scene, as_an_sdk},
};

/// Where the agent listens in a namespace whose ports are all free.
const PORT: u16 = 706;
/// Connections that found no listener.
const MISSED: &str = "pod_identity_steering_missed_total{program=\"connect4\"}";
/// For a line to reach the log's file.
const LOGGED: Duration = Duration::from_secs(3);

pub(crate) const ATTACKS: [Attack; 4] = [
    Attack {
        name: "listeners::before-the-agents",
        attacker: "a host-network pod",
        capability: "—",
        action: "listens on the agent's port before it starts, and waits for a neighbour's token",
        expected: Expected::Nothing("no connection reaches it"),
        run: before_the_agents,
    },
    Attack {
        name: "listeners::beside-the-agents",
        attacker: "a host-network pod",
        capability: "—",
        action: "binds the agent's port beside it (any address, SO_REUSEADDR, SO_REUSEPORT, lo)",
        expected: Expected::Nothing("no connection reaches it"),
        run: beside_the_agents,
    },
    Attack {
        name: "listeners::in-place-of-the-agents",
        attacker: "a host-network pod",
        capability: "NET_ADMIN on the node",
        action: "destroys the agent's listener (SOCK_DESTROY), and takes its port",
        expected: Expected::Nothing("no connection reaches it"),
        run: in_place_of_the_agents,
    },
    Attack {
        name: "listeners::after-the-agents",
        attacker: "a host-network pod",
        capability: "—",
        action: "takes the agent's port when the agent has been killed",
        expected: Expected::Nothing("no connection reaches it"),
        run: after_the_agents,
    },
];

/// A listening socket of the attacker's pod.
struct Trap(TcpListener);

impl Trap {
    fn on(sockets: &Maker, port: u16) -> Result<Self> {
        let socket = sockets.make()?;
        raw::bind(&socket, port)?;
        Self::listening(socket)
    }

    fn listening(socket: OwnedFd) -> Result<Self> {
        listen(&socket, 1024)?;
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// Connections that came, up to now.
    fn caught(&self) -> u64 {
        let mut count = 0;
        while self.0.accept().is_ok() {
            count += 1;
        }
        count
    }

    /// Whether a connection aimed at its port does reach it.
    fn must_work(&self, sockets: &Maker) -> Result<String> {
        let to = self.0.local_addr()?;
        drop(raw::connect(sockets.make()?, to)?);
        ensure!(self.caught() == 1, "the trap on {to} does not work");
        Ok(format!("a connection aimed at {to} itself reaches it"))
    }
}

fn fetch(scene: &Scene, count: u64) -> Result<Tally> {
    scene.victim.tally(&scene.stolen().tries(count))
}

fn outcome(scene: &Scene, agent: &Agent, caught: impl FnOnce() -> u64, control: String) -> Result<Outcome> {
    let books = Books::of(agent)?;
    let tally = fetch(scene, tries())?;
    ensure!(tally.granted == tally.tries, "not all were served: {tally:?}");
    let counted = books.since(agent)?;
    ensure!(counted.grants == tally.tries && counted.refusals.is_empty(), "{counted:?}");
    Ok(Outcome {
        refused: tally.tries - caught(),
        total: tally.tries,
        counted: format!("grants_total +{}", counted.grants),
        control,
        ..Outcome::default()
    })
}

fn before_the_agents(_: &Attack) -> Result<Outcome> {
    let scene = Scene::on_the_host_network()?;
    let sockets = Maker::start(&scene.thief, scene.node.dir())?;
    let trap = Trap::on(&sockets, PORT)?;
    let control = trap.must_work(&sockets)?;
    let agent = scene.agent()?;
    outcome(&scene, &agent, || trap.caught(), control)
}

/// Every way to bind a port that is taken.
fn beside_the_agents(_: &Attack) -> Result<Outcome> {
    let scene = Scene::on_the_host_network()?;
    let agent = scene.agent()?;
    let sockets = Maker::start(&scene.thief, scene.node.dir())?;
    let mut refused = 0;
    for address in ["127.0.0.1", "0.0.0.0"] {
        for reuse in [false, true] {
            for device in [None, Some("lo")] {
                let socket = sockets.make()?;
                set_socket_reuseaddr(&socket, reuse)?;
                setsockopt(&socket, sockopt::ReusePort, &reuse)?;
                if let Some(device) = device {
                    setsockopt(&socket, sockopt::BindToDevice, &device.into())?;
                }
                let to: SocketAddr = (address.parse::<Ipv4Addr>()?, PORT).into();
                let bound = rustix::net::bind(&socket, &to).is_ok();
                ensure!(!bound || Trap::listening(socket).is_err(), "{address}: {reuse} {device:?}: it listens");
                refused += 1;
            }
        }
    }
    // Another address is nobody's, and nobody is steered there.
    let socket = sockets.make()?;
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), PORT)))?;
    let trap = Trap::listening(socket)?;
    let control = format!("{}; {refused} binds refused", trap.must_work(&sockets)?);
    outcome(&scene, &agent, || trap.caught(), control)
}

/// The kernel takes the socket that is destroyed out of the programs' map: connections are refused until the agent has
/// a new one, whoever has the port by then. The agent stands still meanwhile: it would be faster than the attacker.
fn in_place_of_the_agents(_: &Attack) -> Result<Outcome> {
    let scene = Scene::on_the_host_network()?;
    let agent = scene.agent()?;
    as_an_sdk(&scene.victim)?;
    let sockets = Maker::start(&scene.thief, scene.node.dir())?;
    let before = agent.metric(MISSED)?;
    agent.freeze()?;
    let destroyed = must(scene.node.netns().command("ss").args(["-HKltn", "src", &format!("127.0.0.1:{PORT}")]))?;
    ensure!(destroyed.contains(&PORT.to_string()), "nothing was destroyed: {destroyed}");
    let trap = Trap::on(&sockets, PORT)?;
    let control = format!("the listener was destroyed; {}", trap.must_work(&sockets)?);
    let tally = scene.victim.tally(&scene.stolen().connect_once().timeout_ms(50).tries(tries().min(1_000)))?;
    let refused: u64 = tally.errors.iter().filter(|(it, _)| it.contains("refused")).map(|(_, count)| count).sum();
    ensure!(refused == tally.tries, "not refused: {tally:?}");
    agent.thaw()?;
    // Long before the rescan.
    as_an_sdk(&scene.victim)?;
    Ok(Outcome {
        refused: tally.tries - trap.caught(),
        total: tally.tries,
        counted: format!("steering_missed_total{{program=\"connect4\"}} +{}", agent.metric(MISSED)? - before),
        log: abridged(&agent.wait_for_log(&["cannot serve", "host netns"], LOGGED).unwrap_or_default()),
        control,
    })
}

/// With the agent its programs go: connections are not steered, to nobody's port.
fn after_the_agents(_: &Attack) -> Result<Outcome> {
    let scene = Scene::on_the_host_network()?;
    let mut agent = scene.agent()?;
    as_an_sdk(&scene.victim)?;
    let sockets = Maker::start(&scene.thief, scene.node.dir())?;
    agent.kill()?;
    let trap = Trap::on(&sockets, PORT)?;
    let control = trap.must_work(&sockets)?;
    let count = tries().min(1_000);
    let client = scene.stolen().connect_once().timeout_ms(50).tries(count);
    let tally = scene.victim.tally(&client)?;
    ensure!(tally.errors.values().sum::<u64>() == count, "somebody answered: {tally:?}");
    Ok(Outcome {
        refused: count - trap.caught(),
        total: count,
        counted: "— (there is no agent)".to_owned(),
        control,
        ..Outcome::default()
    })
}
