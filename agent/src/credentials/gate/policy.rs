//! How many calls at once: additive increase, multiplicative decrease, with a pause after each decrease.
use std::{num::NonZeroU32, time::Duration};

use tokio::time::Instant;

/// Calls for failing pods per second, answered ones not counted. Each pod leaves 30 s between its failing calls, so 300
/// failing pods stay below it, and a node has 110 to 250 pods. With more, a dead EKS Auth still sees no more than this.
pub(super) const RETRIES_PER_SECOND: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);

/// The pause after a first cut: the time in which the rates of AWS's control planes are counted and refilled.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Clients that wait are told to come back every second, so a longer pause would cost more than it spares.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Pauses are shortened by up to this share: nodes that were throttled together come back apart.
const JITTER_SHARE: f64 = 0.5;
/// A cut says nothing about now when nobody was throttled for so long: ten of the longest pauses.
const CUT_HOLDS: Duration = Duration::from_mins(5);

/// How long nobody is admitted after `cuts` in a row (1 is the first) that no answer came between. `jitter` lies in 0..1.
fn pause(cuts: u32, jitter: f64) -> Duration {
    let doublings = cuts.saturating_sub(1).min(16);
    let longest = FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
    longest.mul_f64(1.0 - JITTER_SHARE * jitter.clamp(0.0, 1.0))
}

/// Places that calls other than the first for a waiting client may fill: the other half stays free for that one, even
/// when every call for a failing pod hangs until its timeout.
pub(super) fn places_for_others(limit: usize) -> usize {
    limit.div_ceil(2)
}

/// How many calls may be under way, and whether any may begin.
#[derive(Debug)]
pub(super) struct Pace {
    most: usize,
    limit: usize,
    /// Answers since the limit last changed.
    answers: usize,
    /// Counts the cuts, so that a call knows which it was admitted before.
    epoch: u64,
    cut: Option<Cut>,
}

/// The last cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    at: Instant,
    paused_until: Instant,
    /// Cuts up to this one with no answer between; 0 once there was one.
    in_a_row: u32,
}

impl Pace {
    pub(super) fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { most, limit: most, answers: 0, epoch: 0, cut: None }
    }

    /// Calls that may be under way.
    pub(super) fn limit(&self, now: Instant) -> usize {
        if self.last_cut(now).is_some() { self.limit } else { self.most }
    }

    /// Until when no call may begin, if one may not begin now.
    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.last_cut(now).map(|cut| cut.paused_until).filter(|until| now < *until)
    }

    /// What a call that begins now says when it ends.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A call of `epoch` was throttled. Calls that were under way together are throttled together, which is one event:
    /// only the first of them cuts.
    pub(super) fn throttled(&mut self, epoch: u64, now: Instant, jitter: f64) {
        if epoch != self.epoch {
            return;
        }
        let in_a_row = self.last_cut(now).map_or(0, |cut| cut.in_a_row).saturating_add(1);
        self.limit = (self.limit(now) / 2).max(1);
        self.answers = 0;
        self.epoch += 1;
        self.cut = Some(Cut { at: now, paused_until: now + pause(in_a_row, jitter), in_a_row });
    }

    /// A call of `epoch` was answered. As many answers as calls fit at once raise the limit by one, so from `a` to `b` it
    /// takes (b(b−1) − a(a−1)) ÷ 2. Those of calls from before the cut say nothing about the time after it.
    pub(super) fn answered(&mut self, epoch: u64) {
        if epoch != self.epoch {
            return;
        }
        if let Some(cut) = &mut self.cut {
            cut.in_a_row = 0;
        }
        self.answers += 1;
        if self.answers >= self.limit {
            self.limit = self.most.min(self.limit + 1);
            self.answers = 0;
        }
    }

    fn last_cut(&self, now: Instant) -> Option<Cut> {
        self.cut.filter(|cut| now < cut.at + CUT_HOLDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_their_cap_and_jitter_shortens_them() {
        let pauses: Vec<u64> = (1..=8).map(|cuts| pause(cuts, 0.0).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(pause(u32::MAX, 0.0), LONGEST_PAUSE);
        assert_eq!((pause(1, 0.5), pause(1, 1.0)), (SECOND * 3 / 4, SECOND / 2));
        assert_eq!((pause(6, 1.0), pause(1, 7.0)), (LONGEST_PAUSE / 2, SECOND / 2));
    }

    #[test]
    fn half_of_the_places_and_never_none_is_for_others() {
        let places: Vec<usize> = [1, 2, 3, 4, 64].into_iter().map(places_for_others).collect();
        assert_eq!(places, [1, 1, 2, 2, 32]);
    }

    #[test]
    fn cuts_halve_down_to_one_and_pause_longer_each_time() {
        let (mut pace, mut now) = (Pace::new(64), Instant::now());
        let mut seen = Vec::new();
        for _ in 0..8 {
            pace.throttled(pace.epoch(), now, 0.0);
            let until = pace.paused_until(now).unwrap();
            seen.push((pace.limit(now), (until - now).as_secs()));
            assert!(pace.paused_until(until - Duration::from_nanos(1)).is_some());
            assert_eq!(pace.paused_until(until), None);
            now = until;
        }
        assert_eq!(seen, [(32, 1), (16, 2), (8, 4), (4, 8), (2, 16), (1, 30), (1, 30), (1, 30)]);
    }

    #[test]
    fn calls_that_are_throttled_together_cut_once() {
        let (mut pace, now) = (Pace::new(64), Instant::now());
        let epoch = pace.epoch();
        for _ in 0..64 {
            pace.throttled(epoch, now, 0.0);
        }
        assert_eq!((pace.limit(now), pace.paused_until(now)), (32, Some(now + SECOND)));
        assert_ne!(pace.epoch(), epoch);
    }

    #[test]
    fn answers_raise_by_one_for_each_round() {
        let (mut pace, now) = (Pace::new(64), Instant::now());
        (0..6).for_each(|_| pace.throttled(pace.epoch(), now, 0.0));
        let mut limits = Vec::new();
        for _ in 0..7 {
            pace.answered(pace.epoch());
            limits.push(pace.limit(now));
        }
        assert_eq!(limits, [2, 2, 3, 3, 3, 4, 4]);
        (7..2015).for_each(|_| pace.answered(pace.epoch()));
        assert_eq!(pace.limit(now), 63);
        pace.answered(pace.epoch());
        assert_eq!(pace.limit(now), 64);
        (0..200).for_each(|_| pace.answered(pace.epoch()));
        assert_eq!(pace.limit(now), 64);
    }

    #[test]
    fn an_answer_ends_the_doubling_but_not_the_pause() {
        let (mut pace, now) = (Pace::new(64), Instant::now());
        (0..3).for_each(|_| pace.throttled(pace.epoch(), now, 0.0));
        assert_eq!(pace.paused_until(now), Some(now + 4 * SECOND));
        pace.answered(pace.epoch());
        assert_eq!(pace.paused_until(now), Some(now + 4 * SECOND));
        pace.throttled(pace.epoch(), now, 0.0);
        assert_eq!((pace.limit(now), pace.paused_until(now)), (4, Some(now + SECOND)));
    }

    #[test]
    fn a_cut_starts_the_count_of_answers_anew() {
        let (mut pace, now) = (Pace::new(8), Instant::now());
        pace.throttled(pace.epoch(), now, 0.0);
        (0..3).for_each(|_| pace.answered(pace.epoch()));
        pace.throttled(pace.epoch(), now, 0.0);
        pace.answered(pace.epoch());
        assert_eq!(pace.limit(now), 2);
        pace.answered(pace.epoch());
        assert_eq!(pace.limit(now), 3);
    }

    #[test]
    fn answers_of_calls_from_before_the_cut_change_nothing() {
        let (mut pace, now) = (Pace::new(2), Instant::now());
        let before = pace.epoch();
        pace.throttled(before, now, 0.0);
        (0..9).for_each(|_| pace.answered(before));
        assert_eq!(pace.limit(now), 1);
        pace.throttled(pace.epoch(), now, 0.0);
        assert_eq!(pace.paused_until(now), Some(now + 2 * SECOND), "still in a row");
    }

    #[test]
    fn a_cut_is_forgotten_after_five_minutes() {
        let (mut pace, now) = (Pace::new(64), Instant::now());
        (0..4).for_each(|_| pace.throttled(pace.epoch(), now, 0.0));
        let then = now + CUT_HOLDS;
        assert_eq!((pace.limit(then - Duration::from_nanos(1)), pace.limit(then)), (4, 64));
        pace.answered(pace.epoch());
        assert_eq!(pace.limit(then), 64);
        pace.throttled(pace.epoch(), then, 0.0);
        assert_eq!((pace.limit(then), pace.paused_until(then)), (32, Some(then + SECOND)));
    }

    #[test]
    fn there_is_always_a_place() {
        assert_eq!(Pace::new(0).limit(Instant::now()), 1);
    }
}
