//! Many at once: clients of one pod share a call and wait hardly longer than for it; pods have a call each, so many at a
//! time as the operator allows; pods that fail or hang leave the others' latency as it is.
use std::{thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use pod_identity_tests::{
    agent::AgentSpec,
    client::Client,
    host,
    node::Node,
    process::eventually,
    standin::control::{Effect, Rule},
};

use crate::common::{ask_at_once, median, must_be_granted, pods, served, slowest, took};

#[test]
fn clients_of_a_new_pod_share_one_call_and_wait_hardly_longer() -> Result<()> {
    const UPSTREAM: Duration = Duration::from_millis(300);
    const ROUNDS: usize = 5;
    let served = served()?;
    served.node.eks_auth().delay(UPSTREAM)?;
    let (mut alone, mut cold, mut cached) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(took(&served.node.pod("app")?.must_get_credentials()?));
        let pod = served.node.pod("app")?;
        let burst = Client::with_token(pod.token()).clients(100);
        for slowest_of_burst in [&mut cold, &mut cached] {
            let answers = pod.ask(&burst)?;
            let first = answers.first().context("no answers")?;
            for answer in &answers {
                must_be_granted(answer)?;
                ensure!(answer.body == first.body, "two clients of one pod got different credentials");
            }
            ensure!(answers.len() == 100);
            slowest_of_burst.push(slowest(&answers));
        }
        ensure!(served.node.eks_auth().calls_for(pod.uid())? == 1, "a burst cost more than one call");
    }
    println!("EKS Auth takes {UPSTREAM:?}; a lone client {alone:?}; slowest of 100: cold {cold:?}, cached {cached:?}");
    let (alone, cold, cached) = (median(alone), median(cold), median(cached));
    // What a call takes on this machine now, signatures and all; and nobody waits for anything else.
    ensure!(alone <= UPSTREAM * 3 / 2, "{alone:?} for a call that takes {UPSTREAM:?}");
    ensure!(cold <= alone + 2 * cached, "{cold:?} for a burst that takes {cached:?} when cached, {alone:?} for one");
    Ok(())
}

#[test]
fn pods_that_ask_at_once_have_a_call_each_and_no_more_at_a_time_than_allowed() -> Result<()> {
    // Both are more pods than get a place within the 0.9 s after which a client is told to come back.
    let (count, places) = if host::full_size() { (500, 64) } else { (60, 8) };
    let node = Node::new()?;
    let _agent = node.agent_with(&AgentSpec::flags(&[&format!("--max-upstream-concurrency={places}")]))?;
    node.eks_auth().delay(Duration::from_millis(200))?;
    let pods = pods(&node, "app", count)?;
    let answers = ask_at_once(&node, &pods, |client| client.attempts(20))?;
    let (mut times, mut came_back) = (Vec::new(), 0);
    for answer in &answers {
        must_be_granted(answer)?;
        times.push(took(answer));
        came_back += u32::from(answer.attempts > 1);
    }
    let counters = node.eks_auth().counters()?;
    println!(
        "{count} pods, {places} places: {} at a time, median {:?}, slowest {:?}, {came_back} told to come back",
        counters.max_concurrency,
        median(times),
        slowest(&answers)
    );
    ensure!(counters.calls == u64::try_from(count)?, "{} calls", counters.calls);
    ensure!(counters.by_pod_uid.len() == count && counters.by_pod_uid.values().all(|calls| *calls == 1));
    // Fewer would say that they did not ask at once.
    ensure!(counters.max_concurrency == places, "{} calls at a time", counters.max_concurrency);
    Ok(())
}

#[test]
fn pods_that_fail_or_hang_leave_the_latency_of_others_as_it_is() -> Result<()> {
    const BAD: usize = 50;
    let node = Node::new()?;
    let _agent = node.agent()?;
    let eks_auth = node.eks_auth();
    let down = Effect::Error { status: 500, code: "InternalServerException".into(), message: "down".into() };
    for (service_account, effect) in [("default/failing", down), ("default/hanging", Effect::Hang)] {
        let service_account = Some(service_account.to_owned());
        eks_auth.rule(&Rule { service_account, effect: Some(effect), ..Rule::default() })?;
    }
    eks_auth.delay(Duration::from_millis(200))?;
    let start_good = || -> Result<Duration> {
        let good = pods(&node, "app", 5)?;
        let answers = ask_at_once(&node, &good, |client| client.attempts(5))?;
        answers.iter().try_for_each(must_be_granted)?;
        Ok(median(answers.iter().map(took).collect()))
    };

    let alone = start_good()?;
    let mut bad = pods(&node, "failing", BAD / 2)?;
    bad.extend(pods(&node, "hanging", BAD / 2)?);
    let (among, refused) = thread::scope(|scope| -> Result<_> {
        let asking = scope.spawn(|| ask_at_once(&node, &bad, |client| client.attempts(4)));
        eventually("the bad pods' calls", Duration::from_secs(20), || {
            Ok((eks_auth.counters()?.in_flight >= u64::try_from(BAD / 2)?).then_some(()))
        })?;
        let among = start_good();
        let refused = asking.join().map_err(|_| anyhow!("the bad pods panicked"))??;
        Ok((among?, refused))
    })?;
    println!("median of 5 new pods: {alone:?} alone, {among:?} among {BAD} that fail or hang");
    ensure!(refused.iter().all(|answer| answer.status == Some(503) && answer.attempts == 4), "{refused:?}");
    ensure!(among <= alone * 2, "{among:?} among pods that fail, {alone:?} without them");
    Ok(())
}
