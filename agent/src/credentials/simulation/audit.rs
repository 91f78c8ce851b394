//! Holds EKS Auth's log of one pod's calls against the rules of [`super`], call by call: none may come early, and none
//! late. All it knows is the log, the table of pods and the seed.
use std::time::Duration;

use super::{
    MINUTE, SECOND,
    eks_auth::{Call, Reply},
    fleet::{Fleet, PodSpec},
    formula::longest_period,
};
use crate::credentials::{engine::Limits, policy::jitter_seed};

/// A refusal of a known token holds for this long, unless its back-off ends before and nobody has to wait for it.
const REFUSAL_HOLDS: Duration = Duration::from_secs(5);

/// After a call: when the next may come, and when it must have come.
struct Next {
    earliest: Duration,
    due: Option<Duration>,
}

/// Panics at the first call that is early, or that did not come. `began` is when this agent met the pod.
pub(super) fn audit(fleet: &Fleet, pod: &PodSpec, limits: &Limits, began: Duration, calls: &[Call]) {
    let mut jitter = fastrand::Rng::with_seed(jitter_seed(limits.seed, pod.uid()));
    let mut next = Next { earliest: began, due: Some(began) };
    // Renewals are of something valid; what came after its end is a prefetch again, or what a client asked for.
    let (mut failures, mut renewals, mut expires_at) = (0, 0, Duration::ZERO);
    for (number, call) in calls.iter().enumerate() {
        let told = || format!("call {number} of {pod:?} at {:?}\n{calls:#?}", call.at);
        assert!(call.at >= next.earliest, "early by {:?}: {}", next.earliest - call.at, told());
        late(fleet, pod, &next, call.at, told);
        let Some(ended) = call.ended else {
            assert_eq!(number + 1, calls.len(), "given up before the end of the pod: {}", told());
            return;
        };
        let jitter = jitter.f64();
        if call.reply == Reply::Granted {
            (failures, renewals) = (0, renewals + usize::from(ended < expires_at));
            expires_at = call.at + pod.life;
            let period = longest_period(expires_at - ended, limits.longest_retention);
            let due = ended + period.mul_f64(1.0 - 0.1 * jitter);
            // Nobody has asked by then: the pod's own request is what fetches.
            let used = renewals == 0 || pod.first_ask().is_some_and(|first| first < due);
            next = Next { earliest: due, due: used.then_some(due) };
            if !used {
                next.earliest = pod.first_ask().unwrap_or(pod.ends);
            }
        } else {
            failures += 1;
            let back_off = (SECOND * (1 << (failures - 1).min(16))).min(30 * SECOND).mul_f64(1.0 + 0.1 * jitter);
            let held = if call.reply == Reply::Refused { back_off.min(REFUSAL_HOLDS) } else { back_off };
            // A client that has nothing comes again after half a minute. Nobody else is waited for once nothing is valid.
            let asks = pod.first_ask().is_some_and(|first| first < ended);
            next = Next {
                earliest: ended + held,
                due: (asks || ended + back_off < expires_at).then_some(ended + back_off + MINUTE),
            };
        }
    }
    let end = pod.ends;
    late(fleet, pod, &next, end, || format!("{} calls of {pod:?} until its end\n{calls:#?}", calls.len()));
}

/// Nothing is late before the longest queue has passed, and that counts from the end of a spell.
fn late(fleet: &Fleet, pod: &PodSpec, next: &Next, at: Duration, told: impl Fn() -> String) {
    let Some(due) = next.due else { return };
    let mut allowed = due + fleet.longest_queue();
    for spell in &fleet.spells {
        if spell.from < allowed && due < spell.to + fleet.longest_queue() {
            allowed = allowed.max(spell.to + fleet.longest_queue());
        }
    }
    assert!(at <= allowed.min(pod.ends), "late by {:?}: {}", at - allowed.min(pod.ends), told());
}
