//! While EKS Auth is down, what is valid is served to everybody in the pod: across the rotation of its token, at the
//! very moment of it too, and to containers that have not read the new one yet. A rotation never costs a call.
use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use pod_identity_tests::{
    agent::AgentSpec,
    client::Client,
    eks_auth::EksAuthSpec,
    host,
    node::{Node, NodeSpec},
    pod::PodSpec,
    standin::control::Effect,
};

use crate::common::{must_be_granted, must_refuse, refusal, served, served_with};

/// The clock is the machine's, so lives are short: `outage` covers several lives of a token, and the first attempts to
/// renew. In full size also the 30 s for which the agent takes a token that has expired, because clocks differ.
struct Lives {
    token: Duration,
    credentials: Duration,
    outage: Duration,
}

#[test]
fn an_outage_longer_than_a_tokens_life_costs_no_request() -> Result<()> {
    const ROTATES: Duration = Duration::from_secs(2);
    let seconds = Duration::from_secs;
    let (credentials, outage) = if host::full_size() { (seconds(80), seconds(45)) } else { (seconds(20), seconds(14)) };
    let lives = Lives { token: seconds(3), credentials, outage };
    let eks_auth = EksAuthSpec { lifetime_seconds: Some(lives.credentials.as_secs()), ..EksAuthSpec::default() };
    let node = Node::with(NodeSpec { eks_auth, ..NodeSpec::default() })?;
    let agent = node.agent()?;
    node.eks_auth().associate("default", "app", "app")?;
    let mut pod = node.pod_with(PodSpec::named("app").token_lifetime(lives.token))?;
    let first_token = pod.token().to_owned();
    pod.must_get_credentials()?;
    let (started, mut rotated, mut previous) = (Instant::now(), Instant::now(), None::<String>);
    node.eks_auth().always(Effect::Drop)?;

    let (mut requests, mut down, mut attempts) = (0, true, 0);
    while started.elapsed() < lives.credentials + seconds(4) {
        if rotated.elapsed() >= ROTATES {
            previous = Some(pod.token().to_owned());
            pod.rotate_token()?;
            rotated = Instant::now();
        }
        must_be_granted(&pod.credentials()?).with_context(|| format!("after {:?}", started.elapsed()))?;
        requests += 1;
        // Unexpired for a second after it was replaced.
        if let Some(previous) = previous.as_ref().filter(|_| rotated.elapsed() < Duration::from_millis(700)) {
            must_be_granted(&pod.ask_once(&Client::with_token(previous))?).context("the previous token")?;
            requests += 1;
        }
        if down && started.elapsed() > lives.outage {
            attempts = node.eks_auth().counters()?.calls - 1;
            node.eks_auth().behave()?;
            down = false;
        }
        thread::sleep(Duration::from_millis(200));
    }
    let outcomes = node.eks_auth().outcomes()?;
    println!("{requests} requests, {attempts} calls while it was down for {:?}: {outcomes:?}", lives.outage);
    ensure!((1..=5).contains(&attempts), "{attempts} attempts to renew during the outage");
    ensure!(outcomes.get("ok") == Some(&2), "the first fetch and one renewal, with a token that holds: {outcomes:?}");
    if host::full_size() {
        let expected = refusal(400, "token_expired", "token is expired");
        must_refuse(&agent, expected, || pod.ask_once(&Client::with_token(&first_token)))?;
    }
    Ok(())
}

#[test]
fn a_rotation_costs_no_call_and_leaves_nobody_behind() -> Result<()> {
    // With and without prefetch: the kubelet's file is proof enough.
    for flag in ["--prefetch=true", "--prefetch=false"] {
        let mut served = served_with(&AgentSpec::flags(&[flag]))?;
        served.pod.start_container("sidecar")?;
        let key = served.pod.must_get_credentials()?.access_key_id();
        served.node.eks_auth().fail(500, "InternalServerException", "down")?;
        // After the second rotation the sidecar's token is one that EKS Auth has never seen.
        for rotation in 1..=2 {
            let old = served.pod.token().to_owned();
            served.pod.rotate_token()?;
            ensure!(served.pod.token() != old, "the token was not rotated");
            let new = served.pod.token();
            for (container, token) in [("app", new), ("sidecar", old.as_str())] {
                let answers = served.pod.ask_in(container, &Client::with_token(token))?;
                let answer = answers.first().context("no answer")?;
                ensure!(answer.access_key_id() == key, "{flag}, rotation {rotation}, {container}: {answer:?}");
            }
        }
        ensure!(served.node.eks_auth().calls_for(served.pod.uid())? == 1, "{flag}: rotation cost a call");
    }
    Ok(())
}

/// The thread that learns of the rotation stands still until the request has come.
#[test]
fn a_request_that_overtakes_the_news_of_a_rotation_is_served() -> Result<()> {
    let mut served = served()?;
    let key = served.pod.must_get_credentials()?.access_key_id();
    served.node.eks_auth().fail(500, "InternalServerException", "down")?;
    for round in 0..5 {
        let stopped = served.agent.stop_main_thread()?;
        served.pod.rotate_token()?;
        let pod = &served.pod;
        let answer = thread::scope(|scope| {
            let asking = scope.spawn(|| pod.ask_once(&Client::with_token(pod.token())));
            // For the request to have gone as far as it can.
            thread::sleep(Duration::from_millis(200));
            drop(stopped);
            asking.join().map_err(|_| anyhow!("the client panicked"))?
        })?;
        ensure!(answer.access_key_id() == key, "round {round}: {answer:?}");
    }
    ensure!(served.node.eks_auth().calls_for(served.pod.uid())? == 1, "a rotation cost a call");
    Ok(())
}
