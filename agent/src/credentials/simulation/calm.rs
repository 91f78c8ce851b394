//! Nothing is wrong: the number of calls is the formula's, for every pod.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    DAY, FIFTY_NINE_MINUTES, HOUR, LATENCY, MINUTE, SECOND, SIX_HOURS,
    audit::audit,
    eks_auth::EksAuth,
    fleet::{Fleet, PodSpec, ROTATION},
    formula::{Bounds, Periods, calls_of_all, calls_without_queue},
    node::{Ours, Seen, limits, run},
    pods_of,
    sdks::{SDKS, Sdk},
};
use crate::{credentials::engine::Limits, pod_uid::PodUid};

/// A node's mixture: each SDK, jobs of the command line, pods that ask late and pods that never do; a quarter with a target
/// role, a tenth replaced every few hours.
pub(super) fn mixture(pods: usize, until: Duration, spread: Duration, seed: u64) -> Vec<PodSpec> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut millis = |most: Duration| Duration::from_millis(random.u64(1..=u64::try_from(most.as_millis()).unwrap()));
    let mut fleet = Vec::new();
    for place in 0..pods {
        let life = if place % 4 == 3 { FIFTY_NINE_MINUTES } else { SIX_HOURS };
        let mut born = millis(spread);
        while born < until {
            let ends = if place % 10 == 9 { (born + HOUR + millis(12 * HOUR)).min(until) } else { until };
            let pod = PodSpec::new(fleet.len(), ends).born_at(born).life(life);
            fleet.push(match place % 16 {
                0 | 9 => pod,
                2 => pod.asks(Sdk::CommandLine { every: HOUR }, 400 * SECOND / 1000),
                4 | 15 => pod.asks(SDKS[place % 7], millis(30 * HOUR)),
                kind if kind == 6 && place % 64 < 16 => pod.asks(Sdk::Cpp, SECOND),
                kind => pod.asks(SDKS[kind % 6], 300 * SECOND / 1000 + millis(SECOND)),
            });
            born = ends + SECOND + millis(MINUTE);
        }
    }
    fleet
}

async fn live(pods: Vec<PodSpec>, limits: Limits) -> (Arc<Fleet>, EksAuth, BTreeMap<PodUid, Seen>) {
    let fleet = Fleet::new(pods);
    let eks_auth = EksAuth::new(&fleet, LATENCY);
    let ours = Ours::new(&eks_auth, limits);
    let seen = run(&ours, &fleet).await;
    assert!(eks_auth.most_in_flight() <= 1);
    (fleet, eks_auth, seen)
}

/// Nobody fails, nothing expired or short is served, no answer takes longer than a call, no SDK asks again at once.
fn assert_served_well(seen: &BTreeMap<PodUid, Seen>) {
    for (pod, seen) in seen {
        let bad = seen.failed + seen.expired + seen.short + seen.multiplied;
        assert!(bad == 0 && seen.longest_request <= LATENCY, "{pod}: {seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn three_days_of_a_full_node_cost_what_the_formula_says() {
    let (limits, began) = (limits(1), std::time::Instant::now());
    let (fleet, eks_auth, seen) = live(mixture(pods_of(2000, 2000), 3 * DAY, HOUR, 7), limits).await;
    let formula = calls_of_all(fleet.pods.values(), &limits, LATENCY);
    let mut wrong = Vec::new();
    for (pod, spec) in &fleet.pods {
        let calls = eks_auth.calls(*pod);
        audit(&fleet, spec, &limits, spec.born, &calls);
        if calls.iter().map(|c| c.at).collect::<Vec<_>>() != formula[pod] {
            wrong.push((spec, calls.len(), formula[pod].len()));
        }
    }
    println!(
        "{} pods in 3 days: {} calls, {:?}, {:?}",
        fleet.pods.len(),
        eks_auth.total(),
        Seen::of_all(seen.values()),
        began.elapsed()
    );
    assert!(wrong.is_empty(), "{} pods, as (pod, calls, formula): {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    assert_served_well(&seen);
}

#[tokio::test(start_paused = true)]
async fn pods_whose_calls_never_queue_cost_the_closed_formula_and_lie_between_its_bounds() {
    // A longer and a shorter retention than half of the life, and none of the calls near another.
    for longest_retention in [HOUR, 3 * HOUR, DAY] {
        let limits = Limits { longest_retention, ..limits(longest_retention.as_secs()) };
        let alone = |number: usize| {
            let pod = PodSpec::new(number, 3 * DAY - 7 * MINUTE * u32::try_from(number).unwrap());
            let pod = pod.born_at(20 * SECOND * u32::try_from(number).unwrap());
            let pod = if number.is_multiple_of(2) { pod.life(FIFTY_NINE_MINUTES) } else { pod };
            if number.is_multiple_of(5) { pod } else { pod.asks(SDKS[number % 7], SECOND) }
        };
        let (fleet, eks_auth, seen) = live((0..40).map(alone).collect(), limits).await;
        for (pod, spec) in &fleet.pods {
            let calls = eks_auth.calls(*pod).len();
            assert_eq!(calls, calls_without_queue(spec, &limits, LATENCY), "{spec:?}");
            if spec.asks.is_some() {
                let bounds = Bounds::of(spec, &limits, LATENCY, Duration::ZERO, &[]);
                assert!(bounds.least <= calls && calls <= bounds.most, "{calls} calls, {bounds:?}, {spec:?}");
            }
        }
        assert_served_well(&seen);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_all_at_once_costs_what_the_formula_says() {
    // The prefetches queue for a minute and more; who asks meanwhile does not.
    let pods = |number: usize| {
        let pod =
            PodSpec::new(number, 12 * HOUR).asks(SDKS[number % 7], 997 * SECOND * u32::try_from(number).unwrap() / 700);
        if number.is_multiple_of(3) { pod.life(FIFTY_NINE_MINUTES) } else { pod }
    };
    let limits = limits(3);
    let (fleet, eks_auth, seen) = live((0..250).map(pods).collect(), limits).await;
    let formula = calls_of_all(fleet.pods.values(), &limits, LATENCY);
    for pod in fleet.pods.keys() {
        assert_eq!(eks_auth.calls(*pod).iter().map(|call| call.at).collect::<Vec<_>>(), formula[pod], "{pod}");
    }
    assert_served_well(&seen);
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_costs_one_call_for_each_pod() {
    const RESTART: Duration = Duration::from_hours(30);
    let fleet = Fleet::new(mixture(300, 2 * DAY, HOUR, 11));
    let eks_auth = EksAuth::new(&fleet, LATENCY);
    let ours = Ours::new(&eks_auth, limits(1));
    let restart = async {
        fleet.until(RESTART).await;
        ours.restart(2);
    };
    let (seen, ()) = tokio::join!(run(&ours, &fleet), restart);
    let mut alive = 0;
    for (pod, spec) in fleet.pods.iter().filter(|(_, spec)| spec.born < RESTART && RESTART + HOUR / 3 < spec.ends) {
        let calls = eks_auth.calls(*pod);
        let until = RESTART + HOUR / 3;
        assert_eq!(calls.iter().filter(|call| RESTART <= call.at && call.at < until).count(), 1, "{spec:?} {calls:?}");
        alive += 1;
    }
    assert!(alive > 290);
    // Requests that came while there was nothing yet have waited for a call, and no more.
    assert_served_well(&seen);
}

/// The kubelet's files cannot be read: a token is known only once a client has shown it, and EKS Auth has accepted it.
#[tokio::test(start_paused = true)]
async fn without_the_kubelets_files_a_rotation_costs_one_call() {
    let pods = |number: usize| PodSpec::new(number, 4 * DAY).asks(SDKS[number % 7], SECOND);
    let fleet = Fleet::new((0..28).map(pods));
    fleet.set_readable(false);
    let eks_auth = EksAuth::new(&fleet, LATENCY);
    let limits = limits(5);
    let seen = run(&Ours::new(&eks_auth, limits), &fleet).await;
    for (pod, spec) in &fleet.pods {
        let (calls, bounds) = (eks_auth.calls(*pod).len(), Bounds::of(spec, &limits, LATENCY, Duration::ZERO, &[]));
        let most = bounds.most + usize::try_from(spec.ends.as_secs() / ROTATION.as_secs()).unwrap();
        assert!(bounds.least <= calls && calls <= most, "{calls} calls, {} to {most}, {spec:?}", bounds.least);
    }
    assert_served_well(&seen);
}

#[test]
fn pods_and_agents_that_begin_together_drift_apart() {
    let first_period = |number, seed| Periods::new(&PodSpec::new(number, DAY), &limits(seed), LATENCY).next();
    let of_pods: BTreeSet<Duration> = (0..100).map(|number| first_period(number, 1)).collect();
    let of_agents: BTreeSet<Duration> = (0..100).map(|seed| first_period(0, seed)).collect();
    assert_eq!((of_pods.len(), of_agents.len()), (100, 100));
    let spread = |periods: &BTreeSet<Duration>| *periods.last().unwrap() - *periods.first().unwrap();
    assert!(spread(&of_pods) > 15 * MINUTE && spread(&of_agents) > 15 * MINUTE);
}
