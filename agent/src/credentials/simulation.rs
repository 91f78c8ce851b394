//! Days of virtual time with the real engine, its workers and its gate, and what they cost and serve.
//!
//! # How often EKS Auth is asked
//!
//! A pod lives from `b`, when its token file appears, to `e`. Its credentials live `L`, a call takes `ℓ`, credentials are
//! kept for `R` at most (`--max-credential-retention-before-renewal`), background calls are `r` a second
//! (`--max-service-qps`). Call `k` begins at `s(k)`, and the pod costs
//!
//! ```text
//! calls   = the number of k ≥ 1 with s(k) < e
//! s(1)    = b + q(1)                                 or the pod's first request, if that is earlier
//! s(k+1)  = s(k) + ℓ + p(k) + q(k+1)
//! p(k)    = min((L − ℓ) / 2, R) × (1 − u(k) / 10)
//! ```
//!
//! where `u(k)` in 0..1 is the `k`-th number of the pod's jitter, which follows from the agent's seed and the pod's UID
//! ([`super::policy::jitter_seed`]), and `q` is the wait at the gate: zero while fewer than `r` background calls are due in a
//! second, and never more than (pods) ÷ `r`. A pod that has not asked by the time of its third call is not called for any
//! more: its first request makes that call, with `q` = 0, and what follows is the same.
//!
//! Without the seed, with `P = min((L − ℓ) / 2, R)` and `T = e − b`:
//!
//! ```text
//! T ÷ (P + ℓ + q)  ≤  calls  ≤  1 + T ÷ (0.9 P + ℓ)
//! ```
//!
//! **Failures.** The `n`-th failed call in a row holds the next one back by `min(2ⁿ⁻¹, 30) s × (1 + u / 10)`, with `u` from
//! the same jitter, and moves what follows; a refusal of the pod itself holds its clients back for 5 s instead. So in a
//! spell of `D` without answers a pod makes at most `f(D)` = 1, 2, 3, 4, 5, 6, 7 … calls for `D` > 0, 1, 3, 7, 15, 31, 61 …
//! seconds (and 2 a minute from then on), and all pods together at most 10 (for clients) + `r` a second beyond each pod's
//! first. Above, that is `f(D)` more calls, and below it is a life shorter by `D` and the queue after it.
//!
//! **Besides**: a new agent begins anew at its start, which costs one call for each pod. A token that the kubelet wrote
//! costs nothing; where its files cannot be read, each rotation costs one call, from which on the sequence goes on anew.
//! Other tokens cost one call in 10 s at most, each flush and each eviction one.
//!
//! [`formula`] computes this from the table of pods and the seed, never from the engine's state; [`audit`] holds each
//! call in EKS Auth's log against the rule for the one before. [`official`] is the same node under the official agent's
//! rules.
#![expect(clippy::unchecked_time_subtraction, reason = "a test that would go below zero fails")]
use std::time::Duration;

mod audit;
mod calm;
mod eks_auth;
mod fleet;
mod formula;
mod idle;
mod node;
mod official;
mod races;
mod schedules;
mod sdks;
mod storms;
mod table;
mod threads;
mod windows;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
/// The life of credentials of a role.
const SIX_HOURS: Duration = Duration::from_hours(6);
/// The life of credentials of a target role, which another role assumes.
const FIFTY_NINE_MINUTES: Duration = Duration::from_mins(59);
/// What a call to EKS Auth takes, of those that nothing is wrong with.
const LATENCY: Duration = Duration::from_millis(60);

/// Pods of the simulations that say so: all of them if the long forms of tests were asked for.
fn pods_of(full: usize, short: usize) -> usize {
    let asked = std::env::var("POD_IDENTITY_TEST_SIZE").is_ok_and(|size| size == "full");
    let pods = if asked { full } else { short };
    println!("{pods} pods ({full} with POD_IDENTITY_TEST_SIZE=full)");
    pods
}
