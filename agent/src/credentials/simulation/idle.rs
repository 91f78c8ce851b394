//! Pods that nobody expects, and tokens that come before their word: what is done without being asked stays within bounds.
use std::time::Duration;

use super::{
    DAY, HOUR, LATENCY, MINUTE, SECOND,
    audit::audit,
    eks_auth::{EksAuth, Fault, Spell},
    fleet::{Fleet, PodSpec, ROTATION},
    formula::{Bounds, failures_within},
    node::{Agent, Ours, Seen, limits, run},
    sdks::Sdk,
};

async fn one(pod: PodSpec) -> (usize, Seen) {
    let fleet = Fleet::new([pod]);
    let eks_auth = EksAuth::new(&fleet, LATENCY);
    let seen = run(&Ours::new(&eks_auth, limits(1)), &fleet).await;
    (eks_auth.calls(pod.uid()).len(), seen[&pod.uid()].clone())
}

#[tokio::test(start_paused = true)]
async fn prefetched_and_never_asked_for_is_two_calls_however_often_the_token_rotates() {
    let (calls, _) = one(PodSpec::new(0, 10 * DAY)).await;
    assert_eq!(calls, 2);
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_for_the_first_time_after_the_only_renewal_gets_credentials_that_last() {
    // The renewal is due after 2.7 to 3 h, the next one would be after 5.4 to 6 h, the end of the life after 8.7 to 9 h.
    for minutes in (1..12 * 60).step_by(17) {
        let (_, seen) =
            one(PodSpec::new(minutes, 12 * HOUR).asks(Sdk::Go, u32::try_from(minutes).unwrap() * MINUTE)).await;
        assert_eq!((seen.failed, seen.expired, seen.short), (0, 0, 0), "first asked after {minutes} min: {seen:?}");
    }
}

/// The kubelet has written a new token, and the word of it is not there yet, or has been lost.
#[tokio::test(start_paused = true)]
async fn a_renewal_with_a_token_that_was_not_told_of_backs_off_as_any_other() {
    let down = Spell::new(ROTATION, 3 * HOUR, Fault::Down);
    let pod = PodSpec::new(0, ROTATION + 4 * HOUR).asks(Sdk::Cpp, SECOND);
    let fleet = Fleet::with([pod], &[down]);
    let eks_auth = EksAuth::new(&fleet, LATENCY);
    let ours = Ours::new(&eks_auth, limits(1));
    ours.appeared(pod.uid());
    ours.ask(pod.uid(), fleet.token(pod.uid())).await.unwrap();
    fleet.until(pod.ends).await;
    let calls = eks_auth.calls(pod.uid());
    let most = Bounds::of(&pod, &limits(1), LATENCY, Duration::ZERO, &fleet.spells).most;
    assert!(calls.len() <= most, "{} calls, at most {most}, {} of them failed", calls.len(), failures_within(3 * HOUR));
    audit(&fleet, &pod, &limits(1), Duration::ZERO, &calls);
}
