//! Somebody else at the target address.
use anyhow::{Result, ensure};
use pod_identity_tests::link_local::LinkLocal;

use crate::{
    attack::{Attack, Books, Expected, Outcome, tries},
    scene::Scene,
};

pub(crate) const ATTACKS: [Attack; 1] = [Attack {
    name: "squatting::on-the-node",
    attacker: "a process of the node",
    capability: "NET_ADMIN on the node",
    action: "takes 169.254.170.23 and port 80 on the node, and waits for tokens",
    expected: Expected::Nothing("no connection reaches it"),
    run: on_the_node,
}];

/// One squatter, all the time: before the agent, beside it, and after it.
fn on_the_node(_: &Attack) -> Result<Outcome> {
    let scene = Scene::new()?;
    let squatter = LinkLocal::squatter(&scene.node)?;
    let fetch = |count| scene.victim.tally(&scene.stolen().tries(count));
    fetch(100)?;
    ensure!(squatter.tokens() == 100, "the squatter does not work: {}", squatter.tokens());
    let mut agent = scene.agent()?;
    let (before, books) = (squatter.connections(), Books::of(&agent)?);
    let tally = fetch(tries())?;
    let counted = books.since(&agent)?;
    let received = squatter.connections() - before;
    ensure!(tally.granted == tally.tries, "not all were served: {tally:?}");
    ensure!(counted.steered == tally.tries, "not all were steered: {counted:?}");
    agent.terminate(std::time::Duration::from_secs(10))?;
    let (after, tokens) = (squatter.connections(), squatter.tokens());
    fetch(100)?;
    ensure!(squatter.connections() - after == 100 && squatter.tokens() - tokens == 100, "the squatter had gone");
    Ok(Outcome {
        refused: tally.tries - received,
        total: tally.tries,
        counted: format!("steering_steered_total +{}", counted.steered),
        log: String::new(),
        control: "the same squatter, without the agent's programs: 100/100 tokens received before, and after"
            .to_owned(),
    })
}
