//! The credential engine seen from outside: how often EKS Auth is asked, and what clients cannot do to others.
use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use pod_identity_tests::{
    agent::AgentSpec,
    client::Client,
    eks_auth::EksAuthSpec,
    node::{Node, NodeSpec},
    standin::control::{Effect, Rule},
};

use crate::common::{must_be_granted, must_be_refused, must_refuse, refusal, served, served_with};

#[test]
fn clients_that_hang_up_do_not_cancel_the_fetch() -> Result<()> {
    let served = served()?;
    let other = served.node.pod("other")?;
    served.node.eks_auth().delay(Duration::from_millis(500))?;
    let orderly = Client::with_token(served.pod.token()).hang_up_after_ms(50);
    let reset = Client::with_token(other.token()).reset_after_ms(50);
    for (pod, client) in [(&served.pod, orderly), (&other, reset)] {
        for answer in pod.ask(&client.clients(10))? {
            ensure!(answer.error.as_deref() == Some("hung up"), "{answer:?}");
        }
    }
    thread::sleep(Duration::from_millis(700));
    for pod in [&served.pod, &other] {
        let answer = pod.must_get_credentials()?;
        ensure!(answer.latency_us < 300_000, "the fetch was cancelled with its clients: {answer:?}");
        ensure!(served.node.eks_auth().calls_for(pod.uid())? == 1, "the fetch was cancelled with its clients");
    }
    ensure!(served.node.eks_auth().outcomes()?.get("ok") == Some(&2));
    Ok(())
}

#[test]
fn a_pod_that_waits_does_not_delay_another() -> Result<()> {
    let served = served()?;
    let other = served.node.pod("other")?;
    let hang = Rule { service_account: Some("default/app".into()), effect: Some(Effect::Hang), ..Rule::default() };
    served.node.eks_auth().rule(&hang)?;
    thread::scope(|scope| {
        let waiting = scope.spawn(|| served.pod.ask(&Client::with_token(served.pod.token()).clients(50)));
        thread::sleep(Duration::from_millis(100));
        let answer = other.must_get_credentials()?;
        ensure!(answer.latency_us < 400_000, "{answer:?}");
        for refused in waiting.join().map_err(|_| anyhow::anyhow!("the waiting panicked"))?? {
            ensure!(refused.status == Some(503) && refused.latency_us < 1_000_000, "{refused:?}");
        }
        Ok(())
    })
}

/// Asks without a pause for so long.
fn hammer(served: &crate::common::Served, duration: Duration) -> Result<usize> {
    let (until, mut asked) = (Instant::now() + duration, 0);
    while Instant::now() < until {
        asked += served.pod.ask(&Client::with_token(served.pod.token()).clients(4).requests(10))?.len();
    }
    Ok(asked)
}

#[test]
fn an_outage_is_asked_about_only_as_back_off_allows() -> Result<()> {
    let served = served()?;
    served.node.eks_auth().fail(500, "InternalServerException", "down")?;
    let asked = hammer(&served, Duration::from_millis(2800))?;
    // At once, after 1 s, and, had it lasted, 2 s later.
    let calls = served.node.eks_auth().counters()?.calls;
    ensure!((1..=3).contains(&calls) && asked > 100, "{calls} calls for {asked} requests");
    served.node.eks_auth().behave()?;
    let recovered = pod_identity_tests::process::eventually("the pod to recover", Duration::from_secs(5), || {
        Ok(Some(served.pod.credentials()?).filter(|answer| answer.status == Some(200)))
    })?;
    must_be_granted(&recovered)
}

#[test]
fn a_definite_refusal_is_repeated_without_asking_again() -> Result<()> {
    let served = served()?;
    served.node.eks_auth().fail(400, "AccessDeniedException", "no")?;
    let asked = hammer(&served, Duration::from_secs(2))?;
    let calls = served.node.eks_auth().counters()?.calls;
    ensure!(calls == 1 && asked > 100, "{calls} calls for {asked} requests");
    // And it is repeated as it was said.
    must_be_refused(&served.pod.credentials()?, 400, "(AccessDeniedException): no, fault: client")
}

/// A node whose credentials live for 16 s: half of it, less jitter, is 7.2 to 8 s.
fn short_lived() -> Result<Node> {
    let eks_auth = EksAuthSpec { lifetime_seconds: Some(16), ..EksAuthSpec::default() };
    Node::with(NodeSpec { eks_auth, ..NodeSpec::default() })
}

#[test]
fn credentials_are_renewed_at_half_of_their_life_without_being_asked() -> Result<()> {
    let node = short_lived()?;
    let (_agent, pod) = (node.agent()?, node.pod("app")?);
    let first = pod.must_get_credentials()?.access_key_id();
    thread::sleep(Duration::from_secs(6));
    ensure!(pod.must_get_credentials()?.access_key_id() == first && node.eks_auth().calls_for(pod.uid())? == 1);
    thread::sleep(Duration::from_secs(3));
    ensure!(node.eks_auth().calls_for(pod.uid())? == 2, "no renewal, or more than one");
    let second = pod.must_get_credentials()?;
    ensure!(second.access_key_id() != first && second.latency_us < 300_000, "{second:?}");
    Ok(())
}

#[test]
fn valid_credentials_are_served_until_they_expire_and_no_longer() -> Result<()> {
    let node = short_lived()?;
    let (agent, pod) = (node.agent()?, node.pod("app")?);
    let started = Instant::now();
    let first = pod.must_get_credentials()?.access_key_id();
    node.eks_auth().fail(503, "ServiceUnavailableException", "down")?;
    thread::sleep(Duration::from_secs(13).saturating_sub(started.elapsed()));
    ensure!(pod.must_get_credentials()?.access_key_id() == first, "an outage took valid credentials away");
    thread::sleep(Duration::from_millis(17_200).saturating_sub(started.elapsed()));
    must_refuse(&agent, refusal(503, "eks_auth_unavailable", "try again"), || pod.credentials()).map(|_| ())
}

#[test]
fn nothing_secret_is_logged_at_the_most_talkative_level() -> Result<()> {
    let served = served_with(&AgentSpec::flags(&["-v", "trace"]))?;
    let granted = served.pod.must_get_credentials()?;
    let thief = served.node.pod("thief")?;
    thief.ask_once(&Client::with_token(served.pod.token()))?;
    thief.ask_once(&Client::with_token(&format!("Bearer {}", served.pod.token())))?;
    thief.ask_once(&Client::with_token(thief.token()).host(served.pod.token()))?;
    thief.ask_once(&Client::with_token(thief.token()).path(&format!("/{}", served.pod.token())))?;
    served.node.eks_auth().fail(400, "InvalidTokenException", &format!("token {} is no good", thief.token()))?;
    let quoted = thief.credentials()?;
    ensure!(!quoted.body.contains("eyJ"), "an answer quotes a token: {quoted:?}");
    let log = served.agent.wait_for_log(&["DEBUG"], Duration::from_secs(5)).map(|_| served.agent.log_text())?;
    let token_parts = served.pod.token().split('.').chain(thief.token().split('.'));
    let (secret, session) = (granted.member("SecretAccessKey"), granted.member("Token"));
    for part in token_parts.chain([secret.as_str(), session.as_str()]) {
        // The header of all tokens is the same, and no secret.
        let told = part.get(..part.len().min(64)).unwrap_or(part);
        ensure!(!log.contains(told), "the log says {told}…");
    }
    Ok(())
}
