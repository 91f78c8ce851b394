//! Whoever listens on the wire.
use anyhow::{Result, ensure};
use pod_identity_tests::{
    capture::{Capture, Captured},
    client::{Client, Tally},
    link_local::LinkLocal,
    node::Node,
    pod::Pod,
};

use crate::{
    attack::{Attack, Books, Expected, Outcome, tries},
    scene::as_an_sdk,
};

/// All session tokens begin with the same bytes.
const SHARED: usize = 16;

/// Fetches that are captured in the pod itself, and those of the control.
const SOME: u64 = 100;

pub(crate) const ATTACKS: [Attack; 1] = [Attack {
    name: "sniffing::every-interface",
    attacker: "node and pods",
    capability: "NET_RAW everywhere else",
    action: "sniffs every interface of the node and of another pod (AF_PACKET) while a pod fetches",
    expected: Expected::Nothing("0 bytes of token or secret"),
    run: every_interface,
}];

/// Both kinds of agent in one run, seen by the same captures: ours for the pod, one on a link-local address for a
/// process in another pod's namespace that is not steered.
fn every_interface(_: &Attack) -> Result<Outcome> {
    let node = Node::new()?;
    let (pod, other, neighbour) = (node.pod("app")?, node.pod("other")?, node.pod("neighbour")?);
    let agent = node.agent()?;
    let believer = LinkLocal::agent(&node)?;
    let unsteered = node.top_cgroup().child("unsteered.service")?;
    // From here on both answer from what they have: the node's way to EKS Auth, TLS elsewhere, is plain here.
    let secrets = secrets_of(&pod, &as_an_sdk(&pod)?);
    let others = secrets_of(&other, &first(other.ask_from_cgroup(&unsteered, &Client::with_token(other.token()))?)?);
    let books = Books::of(&agent)?;
    let sniffers = [Capture::start(node.netns())?, Capture::start(neighbour.netns()?)?];
    let in_pod = Capture::start(pod.netns()?)?;
    let mut tally = fetch(&pod, SOME)?;
    let in_pod = in_pod.stop();
    tally.merge(fetch(&pod, tries() - SOME)?);
    let control = other.tally_from_cgroup(&unsteered, &Client::with_token(other.token()).tries(SOME))?;
    let captured = sniffers.map(Capture::stop);
    ensure!(tally.granted == tally.tries && tally.tries >= tries() - 3, "{tally:?}");
    ensure!(control.granted == SOME && believer.tokens() == SOME + 1, "the control does not work: {control:?}");
    for secret in &secrets {
        ensure!(in_pod.interfaces_that_carried(secret) == ["lo"], "not on the pod's loopback alone");
    }
    let carried = |secrets: &[String]| secrets.iter().map(|secret| packets(&captured, secret)).sum::<usize>();
    let (stolen, controls) = (carried(&secrets), carried(&others));
    ensure!(controls >= usize::try_from(3 * SOME)?, "the sniffers saw {controls} packets of the control's only");
    ensure!(stolen == 0, "{stolen} packets carried a token or a secret");
    Ok(Outcome {
        refused: tally.tries,
        total: tally.tries,
        counted: format!("grants_total +{}", books.since(&agent)?.grants),
        log: String::new(),
        control: format!(
            "in the same captures {controls} packets with token or secrets of {SOME} fetches from an agent on a \
             link-local address; 0 of {}",
            tally.tries
        ),
    })
}

/// By all three addresses that SDKs aim at.
fn fetch(pod: &Pod, count: u64) -> Result<Tally> {
    let mut tally = Tally::default();
    for (n, to) in ["169.254.170.23:80", "[fd00:ec2::23]:80", "[::ffff:169.254.170.23]:80"].into_iter().enumerate() {
        let share = if n == 0 { count - 2 * (count / 3) } else { count / 3 };
        tally.merge(pod.tally(&Client::with_token(pod.token()).to(to).tries(share))?);
    }
    Ok(tally)
}

fn first(mut answers: Vec<pod_identity_tests::client::Answer>) -> Result<pod_identity_tests::client::Answer> {
    answers.pop().ok_or_else(|| anyhow::anyhow!("the client printed nothing"))
}

fn secrets_of(pod: &Pod, answer: &pod_identity_tests::client::Answer) -> Vec<String> {
    // What only this pod's have: the token's signature, and what follows the beginning that session tokens share.
    let signature = pod.token().rsplit('.').next().unwrap_or_default().to_owned();
    let session = answer.member("Token").get(SHARED..).unwrap_or_default().to_owned();
    vec![signature, answer.member("SecretAccessKey"), session]
}

fn packets(captured: &[Captured], secret: &str) -> usize {
    captured.iter().flat_map(|it| it.packets_that_carried(secret).into_values()).sum()
}
