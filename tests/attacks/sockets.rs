//! Sockets that change hands, and sockets that outlive what they were made in.
use std::{io::Write as _, process::Command, thread, time::Duration};

use anyhow::{Result, ensure};
use pod_identity_tests::{cgroup::Cgroup, client::Client, http1, process::binary, sockets::Maker};

use crate::{
    attack::{Attack, Books, CONTROL, Expected, FOREIGN_TOKEN, Outcome, POD_GONE, tries},
    raw,
    scene::{LISTENER, Scene, as_an_sdk, granted},
};

/// Connections held over a pod's end; each is a descriptor here and in the agent.
const HELD: u16 = 200;

pub(crate) const ATTACKS: [Attack; 4] = [
    Attack {
        name: "sockets::smuggled-into-the-victim",
        attacker: "a pod",
        capability: "passes descriptors",
        action: "gives sockets of its own to a process of the victim, which presents the victim's token",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: |attack| passed(attack, From::Thief),
    },
    Attack {
        name: "sockets::taken-from-the-victim",
        attacker: "a pod",
        capability: "passes descriptors",
        action: "presents its own token over sockets that the victim made",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: |attack| passed(attack, From::Victim),
    },
    Attack {
        name: "sockets::connected-before-the-victims-end",
        attacker: "a pod",
        capability: "passes descriptors",
        action: "asks again on the victim's connections after the victim's end",
        expected: Expected::Nothing("reset, or 403 pod_gone"),
        run: connected_before_the_end,
    },
    Attack {
        name: "sockets::of-a-removed-cgroup",
        attacker: "a pod",
        capability: "writes its cgroup",
        action: "presents a stolen token over sockets made in a cgroup that has gone since",
        expected: Expected::Refused(&[POD_GONE]),
        run: of_a_removed_cgroup,
    },
];

/// What a pod's end may take.
const ENDS_WITHIN: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Thief,
    Victim,
}

/// A socket is its maker's, whoever uses it: the maker's token is good over it, its user's is not.
fn passed(attack: &Attack, from: From) -> Result<Outcome> {
    let scene = Scene::new()?;
    let agent = scene.agent()?;
    let (maker, user) = if from == From::Thief { (&scene.thief, &scene.victim) } else { (&scene.victim, &scene.thief) };
    let sockets = Maker::start(maker, scene.node.dir())?;
    let unix = sockets.unix().to_string_lossy().into_owned();
    as_an_sdk(maker)?;
    let over = |token: &str, count| {
        user.tally(&Client::with_token(token).mode("taken-socket").arg("--unix", &unix).tries(count))
    };
    let outcome = attack.carry_out(&agent, &[maker.uid()], || over(user.token(), tries()))?;
    let own = over(maker.token(), CONTROL)?;
    let key = as_an_sdk(maker)?.access_key_id();
    ensure!(own.access_keys.contains(&key), "other credentials than the maker's");
    let control = granted(&own, "the maker's token over the same sockets, given away on purpose")?;
    Ok(Outcome { control, ..outcome })
}

fn connected_before_the_end(_: &Attack) -> Result<Outcome> {
    let Scene { victim, thief, node } = Scene::new()?;
    let agent = node.agent()?;
    let token = victim.token().to_owned();
    as_an_sdk(&victim)?;
    let sockets = Maker::start(&victim, node.dir())?;
    let connect = || raw::connect(sockets.make()?, LISTENER.parse()?);
    let held = (0..HELD).map(|_| connect()).collect::<Result<Vec<_>>>()?;
    held.iter().try_for_each(|stream| raw::send(stream, &token))?;
    let before = raw::receive_all(&held);
    let control = granted(&before, "the same connections before it")?;
    let books = Books::of(&agent)?;
    victim.remove()?;
    // Until then the kernel's word that the cgroup has gone may still be on its way: what is promised, and tested by the node
    // tier, are 100 ms.
    thread::sleep(ENDS_WITHIN);
    let mut refused = 0;
    for mut stream in &held {
        // A reset may come before or after what is written.
        let _ = stream.write_all(http1::credentials_request(&token).as_bytes());
        let answer = raw::receive(stream);
        let gone = answer.status == Some(403) && answer.member("message").contains(POD_GONE.message);
        refused += u64::from(gone || answer.status.is_none());
    }
    let counted = books.since(&agent)?;
    ensure!(counted.grants == 0, "granted after the pod's end: {counted:?}");
    as_an_sdk(&thief)?;
    let log = agent.wait_for_log(&["pod", "ended"], Duration::from_secs(2)).unwrap_or_default();
    let log = if log.is_empty() { log } else { crate::attack::abridged(&log) };
    Ok(Outcome { refused, total: u64::from(HELD), counted: "grants_total +0".to_owned(), log, control })
}

fn of_a_removed_cgroup(attack: &Attack) -> Result<Outcome> {
    let scene = Scene::new()?;
    let agent = scene.agent()?;
    as_an_sdk(&scene.victim)?;
    let cgroup = Cgroup::create(scene.thief.container("app")?.cgroup().dir().join("short-lived"))?;
    let mut command: Command = scene.thief.enter_from(&cgroup)?;
    command.arg(binary("pod-client")?);
    let sockets = Maker::start_with(command, scene.node.dir())?;
    let count = usize::try_from(tries().min(1_000))?;
    let made = (0..count).map(|_| sockets.make()).collect::<Result<Vec<_>>>()?;
    let ask = |sockets: Vec<std::os::fd::OwnedFd>, token: &str| {
        let mut tally = pod_identity_tests::client::Tally::default();
        for socket in sockets {
            let stream = raw::connect(socket, LISTENER.parse()?)?;
            raw::send(&stream, token)?;
            tally.add(&raw::receive(&stream));
        }
        Ok(tally)
    };
    drop(sockets);
    cgroup.remove()?;
    let outcome = attack.carry_out(&agent, &[], || ask(made, scene.victim.token()))?;
    as_an_sdk(&scene.thief)?;
    let control = granted(&scene.thief.tally(&scene.own().tries(CONTROL))?, "its own token from the cgroup above")?;
    Ok(Outcome { control, ..outcome })
}
