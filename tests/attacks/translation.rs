//! Connections that come to the agent's listener by other ways than a pod's own connect.
use std::{
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
};

use anyhow::{Result, ensure};
use pod_identity_tests::{client::Client, sockets::Maker};

use crate::{
    attack::{Attack, Books, CONTROL, Expected, FOREIGN_TOKEN, Outcome, UNKNOWN_SOCKET, tries},
    raw,
    scene::{LISTENER, Scene, as_an_sdk, directly, granted, theft},
};

/// Client, server, data without a cookie either way, all listeners.
const FAST_OPEN_FORCED: &str = "1543";

pub(crate) const ATTACKS: [Attack; 7] = [
    Attack {
        name: "translation::dnat-and-route-localnet",
        attacker: "a pod, and one outside",
        capability: "NET_ADMIN in one of them",
        action: "opens the listener to the outside (DNAT, route_localnet), presents a stolen token from there",
        expected: Expected::Refused(&[UNKNOWN_SOCKET]),
        run: let_the_outside_in,
    },
    Attack {
        name: "translation::snat-on-loopback",
        attacker: "a pod",
        capability: "NET_ADMIN",
        action: "hides its source address (SNAT on lo), presents a stolen token",
        expected: Expected::Refused(&[UNKNOWN_SOCKET]),
        run: hidden_source,
    },
    Attack {
        name: "translation::direct",
        attacker: "a pod",
        capability: "—",
        action: "calls the agent's listener past the target address, from 127.0.0.0/8 of its choice and ::1",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: direct,
    },
    Attack {
        name: "translation::from-outside",
        attacker: "a pod",
        capability: "—",
        action: "calls the listener's port on the victim's own address",
        expected: Expected::Nothing("refused by the kernel: nothing listens there"),
        run: from_outside,
    },
    Attack {
        name: "translation::fast-open",
        attacker: "a pod",
        capability: "NET_ADMIN",
        action: "sends a stolen token with the SYN, with TCP Fast Open forced on all sockets without cookies",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: |attack| {
            let scene = Scene::new()?;
            scene.thief.netns()?.sysctl("ipv4/tcp_fastopen", FAST_OPEN_FORCED)?;
            theft(attack, &scene, |scene, client| scene.thief.tally(&client.clone().mode("tfo-sendto")))
        },
    },
    Attack {
        name: "translation::half-open",
        attacker: "a pod",
        capability: "NET_ADMIN",
        action: "leaves connections half open (drops the SYN-ACK), with the queue of its listener full of them",
        expected: Expected::Nothing("never accepted"),
        run: |_| half_open(raw::begin_to_connect),
    },
    Attack {
        name: "translation::half-open-with-data",
        attacker: "a pod",
        capability: "NET_ADMIN",
        action: "the same, with the first bytes in the SYN, and TCP Fast Open forced on all sockets without cookies",
        expected: Expected::Nothing("never accepted"),
        // Accepted at once otherwise, while the caller's own socket is half open: nobody's, and its request unread.
        run: |_| half_open(|socket, to| raw::begin_with(socket, to, b"GET /v1/credentials HTTP/1.1\r\n")),
    },
];

/// A request to the listener that came through whatever the attacker set up is refused; the pod's own is not.
fn let_the_outside_in(attack: &Attack) -> Result<Outcome> {
    let scene = Scene::new()?;
    let agent = scene.agent()?;
    let (netns, address) = (scene.victim.netns()?, scene.victim.address()?);
    netns.sysctl("ipv4/conf/all/route_localnet", "1")?;
    netns.sysctl("ipv4/conf/eth0/route_localnet", "1")?;
    netns.nft(&format!(
        "add table ip attack\nadd chain ip attack pre {{ type nat hook prerouting priority -100; }}\n\
         add rule ip attack pre ip daddr {address} tcp dport 9999 dnat to {LISTENER}\n"
    ))?;
    let client = scene.stolen().to(&format!("{address}:9999")).host("169.254.170.23");
    let outcome = attack.carry_out(&agent, &[], || scene.thief.tally(&client.tries(tries())))?;
    // That there were answers shows that the translation works.
    let control = granted(&scene.victim.tally(&scene.stolen().tries(CONTROL))?, "from the pod itself meanwhile")?;
    Ok(Outcome { control, ..outcome })
}

fn hidden_source(attack: &Attack) -> Result<Outcome> {
    let scene = Scene::new()?;
    let agent = scene.agent()?;
    as_an_sdk(&scene.thief)?;
    let control = granted(&scene.thief.tally(&scene.own().tries(CONTROL))?, "its own token before")?;
    // Ports of its choice: one alone would be taken by the connection before.
    scene.thief.netns()?.nft(
        "add table ip attack\nadd chain ip attack post { type nat hook postrouting priority 100; }\n\
         add rule ip attack post oif lo tcp dport 706 snat to 127.9.9.9:1024-65535\n",
    )?;
    let outcome = attack.carry_out(&agent, &[], || scene.thief.tally(&scene.stolen().tries(tries())))?;
    Ok(Outcome { control, ..outcome })
}

fn direct(attack: &Attack) -> Result<Outcome> {
    let scene = Scene::new()?;
    // Each connection that ends keeps its port for a minute, and two of the ways have their ports of one address.
    scene.thief.netns()?.sysctl("ipv4/ip_local_port_range", "1024 65535")?;
    let agent = scene.agent()?;
    let ways = |client: Client| {
        let from = |address: &str| directly(client.clone()).mode("bound").arg("--bind", address);
        [
            directly(client.clone()),
            from("127.0.0.1:0"),
            from("127.1.0.0:0"),
            client.clone().to("[::1]:706").host("169.254.170.23"),
        ]
    };
    let ask = |client: Client, count: u64| {
        let mut tally = pod_identity_tests::client::Tally::default();
        for way in ways(client) {
            tally.merge(scene.thief.tally(&way.tries(count / 4))?);
        }
        Ok(tally)
    };
    as_an_sdk(&scene.thief)?;
    let outcome = attack.carry_out(&agent, &[scene.thief.uid()], || ask(scene.stolen(), tries()))?;
    let control = granted(&ask(scene.own(), 12)?, "its own token by the same ways")?;
    Ok(Outcome { control, ..outcome })
}

fn from_outside(_: &Attack) -> Result<Outcome> {
    let scene = Scene::new()?;
    let agent = scene.agent()?;
    let books = Books::of(&agent)?;
    let client = scene.stolen().to(&format!("{}:706", scene.victim.address()?)).host("169.254.170.23").connect_once();
    let tally = scene.thief.tally(&client.tries(tries()))?;
    let refused = tally.errors.iter().filter(|(error, _)| error.contains("refused")).map(|(_, count)| count).sum();
    let counted = books.since(&agent)?;
    ensure!(counted.connections == 0, "the agent accepted something: {counted:?}");
    let control = granted(&scene.victim.tally(&directly(scene.stolen()).tries(CONTROL))?, "from the pod's loopback")?;
    Ok(Outcome {
        refused,
        total: tally.tries,
        counted: "connections_total +0".to_owned(),
        control,
        ..Outcome::default()
    })
}

fn half_open(begin: fn(OwnedFd, SocketAddr) -> Result<TcpStream>) -> Result<Outcome> {
    let scene = Scene::new()?;
    let netns = scene.thief.netns()?;
    netns.sysctl("ipv4/tcp_fastopen", FAST_OPEN_FORCED)?;
    let agent = scene.agent()?;
    as_an_sdk(&scene.thief)?;
    netns.nft(
        "add table ip attack\nadd chain ip attack in { type filter hook input priority 0; }\n\
         add rule ip attack in iif lo tcp sport 706 tcp flags & (syn | ack) == syn | ack drop\n",
    )?;
    let sockets = Maker::start(&scene.thief, scene.node.dir())?;
    let books = Books::of(&agent)?;
    // More than its queue holds.
    let count = 2_000;
    let sockets_held = (0..count).map(|_| begin(sockets.make()?, LISTENER.parse()?)).collect::<Result<Vec<_>>>()?;
    // Another pod does not notice.
    let control = granted(&scene.victim.tally(&scene.stolen().tries(CONTROL))?, "another pod meanwhile")?;
    let counted = books.since(&agent)?;
    ensure!(counted.connections == CONTROL && counted.refusals.is_empty(), "something was accepted: {counted:?}");
    drop(sockets_held);
    netns.nft("delete table ip attack\n")?;
    as_an_sdk(&scene.thief)?;
    Ok(Outcome {
        refused: count,
        total: count,
        counted: format!("connections_total +{CONTROL}, those of the control"),
        control,
        ..Outcome::default()
    })
}
