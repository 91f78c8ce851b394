//! Where attacks happen: a node with a victim and a thief, and the theft that most attacks end in.
use std::time::Duration;

use anyhow::{Result, ensure};
use pod_identity_tests::{
    agent::{Agent, AgentSpec},
    client::{Answer, Client, Tally},
    link_local::LinkLocal,
    node::{Node, NodeSpec},
    pod::{Pod, PodSpec},
    process::eventually,
};

use crate::attack::{ANSWER_DEADLINE, Attack, CONTROL, Outcome, tries};

/// Where the agent listens in a namespace whose ports are all free.
pub(crate) const LISTENER: &str = "127.0.0.1:706";

/// A node with two pods; its agent starts when the attack says so.
pub(crate) struct Scene {
    // Pods end before their node.
    pub(crate) victim: Pod,
    pub(crate) thief: Pod,
    pub(crate) node: Node,
}

impl Scene {
    /// Both pods with a network of their own.
    pub(crate) fn new() -> Result<Self> {
        Self::with(|victim| victim, |thief| thief)
    }

    /// Both pods in the node's network.
    pub(crate) fn on_the_host_network() -> Result<Self> {
        Self::with(PodSpec::host_network, PodSpec::host_network)
    }

    /// Pods laid out so.
    pub(crate) fn with(
        victim: impl FnOnce(PodSpec) -> PodSpec,
        thief: impl FnOnce(PodSpec) -> PodSpec,
    ) -> Result<Self> {
        Self::on(NodeSpec::default(), victim, thief)
    }

    /// On a node laid out so.
    pub(crate) fn on(
        node: NodeSpec,
        victim: impl FnOnce(PodSpec) -> PodSpec,
        thief: impl FnOnce(PodSpec) -> PodSpec,
    ) -> Result<Self> {
        let node = Node::with(node)?;
        for name in ["victim", "thief"] {
            node.eks_auth().associate("default", name, name)?;
        }
        let victim = node.pod_with(victim(PodSpec::named("victim")))?;
        let thief = node.pod_with(thief(PodSpec::named("thief")))?;
        Ok(Self { victim, thief, node })
    }

    /// Starts the agent; the victim's credentials are there when this returns. No pod has a share that limits it: an
    /// attacker is to be as fast as it can be.
    pub(crate) fn agent(&self) -> Result<Agent> {
        let agent = self.node.agent_with(&AgentSpec::flags(&["--max-share-per-pod", "100"]))?;
        as_an_sdk(&self.victim)?;
        Ok(agent)
    }

    /// A request with the victim's token.
    pub(crate) fn stolen(&self) -> Client {
        Client::with_token(self.victim.token())
    }

    /// A request with the thief's own token.
    pub(crate) fn own(&self) -> Client {
        Client::with_token(self.thief.token())
    }

    /// The theft against an agent that believes bearers: the control that must succeed, before there is any other agent.
    pub(crate) fn succeeds_with_a_believer(&self, attempt: impl FnOnce(&Client) -> Result<Tally>) -> Result<String> {
        let _believer = LinkLocal::agent(&self.node)?;
        let tally = attempt(&self.stolen().tries(CONTROL))?;
        ensure!(tally.granted == CONTROL, "the control does not work: {tally:?}");
        Ok(format!("against an agent that believes bearers: {CONTROL}/{CONTROL} granted"))
    }
}

/// A theft, first where it must succeed and then against the agent, by the same process in the same place.
pub(crate) fn theft(
    attack: &Attack,
    scene: &Scene,
    attempt: impl Fn(&Scene, &Client) -> Result<Tally>,
) -> Result<Outcome> {
    let control = scene.succeeds_with_a_believer(|client| attempt(scene, client))?;
    let agent = scene.agent()?;
    let outcome = attack.carry_out(&agent, &[scene.thief.uid()], || attempt(scene, &scene.stolen().tries(tries())))?;
    as_an_sdk(&scene.victim)?;
    // Once for the believer, once for the victim: no stolen token was shown to EKS Auth.
    let asked = scene.node.eks_auth().calls_for(scene.victim.uid())?;
    ensure!(asked == 2, "EKS Auth was asked {asked} times");
    Ok(Outcome { control, ..outcome })
}

/// The same way with a token that is good there: the control of attacks that lead past the target address.
pub(crate) fn granted(tally: &Tally, what: &str) -> Result<String> {
    ensure!(tally.granted == tally.tries && tally.tries > 0, "the control does not work ({what}): {tally:?}");
    ensure!(tally.access_keys.len() == 1, "several credentials: {tally:?}");
    Ok(format!("{what}: {}/{} granted", tally.granted, tally.tries))
}

/// To the agent's listener, past the target address.
pub(crate) fn directly(client: Client) -> Client {
    client.to(LISTENER).host("169.254.170.23")
}

/// A refusal is the agent's own word; that the victim is still served shows that nothing was broken for it.
pub(crate) fn victim_is_served(scene: &Scene, agent: &Agent) -> Result<()> {
    as_an_sdk(&scene.victim)?;
    ensure!(agent.metric("pod_identity_grants_total")? > 0.5);
    Ok(())
}

/// Credentials for a pod, asked for as SDKs do: on a machine that is busy the first answer may be to come again.
pub(crate) fn as_an_sdk(pod: &Pod) -> Result<Answer> {
    eventually("a pod to be served", Duration::from_secs(20), || {
        let answer = pod.credentials()?;
        let comes_later = answer.status == Some(503) && answer.member("message").contains(ANSWER_DEADLINE.message);
        ensure!(comes_later || answer.status == Some(200), "the pod got no credentials: {answer:?}");
        Ok((!comes_later).then_some(answer))
    })
}
