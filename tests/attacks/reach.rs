//! What the design cannot stop, shown to be so, each with what limits it.
use std::{net::TcpListener, time::Duration};

use anyhow::{Result, ensure};
use pod_identity_tests::{
    agent::{Agent, AgentSpec},
    capture::Capture,
    client::Tally,
    link_local::LinkLocal,
};

use crate::{
    attack::{ANSWER_DEADLINE, Attack, Books, CONTROL, Expected, Outcome},
    raw,
    scene::{Scene, as_an_sdk},
    tuples::{Pair, ask_translated, begin_at_targets, translate_sources},
};

/// Enough to show what always works.
const COUNT: u16 = 50;
/// Where the attacker receives what is not meant for it.
const TRAP: u16 = 7_777;

pub(crate) const ATTACKS: [Attack; 3] = [
    Attack {
        name: "reach::translated-on-the-node",
        attacker: "a host-network pod",
        capability: "NET_ADMIN on the node",
        action: "diverts a host-network victim's connection to itself, translates its own onto that 4-tuple",
        expected: Expected::OutOfReach(
            "--host-network-pods refuse; such a pod also reads the node's loopback without it (NFLOG, AF_PACKET)",
        ),
        run: translated_onto_diverted,
    },
    Attack {
        name: "reach::sniffing-the-nodes-loopback",
        attacker: "a host-network pod",
        capability: "NET_RAW on the node",
        action: "sniffs lo (AF_PACKET) while another host-network pod fetches its credentials",
        expected: Expected::OutOfReach("--host-network-pods refuse: credentials never cross it, the token still does"),
        run: sniffing_the_nodes_loopback,
    },
    Attack {
        name: "reach::while-the-agent-is-down",
        attacker: "a host-network pod",
        capability: "NET_ADMIN on the node",
        action: "waits at 169.254.170.23 until the only agent is killed",
        expected: Expected::OutOfReach("the next agent is attached before the old one detaches (maxSurge: 1)"),
        run: while_the_agent_is_down,
    },
];

fn refusing(scene: &Scene) -> Result<Agent> {
    scene.node.agent_with(&AgentSpec::flags(&["--host-network-pods", "refuse"]))
}

/// The victim's connections are established, with the attacker; the agent finds them where it looks for its caller.
fn translated_onto_diverted(_: &Attack) -> Result<Outcome> {
    let pair = Pair::new()?;
    let (trap, netns) =
        (pair.scene.node.netns().within(|| TcpListener::bind(raw::loopback(TRAP)))??, pair.scene.node.netns());
    translate_sources(netns, COUNT)?;
    netns.nft(&crate::tuples::divert(COUNT, TRAP))?;
    let victims = begin_at_targets(&pair, COUNT)?;
    victims.iter().try_for_each(raw::finish_connecting)?;
    let tally = ask_translated(&pair, COUNT)?;
    let victims_key = as_an_sdk(&pair.scene.victim)?.access_key_id();
    ensure!(tally.granted == u64::from(COUNT) && tally.access_keys.contains(&victims_key), "{tally:?}");
    let Pair { attacker, victim, agent, scene } = pair;
    drop((victims, trap, attacker, victim, agent));
    let agent = refusing(&scene)?;
    let limited = scene.thief.tally(&scene.stolen().tries(CONTROL))?;
    ensure!(limited.refused(403, "Host-network pods are not served") == CONTROL, "{limited:?}");
    drop(agent);
    let control = format!("with --host-network-pods refuse: {CONTROL}/{CONTROL} refused");
    Ok(Outcome { total: u64::from(COUNT), control, ..Outcome::default() })
}

fn sniffing_the_nodes_loopback(_: &Attack) -> Result<Outcome> {
    let scene = Scene::on_the_host_network()?;
    let agent = scene.agent()?;
    let secret = as_an_sdk(&scene.victim)?.member("SecretAccessKey");
    let sniffed = |what: &str| -> Result<(u64, u64, Tally)> {
        let capture = Capture::start(scene.node.netns())?;
        let tally = scene.victim.tally(&scene.stolen().tries(u64::from(COUNT)))?;
        let capture = capture.stop();
        let seen = |secret| capture.packets_that_carried(secret).get("lo").copied().unwrap_or_default() as u64;
        ensure!(seen(scene.victim.token()) >= u64::from(COUNT), "the sniffer does not work: {what}");
        Ok((seen(scene.victim.token()), seen(&secret), tally))
    };
    let (_, secrets, tally) = sniffed("serving")?;
    ensure!(tally.granted == u64::from(COUNT) && secrets >= u64::from(COUNT), "{secrets}, {tally:?}");
    drop(agent);
    let agent = refusing(&scene)?;
    let (tokens, secrets, tally) = sniffed("refusing")?;
    ensure!(secrets == 0 && tally.refused(403, "Host-network pods are not served") == u64::from(COUNT), "{tally:?}");
    drop(agent);
    let control =
        format!("with --host-network-pods refuse: 0 packets with secrets, {tokens} with the token, of {COUNT} fetches");
    Ok(Outcome { total: u64::from(COUNT), control, ..Outcome::default() })
}

fn while_the_agent_is_down(_: &Attack) -> Result<Outcome> {
    let scene = Scene::new()?;
    let mut agent = scene.agent()?;
    let squatter = LinkLocal::squatter(&scene.node)?;
    let fetch = || scene.victim.tally(&scene.stolen().tries(u64::from(COUNT)));
    ensure!(fetch()?.granted == u64::from(COUNT) && squatter.connections() == 0, "the squatter received something");
    agent.kill()?;
    fetch()?;
    let lost = squatter.tokens();
    ensure!(lost == u64::from(COUNT), "{lost} tokens reached the squatter");
    // The limit: an agent that takes over from one that ends in order.
    let mut old = scene.agent()?;
    let new = scene.agent()?;
    let books = Books::of(&new)?;
    let asking = std::thread::scope(|scope| -> Result<Tally> {
        let asking = scope.spawn(|| scene.victim.tally(&scene.stolen().tries(1_000)));
        old.terminate(Duration::from_secs(10))?;
        asking.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
    })?;
    // The new agent has to fetch first, which may take longer than a request may wait.
    let later = asking.refused(503, ANSWER_DEADLINE.message);
    ensure!(asking.granted + later == 1_000, "not all were served: {asking:?}");
    ensure!(squatter.tokens() == lost, "tokens reached the squatter while one agent followed the other");
    ensure!(books.since(&new)?.grants > 0, "the new agent served nobody");
    let control = format!(
        "while one agent takes over from another: {}/1000 granted, 0 connections reached the squatter",
        asking.granted
    );
    Ok(Outcome { total: lost, control, ..Outcome::default() })
}
