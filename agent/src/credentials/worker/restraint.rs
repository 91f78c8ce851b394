//! What holds a pod's calls to EKS Auth back: refusals that are remembered, a back-off after failures, and the interval
//! between calls for tokens that nothing vouches for.
use std::collections::VecDeque;

use tokio::time::Instant;

use super::super::{gate::Priority, policy};
use crate::{refusal::Refusal, token::TokenDigest};

/// Refused tokens that are remembered: more than a pod has in good faith.
const VERDICTS: usize = 4;

/// What EKS Auth said about a token that it refused.
struct Verdict {
    digest: TokenDigest,
    refusal: Refusal,
    holds_until: Instant,
}

/// Why EKS Auth is left alone for a while.
struct BackOff {
    until: Instant,
    refusal: Refusal,
}

/// What is known about a pod's failed calls.
pub(super) struct Restraint {
    /// At most `VERDICTS`, oldest first.
    verdicts: VecDeque<Verdict>,
    back_off: Option<BackOff>,
    /// Failed calls in a row.
    failures: u32,
    /// Times in a row that a call which nobody asked for had no token to be made with.
    without_token: u32,
    /// When a token that nothing vouches for may be shown to EKS Auth again.
    unproven_after: Instant,
    /// When the kubelet's file may be looked at again for such a token.
    look_after: Instant,
}

impl Restraint {
    /// Nothing has failed yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            verdicts: VecDeque::new(),
            back_off: None,
            failures: 0,
            without_token: 0,
            unproven_after: now,
            look_after: now,
        }
    }

    /// Why this token is not shown to EKS Auth now. `proven` is a token that EKS Auth accepted or the kubelet wrote.
    pub(super) fn objection(&self, digest: &TokenDigest, proven: bool, now: Instant) -> Option<Refusal> {
        if let Some(verdict) = self.verdicts.iter().find(|v| v.digest == *digest && now < v.holds_until) {
            return Some(verdict.refusal.clone());
        }
        if let Some(back_off) = self.back_off.as_ref().filter(|b| now < b.until) {
            return Some(back_off.refusal.clone().retry_after_at_least(back_off.until - now));
        }
        (!proven && now < self.unproven_after).then_some(Refusal::PodLimit)
    }

    /// Whether the kubelet's file may be looked at for a token that is not known.
    pub(super) fn may_look_into_file(&self, now: Instant) -> bool {
        now >= self.look_after
    }

    /// The kubelet's file held another token than the one that was looked for.
    pub(super) fn looked_in_vain(&mut self, now: Instant) {
        self.look_after = now + policy::FILE_LOOK_INTERVAL;
    }

    /// How urgent a call is that a client waits for. The gate slows everybody down when EKS Auth throttles; only what
    /// failed by itself stands behind.
    pub(super) fn priority(&self) -> Priority {
        let throttled = self.back_off.as_ref().is_some_and(|b| matches!(b.refusal, Refusal::EksAuthThrottled { .. }));
        if self.failures == 0 || throttled { Priority::Waiting } else { Priority::Retry }
    }

    /// EKS Auth gave credentials for this token.
    pub(super) fn answered(&mut self, digest: &TokenDigest) {
        (self.failures, self.without_token, self.back_off) = (0, 0, None);
        self.verdicts.retain(|verdict| verdict.digest != *digest);
    }

    /// EKS Auth was asked about a token that nothing vouches for.
    pub(super) fn spent_on_unproven(&mut self, now: Instant) {
        self.unproven_after = now + policy::UNPROVEN_INTERVAL;
    }

    /// EKS Auth refused this token for a reason of the pod's own.
    pub(super) fn refused(&mut self, digest: TokenDigest, proven: bool, refusal: &Refusal, now: Instant) {
        // A token that nothing vouches for may not be asked about any sooner: until then the answer stays the same.
        let holds_until = now + if proven { policy::REFUSAL_HOLDS } else { policy::UNPROVEN_INTERVAL };
        self.verdicts.retain(|old| old.digest != digest);
        if self.verdicts.len() >= VERDICTS {
            self.verdicts.pop_front();
        }
        self.verdicts.push_back(Verdict { digest, refusal: refusal.clone(), holds_until });
    }

    /// A call brought no credentials. Tells until when the next one that nobody asks for is to wait.
    pub(super) fn failed(&mut self, refusal: &Refusal, jitter: f64, now: Instant) -> Instant {
        self.failures = self.failures.saturating_add(1);
        let until = now + policy::back_off(self.failures, jitter);
        if !policy::is_verdict(refusal) {
            self.back_off = Some(BackOff { until, refusal: refusal.clone() });
        }
        until
    }

    /// There was no token for a call that nobody asked for, or it could not be read. Tells until when to wait. No call has
    /// failed, so a client's own is none the less urgent.
    pub(super) fn without_token(&mut self, jitter: f64, now: Instant) -> Instant {
        self.without_token = self.without_token.saturating_add(1);
        now + policy::back_off(self.without_token, jitter)
    }

    /// An operator knows better: nothing is held back.
    pub(super) fn lift(&mut self, now: Instant) {
        *self = Self::new(now);
    }
}

#[cfg(test)]
mod tests;
