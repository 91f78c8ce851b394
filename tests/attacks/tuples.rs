//! Whose connection is it: two pods of the host network and one 4-tuple. The attacker wants its bytes to be taken for the
//! victim's, so that a stolen token is good.
//!
//! The agent is stopped while the sockets are arranged, as one is that gets no CPU for a moment: what is a race of
//! microseconds otherwise is decided in the attacker's favour each time.
use std::{
    net::{Shutdown, TcpStream},
    ops::Range,
    os::fd::OwnedFd,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{agent::Agent, client::Tally, host, netns::Netns, process::eventually, sockets::Maker};

use crate::{
    attack::{Attack, Books, Expected, FOREIGN_TOKEN, Outcome, UNKNOWN_SOCKET},
    raw,
    scene::{Scene, as_an_sdk},
};

/// The agent's listener.
const LISTENER: u16 = 706;
/// Ports of the attacker's, and those of the victim that it aims at: none that the kernel gives out by itself.
const OWN: u16 = 20_000;
const TARGETS: u16 = 31_000;
/// Sockets arranged at one time: well below what the listener's queue holds.
const BATCH: u16 = 200;
/// For the loopback interface to carry a segment there and another one back.
const ACKNOWLEDGED: Duration = Duration::from_millis(100);

pub(crate) const ATTACKS: [Attack; 5] = [
    Attack {
        name: "tuples::port-reused-after-reset",
        attacker: "a host-network pod",
        capability: "—",
        action: "sends a stolen token, resets; the victim connects from the same port before the look-up",
        expected: Expected::Nothing("403 unknown_socket, dropped unread"),
        run: |attack| taken_over(attack, batches(5, 50), reset_and_reused),
    },
    Attack {
        name: "tuples::two-sockets-on-one-tuple",
        attacker: "a host-network pod",
        capability: "—",
        action: "connects bound to lo (SO_BINDTODEVICE); the victim gets the same 4-tuple (IP_LOCAL_PORT_RANGE)",
        expected: Expected::Nothing("403 unknown_socket, dropped unread"),
        run: |attack| taken_over(attack, batches(5, 50), two_sockets),
    },
    Attack {
        name: "tuples::closed-before-the-look-up",
        attacker: "a host-network pod",
        capability: "—",
        action: "sends a stolen token and closes: the socket that waits out its time has no cgroup",
        // The latter while the kernel has not come to acknowledge its end: it is the attacker's own socket still.
        expected: Expected::Refused(&[UNKNOWN_SOCKET, FOREIGN_TOKEN]),
        run: closed_before,
    },
    Attack {
        name: "tuples::translated-onto-half-open",
        attacker: "a host-network pod",
        capability: "NET_ADMIN on the node",
        action: "translates its source to the 4-tuple of a victim's socket that is connecting (SYN_SENT)",
        expected: Expected::Refused(&[UNKNOWN_SOCKET]),
        run: |attack| translated(attack, half_open),
    },
    Attack {
        name: "tuples::translated-onto-listener",
        attacker: "a host-network pod",
        capability: "NET_ADMIN on the node",
        action: "translates its source to a port on which the victim listens: the look-up falls back to it",
        expected: Expected::Refused(&[UNKNOWN_SOCKET]),
        run: |attack| translated(attack, listening),
    },
];

/// The pods, their agent, and a hand on the sockets of both.
pub(crate) struct Pair {
    pub(crate) attacker: Maker,
    pub(crate) victim: Maker,
    pub(crate) agent: Agent,
    pub(crate) scene: Scene,
}

impl Pair {
    pub(crate) fn new() -> Result<Self> {
        let scene = Scene::on_the_host_network()?;
        let agent = scene.agent()?;
        as_an_sdk(&scene.victim)?;
        let attacker = Maker::start(&scene.thief, scene.node.dir())?;
        let victim = Maker::start(&scene.victim, scene.node.dir())?;
        Ok(Self { attacker, victim, agent, scene })
    }

    fn token(&self) -> &str {
        self.scene.victim.token()
    }
}

fn batches(usual: u16, full: u16) -> u16 {
    if host::full_size() { full } else { usual }
}

/// An arrangement of so many pairs of sockets while the agent is stopped: the attacker's, whose bytes are in the
/// listener's queue, and the victim's, connected and with its own request sent.
type Arrange = fn(&Pair, Range<u16>) -> Result<(Vec<TcpStream>, Vec<TcpStream>)>;

/// The attacker's connections must be dropped unread, and the victim's be granted.
fn taken_over(attack: &Attack, batches: u16, arrange: Arrange) -> Result<Outcome> {
    let pair = Pair::new()?;
    let books = Books::of(&pair.agent)?;
    let mut answers = Tally::default();
    for batch in 0..batches {
        // Others each time: those that were used wait out their time.
        let first = OWN + batch * BATCH;
        pair.agent.freeze()?;
        let arranged = arrange(&pair, first..first + BATCH);
        pair.agent.thaw()?;
        let (attackers, victims) = arranged?;
        answers.merge(raw::receive_all(&victims));
        // The victim's answers came after whatever was sent to the attacker.
        for stream in &attackers {
            ensure!(raw::heard_nothing(stream)?, "the attacker got an answer");
        }
    }
    let total = u64::from(BATCH) * u64::from(batches);
    ensure!(answers.granted == total && answers.access_keys.len() == 1, "the victim's own: {answers:?}");
    let counted = counted_refusals(&pair, &books, total)?;
    ensure!(
        counted.refusals.keys().eq(["unknown_socket"]) && counted.grants == total,
        "booked on the victim: {counted:?}"
    );
    ensure!(matches!(attack.expected, Expected::Nothing(_)));
    Ok(Outcome {
        refused: counted.refusals.values().sum(),
        total,
        counted: counted.to_string(),
        log: counted.log_line(&pair.agent, &[])?,
        control: format!("the victim's own requests on the same 4-tuples: {total}/{total} granted"),
    })
}

/// Waits until so many connections are counted as refused.
fn counted_refusals(pair: &Pair, books: &Books, count: u64) -> Result<Books> {
    let counted = eventually("every connection to be counted", Duration::from_secs(10), || {
        let counted = books.since(&pair.agent)?;
        Ok((counted.refusals.values().sum::<u64>() >= count).then_some(counted))
    });
    counted.with_context(|| format!("{:?}", books.since(&pair.agent)))
}

fn reset_and_reused(pair: &Pair, ports: Range<u16>) -> Result<(Vec<TcpStream>, Vec<TcpStream>)> {
    let mut victims = Vec::new();
    for port in ports {
        let first = pair.attacker.make()?;
        raw::bind(&first, port)?;
        let first = raw::connect(first, raw::loopback(LISTENER))?;
        raw::send(&first, pair.token())?;
        raw::reset(first)?;
        let second = pair.victim.make()?;
        raw::bind(&second, port)?;
        let second = raw::connect(second, raw::loopback(LISTENER))?;
        raw::send(&second, pair.token())?;
        victims.push(second);
    }
    Ok((Vec::new(), victims))
}

fn two_sockets(pair: &Pair, ports: Range<u16>) -> Result<(Vec<TcpStream>, Vec<TcpStream>)> {
    let (mut attackers, mut victims) = (Vec::new(), Vec::new());
    // Connect takes none but ports of the range, and until now it took none of these.
    pair.scene.node.netns().sysctl("ipv4/ip_local_port_range", &format!("{OWN} 60999"))?;
    // All of the attacker's first. The kernel derives both initial sequence numbers from the 4-tuple and a clock of 64 ns:
    // had the victim connected just as many ticks later as the attacker has sent bytes, the answer to its SYN would seem
    // to be to it, and it would stay half open beside the attacker's living connection. (Refused for its state.)
    for port in ports.clone() {
        let socket = pair.attacker.make()?;
        raw::bind_to_loopback_device(&socket)?;
        raw::take_only(&socket, port)?;
        let stream = raw::connect(socket, raw::loopback(LISTENER))?;
        raw::send(&stream, pair.token())?;
        attackers.push(stream);
    }
    for (port, attackers) in ports.zip(&attackers) {
        let socket = pair.victim.make()?;
        raw::take_only(&socket, port)?;
        let stream = raw::begin_to_connect(socket, raw::loopback(LISTENER))?;
        ensure!(attackers.local_addr()? == stream.local_addr()?, "not one 4-tuple");
        victims.push(stream);
    }
    // The victim's SYN makes the attacker's connection break; the second SYN, a second later, is for a new one.
    for stream in &victims {
        raw::finish_connecting(stream)?;
        raw::send(stream, pair.token())?;
    }
    Ok((attackers, victims))
}

fn closed_before(attack: &Attack) -> Result<Outcome> {
    let pair = Pair::new()?;
    let total = u64::from(BATCH) * u64::from(batches(5, 50));
    let books = Books::of(&pair.agent)?;
    for batch in 1..=batches(5, 50) {
        pair.agent.freeze()?;
        let mut sockets = Vec::new();
        for _ in 0..BATCH {
            let socket = raw::connect(pair.attacker.make()?, raw::loopback(LISTENER))?;
            raw::send(&socket, pair.token())?;
            socket.shutdown(Shutdown::Write)?;
            sockets.push(socket);
        }
        // Only a close after the end was acknowledged leaves nothing but the wait behind.
        std::thread::sleep(ACKNOWLEDGED);
        drop(sockets);
        pair.agent.thaw()?;
        counted_refusals(&pair, &books, u64::from(BATCH) * u64::from(batch))?;
    }
    let counted = books.since(&pair.agent)?;
    let Expected::Refused(refusals) = attack.expected else { anyhow::bail!("not a refusal") };
    counted.must_be(refusals, total)?;
    ensure!(counted.refusals.get("unknown_socket") > Some(&(total / 2)), "not closed before the look-up: {counted:?}");
    let control = as_an_sdk(&pair.scene.victim).map(|_| "the victim: 1/1 granted".to_owned())?;
    let log = counted.log_line(&pair.agent, &[])?;
    Ok(Outcome { refused: total, total, counted: counted.to_string(), log, control })
}

/// Has connections from the attacker's ports appear to come from the ports aimed at.
pub(crate) fn translate_sources(netns: &Netns, count: u16) -> Result<()> {
    let map: Vec<String> = (0..count).map(|n| format!("{} : 127.0.0.1 . {}", OWN + n, TARGETS + n)).collect();
    netns.nft(&format!(
        "add table ip attack\nadd chain ip attack post {{ type nat hook postrouting priority 100; }}\n\
         add rule ip attack post oif lo tcp dport {LISTENER} snat ip to tcp sport map {{ {} }}\n",
        map.join(", ")
    ))
}

/// Ports that the attacker's connections appear to come from.
pub(crate) fn targets(count: u16) -> Range<u16> {
    TARGETS..TARGETS + count
}

/// What the attacker gets over translated connections with the victim's token.
pub(crate) fn ask_translated(pair: &Pair, count: u16) -> Result<Tally> {
    let mut tally = Tally::default();
    for port in OWN..OWN + count {
        let socket = pair.attacker.make()?;
        raw::bind(&socket, port)?;
        let stream = raw::connect(socket, raw::loopback(LISTENER))?;
        raw::send(&stream, pair.token())?;
        tally.add(&raw::receive(&stream));
    }
    Ok(tally)
}

/// The victim's sockets at the ports aimed at, whatever kind they are.
type Aim = fn(&Pair, u16) -> Result<Vec<OwnedFd>>;

fn translated(attack: &Attack, aim: Aim) -> Result<Outcome> {
    let pair = Pair::new()?;
    let count = BATCH;
    translate_sources(pair.scene.node.netns(), count)?;
    let victims = aim(&pair, count)?;
    let outcome = attack.carry_out(&pair.agent, &[], || ask_translated(&pair, count))?;
    drop(victims);
    as_an_sdk(&pair.scene.victim)?;
    let control =
        "onto an established socket of the victim's the same succeeds: reach::translated-on-the-node".to_owned();
    Ok(Outcome { control, ..outcome })
}

fn half_open(pair: &Pair, count: u16) -> Result<Vec<OwnedFd>> {
    let (first, last) = (TARGETS, TARGETS + count - 1);
    pair.scene.node.netns().nft(&format!(
        "add table ip hold\nadd chain ip hold out {{ type filter hook output priority 0; }}\n\
         add rule ip hold out tcp sport {first}-{last} tcp dport {LISTENER} drop\n"
    ))?;
    Ok(begin_at_targets(pair, count)?.into_iter().map(OwnedFd::from).collect())
}

/// The victim's connections from the ports aimed at, begun.
pub(crate) fn begin_at_targets(pair: &Pair, count: u16) -> Result<Vec<TcpStream>> {
    let begin = |port| {
        let socket = pair.victim.make()?;
        raw::bind(&socket, port)?;
        raw::begin_to_connect(socket, raw::loopback(LISTENER))
    };
    targets(count).map(begin).collect()
}

/// Rules that lead the victim's connections to another port than the agent's.
pub(crate) fn divert(count: u16, to: u16) -> String {
    let (first, last) = (TARGETS, TARGETS + count - 1);
    format!(
        "add table ip divert\nadd chain ip divert out {{ type nat hook output priority -100; }}\n\
         add rule ip divert out tcp sport {first}-{last} tcp dport {LISTENER} dnat to 127.0.0.1:{to}\n"
    )
}

fn listening(pair: &Pair, count: u16) -> Result<Vec<OwnedFd>> {
    let listen = |port| {
        let socket = pair.victim.make()?;
        raw::bind(&socket, port)?;
        rustix::net::listen(&socket, 1)?;
        Ok(socket)
    };
    targets(count).map(listen).collect()
}
