//! Answers that the kernel never gave, to the questions that attestation asks.
use anyhow::Result;

use crate::{
    attack::{Attack, Expected, FOREIGN_TOKEN, tries},
    scene::{Scene, as_an_sdk, directly},
};

pub(crate) const ATTACKS: [Attack; 1] = [Attack {
    name: "netlink::forged-answers",
    attacker: "a pod",
    capability: "NET_ADMIN",
    action: "tells every sock_diag socket of its namespace that its socket is the victim's, presents its token",
    expected: Expected::Refused(&[FOREIGN_TOKEN]),
    run: forged_answers,
}];

fn forged_answers(attack: &Attack) -> Result<crate::attack::Outcome> {
    let scene = Scene::new()?;
    let agent = scene.agent()?;
    as_an_sdk(&scene.victim)?;
    // The agent's socket has an address from its first question on.
    as_an_sdk(&scene.thief)?;
    let cgroup_id = scene.victim.container("app")?.cgroup().id()?.to_string();
    let client = directly(scene.stolen())
        .mode("forged-answer")
        .arg("--bind", "127.0.0.1:20000")
        .arg("--cgroup-id", &cgroup_id)
        // A port of its own each time, and there are no more.
        .tries(tries().min(10_000));
    let outcome = attack.carry_out(&agent, &[scene.thief.uid()], || scene.thief.tally(&client))?;
    // Nobody is left with somebody else's answer.
    as_an_sdk(&scene.thief)?;
    as_an_sdk(&scene.victim)?;
    let control = format!("a socket that takes messages from anybody got the forged answer {} times", outcome.total);
    Ok(crate::attack::Outcome { control, ..outcome })
}
