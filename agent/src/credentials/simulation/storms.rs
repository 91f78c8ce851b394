//! EKS Auth throttles, fails, is away for hours: what it is asked stays within bounds, and what is valid is served.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    DAY, HOUR, LATENCY, MINUTE, SECOND, SIX_HOURS,
    audit::audit,
    calm::mixture,
    eks_auth::{EksAuth, Fault, Reply, Spell},
    fleet::{Fleet, PodSpec},
    formula::Bounds,
    node::{Ours, Seen, limits, run},
    pods_of,
    sdks::SDKS,
};
use crate::pod_uid::PodUid;

/// Three bad days. The longest outage is shorter than what credentials of six hours have left.
fn weather() -> [Spell; 7] {
    [
        Spell::new(5 * HOUR, 10 * MINUTE, Fault::Throttles { above: 0 }),
        Spell::new(9 * HOUR, 40 * MINUTE, Fault::Throttles { above: 1 }),
        Spell::new(14 * HOUR, 30 * SECOND, Fault::Down),
        Spell::new(20 * HOUR, 2 * HOUR + 30 * MINUTE, Fault::Down),
        Spell::new(33 * HOUR, SECOND, Fault::Throttles { above: 0 }),
        Spell::new(47 * HOUR, 3 * HOUR, Fault::Throttles { above: 2 }),
        Spell::new(60 * HOUR, 20 * MINUTE, Fault::Down),
    ]
}

#[tokio::test(start_paused = true)]
async fn three_bad_days_cost_what_the_bounds_say_and_nothing_expired_is_served() {
    let limits = limits(1);
    let fleet = Fleet::with(mixture(pods_of(2000, 160), 3 * DAY, HOUR, 9), &weather());
    let eks_auth = EksAuth::new(&fleet, LATENCY);
    let seen = run(&Ours::new(&eks_auth, limits), &fleet).await;
    assert!(eks_auth.most_in_flight() <= 1);
    for (pod, spec) in &fleet.pods {
        let (calls, seen) = (eks_auth.calls(*pod), &seen[pod]);
        audit(&fleet, spec, &limits, spec.born, &calls);
        let bounds = Bounds::of(spec, &limits, LATENCY, fleet.longest_queue(), &fleet.spells);
        assert!(calls.len() <= bounds.most, "{} calls, {bounds:?}, {spec:?}", calls.len());
        let answered = calls.iter().filter(|call| call.reply == Reply::Granted).count();
        let steady = spec.first_ask().is_some_and(|first| first < spec.born + 2 * HOUR);
        assert!(!steady || bounds.least <= answered, "{answered} answered calls, {bounds:?}, {spec:?}");
        assert!(seen.expired + seen.short == 0, "{spec:?} {seen:?}");
        let born_well = fleet.answers(spec.born) && steady;
        assert!(!born_well || spec.life < SIX_HOURS || seen.failed == 0, "{spec:?} {seen:?}");
    }
    println!("{} calls, {:?}", eks_auth.total(), Seen::of_all(seen.values()));
}

/// The bounds above would be worth nothing if a call more in each half-life fitted between them.
#[test]
fn the_bounds_have_no_room_for_a_call_more_in_each_half_life() {
    let pod = PodSpec::new(0, 3 * DAY).asks(SDKS[0], SECOND);
    let Bounds { least, most } = Bounds::of(&pod, &limits(1), LATENCY, MINUTE, &[]);
    let half_lives = 24;
    assert!((least, most) == (23, 27) && most < least + half_lives, "{least} to {most}");
}

async fn with_a_third_that(fails: Option<Reply>) -> (BTreeMap<PodUid, Seen>, usize) {
    let pods = |number: usize| {
        let born = 11 * SECOND * u32::try_from(number).unwrap();
        let pod = PodSpec::new(number, 4 * HOUR).born_at(born).asks(SDKS[number % 7], 400 * SECOND / 1000);
        match fails {
            Some(reply) if number.is_multiple_of(3) => pod.fails(reply),
            _ => pod,
        }
    };
    let fleet: Arc<Fleet> = Fleet::new((0..60).map(pods));
    let eks_auth = EksAuth::new(&fleet, LATENCY);
    let mut seen = run(&Ours::new(&eks_auth, limits(1)), &fleet).await;
    let failing: Vec<&PodSpec> = fleet.pods.values().filter(|pod| pod.fails.is_some()).collect();
    for pod in &failing {
        audit(&fleet, pod, &limits(1), pod.born, &eks_auth.calls(pod.uid()));
    }
    seen.retain(|pod, _| !fleet.pods[pod].number.is_multiple_of(3));
    (seen, failing.iter().map(|pod| eks_auth.calls(pod.uid()).len()).sum())
}

#[tokio::test(start_paused = true)]
async fn a_third_that_always_fails_changes_nothing_for_the_others() {
    let (undisturbed, none) = with_a_third_that(None).await;
    assert!(none == 0 && undisturbed.len() == 40);
    for reply in [Reply::Refused, Reply::Down] {
        let (seen, calls) = with_a_third_that(Some(reply)).await;
        assert!(calls > 20 * 100, "{calls} failed calls");
        for (pod, seen) in seen {
            let waits = |seen: &Seen| (seen.served, seen.failed, seen.longest_request, seen.longest_wait);
            assert_eq!(waits(&seen), waits(&undisturbed[&pod]), "{pod} beside pods that are answered {reply:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_longer_than_a_tokens_life_ends_what_expires_and_nothing_else() {
    let down = Spell::new(10 * HOUR, 26 * HOUR, Fault::Down);
    let pod = PodSpec::new(0, 40 * HOUR).asks(super::sdks::Sdk::CommandLine { every: MINUTE }, SECOND);
    let fleet = Fleet::with([pod], &[down]);
    let eks_auth = EksAuth::new(&fleet, LATENCY);
    let ours = Ours::new(&eks_auth, limits(1));
    let seen = run(&ours, &fleet).await[&pod.uid()].clone();
    let calls = eks_auth.calls(pod.uid());
    let last = calls.iter().take_while(|call| call.at < down.from).last().unwrap();
    let dark = down.to - (last.at + pod.life);
    assert_eq!(seen.expired, 0);
    assert!(seen.longest_wait + MINUTE >= dark && seen.longest_wait < dark + 2 * MINUTE, "{dark:?} {seen:?}");
    audit(&fleet, &pod, &limits(1), Duration::ZERO, &calls);
}

#[tokio::test(start_paused = true)]
async fn a_dead_eks_auth_sees_each_pod_once_and_then_thirteen_calls_a_second_however_many_pods_there_are() {
    let pods = |number| PodSpec::new(number, 3 * MINUTE).asks(SDKS[0], 20 * SECOND);
    let fleet = Fleet::with((0..1000).map(pods), &[Spell::new(Duration::ZERO, HOUR, Fault::Down)]);
    let eks_auth = EksAuth::new(&fleet, LATENCY);
    run(&Ours::new(&eks_auth, limits(1)), &fleet).await;
    let most = 1000 + (3 + 10) * (180 + 1);
    let calls = eks_auth.total();
    assert!(2000 < calls && calls <= most, "{calls} calls, at most {most}");
}

#[tokio::test(start_paused = true)]
async fn while_eks_auth_throttles_one_call_is_made_after_each_pause_and_the_pauses_grow() {
    let storm = Spell::new(Duration::ZERO, 10 * MINUTE, Fault::Throttles { above: 0 });
    let fleet = Fleet::with((0..300).map(|number| PodSpec::new(number, 10 * MINUTE)), &[storm]);
    let eks_auth = EksAuth::new(&fleet, LATENCY);
    run(&Ours::new(&eks_auth, limits(1)), &fleet).await;
    // Three at once, then pauses of at least 0.5, 1, 2, 4, 8, 15, 15 … seconds, and what the halved limit lets in after the
    // first of them: three for each second of the pause before.
    let (calls, most) = (eks_auth.total(), 3 + 6 * 3 + (600 - 15) / 15);
    assert!(20 < calls && calls <= most, "{calls} calls, at most {most}");
}
