//! When to fetch: pure functions and constants, so that the number of calls can be told beforehand.
use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::{Duration, SystemTime},
};

use crate::{pod_uid::PodUid, refusal::Refusal};

/// Fetched credentials with this much left or less are of no use to any SDK (the official agent's number).
pub const SHORTEST_LIFE: Duration = Duration::from_secs(15);

/// A definite refusal of a token is repeated for this long without asking again: associations propagate late.
pub const REFUSAL_HOLDS: Duration = Duration::from_secs(5);

/// At most one call in this time for tokens of a pod that nothing vouches for.
pub const UNPROVEN_INTERVAL: Duration = Duration::from_secs(10);

/// At most one vain look in this time at the kubelet's file, to see whether an unknown token is in it: any process of a pod
/// can make tokens up, and a look takes the thread that other pods' fetches need.
pub const FILE_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Prefetches that fail are tried this often; after that the pod's own request fetches.
pub const PREFETCH_ATTEMPTS: u32 = 5;

/// Credentials that nobody ever asked for are renewed this often.
pub const UNUSED_RENEWALS: u32 = 1;

/// With the doubling that follows, six calls in the first minute at most.
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(30);
/// Jitter changes a period by up to this share, so that nodes and pods that began together drift apart: renewals come
/// earlier, back-offs last longer.
const JITTER_SHARE: f64 = 0.1;

/// When to renew credentials: at half of their life or after `longest_retention`, whichever is earlier, less jitter.
///
/// `jitter` lies in 0..1. With a life of 6 h a served credential has 3 h left at least, with 59 min 29.5 min: outside
/// of every SDK's refetch window.
#[must_use]
pub fn renew_at(issued_at: SystemTime, expires_at: SystemTime, longest_retention: Duration, jitter: f64) -> SystemTime {
    let life = expires_at.duration_since(issued_at).unwrap_or_default();
    issued_at + (life / 2).min(longest_retention).mul_f64(1.0 - JITTER_SHARE * jitter.clamp(0.0, 1.0))
}

/// How long to leave EKS Auth alone after `failures` failed calls in a row for one pod (1 is the first).
#[must_use]
pub fn back_off(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let period = FIRST_BACK_OFF.saturating_mul(1 << doublings).min(LONGEST_BACK_OFF);
    period.mul_f64(1.0 + JITTER_SHARE * jitter.clamp(0.0, 1.0))
}

/// Where a pod's jitter begins: different for every pod and every start of the agent.
#[must_use]
pub fn jitter_seed(seed: u64, pod: PodUid) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, pod).hash(&mut hasher);
    hasher.finish()
}

/// Whether a failed fetch says something about the token it was made with, rather than about EKS Auth or the node.
#[must_use]
pub fn is_verdict(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::EksAuthRefused(_))
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::UNIX_EPOCH};

    use super::*;
    use crate::refusal::{Outage, UpstreamError};

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn renewal_comes_at_half_of_the_life_less_jitter() {
        let renewal = |life, jitter| renew_at(UNIX_EPOCH, UNIX_EPOCH + life, 24 * HOUR, jitter);
        assert_eq!(renewal(6 * HOUR, 0.0), UNIX_EPOCH + 3 * HOUR);
        assert_eq!(renewal(6 * HOUR, 1.0), UNIX_EPOCH + 3 * HOUR - Duration::from_mins(18));
        assert_eq!(renewal(Duration::from_mins(59), 0.0), UNIX_EPOCH + Duration::from_secs(1770));
    }

    #[test]
    fn retention_caps_the_age() {
        assert_eq!(renew_at(UNIX_EPOCH, UNIX_EPOCH + 6 * HOUR, HOUR, 0.0), UNIX_EPOCH + HOUR);
    }

    #[test]
    fn credentials_that_are_expired_already_are_renewed_at_once() {
        let now = UNIX_EPOCH + HOUR;
        assert_eq!(renew_at(now, UNIX_EPOCH, 24 * HOUR, 0.5), now);
    }

    #[test]
    fn jitter_differs_between_pods_and_between_starts_and_is_the_same_each_time_it_is_told() {
        let pods: Vec<PodUid> = (0..100).map(|n| format!("00000000-0000-4000-8000-{n:012}").parse().unwrap()).collect();
        let seeds = || (0..100).flat_map(|seed| pods.iter().map(move |pod| jitter_seed(seed, *pod)));
        assert!(seeds().eq(seeds()));
        assert_eq!(seeds().collect::<HashSet<_>>().len(), 100 * 100);
    }

    #[test]
    fn only_a_refusal_of_the_pod_is_a_verdict() {
        let denied = UpstreamError::new(400, "id", "AccessDeniedException", "no");
        assert!(is_verdict(&Refusal::EksAuthRefused(denied)));
        for refusal in [
            Refusal::NodeCredentials,
            Refusal::EksAuthThrottled { retry_after: 1 },
            Refusal::EksAuthUnavailable(Outage::Server),
            Refusal::SubjectMismatch,
            Refusal::Expiring,
        ] {
            assert!(!is_verdict(&refusal), "{refusal:?}");
        }
    }

    #[test]
    fn back_off_doubles_up_to_its_cap() {
        let periods: Vec<u64> = (1..=8).map(|n| back_off(n, 0.0).as_secs()).collect();
        assert_eq!(periods, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(back_off(u32::MAX, 0.0), LONGEST_BACK_OFF);
        assert_eq!(back_off(1, 1.0), Duration::from_millis(1100));
    }
}
