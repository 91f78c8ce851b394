//! A token bucket that is exact: whole numbers only, nothing is rounded away however often it is asked.
use std::num::NonZeroU32;

use tokio::time::Instant;

/// A token in the unit that the level is kept in: per nanosecond, as many units come in as tokens per second.
const TOKEN: u128 = 1_000_000_000;

/// Holds one second's worth of tokens, and is full at the start. In any time of `t` seconds at most
/// `per_second` × (1 + `t`) tokens are taken, returned ones not counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    per_second: NonZeroU32,
    level: u128,
    /// When `level` was right.
    at: Instant,
}

impl Bucket {
    pub(super) fn new(per_second: NonZeroU32, now: Instant) -> Self {
        Self { per_second, level: capacity(per_second), at: now }
    }

    /// Whether a token can be taken.
    pub(super) fn has_token(&self, now: Instant) -> bool {
        self.level_at(now) >= TOKEN
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let level = self.level_at(now);
        let Some(rest) = level.checked_sub(TOKEN) else {
            return false;
        };
        (self.level, self.at) = (rest, now.max(self.at));
        true
    }

    /// Returns a token that was taken.
    pub(super) fn put_back(&mut self, now: Instant) {
        // What is over the brim is spilt by the next look.
        self.level = self.level_at(now) + TOKEN;
        self.at = now.max(self.at);
    }

    /// When there is a token, to the nanosecond, unless one is taken or put back before.
    pub(super) fn next_at(&self) -> Instant {
        let missing = TOKEN.saturating_sub(self.level);
        let nanoseconds = missing.div_ceil(u128::from(self.per_second.get()));
        // At most a second.
        self.at + std::time::Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn level_at(&self, now: Instant) -> u128 {
        let elapsed = now.saturating_duration_since(self.at).as_nanos();
        // 128 bits: centuries of nanoseconds times the largest rate.
        (self.level + elapsed * u128::from(self.per_second.get())).min(capacity(self.per_second))
    }
}

fn capacity(per_second: NonZeroU32) -> u128 {
    TOKEN * u128::from(per_second.get())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn bucket(per_second: u32, now: Instant) -> Bucket {
        Bucket::new(NonZeroU32::new(per_second).unwrap(), now)
    }

    #[test]
    fn a_day_has_exactly_its_seconds_worth_and_the_first_burst() {
        for per_second in [1, 3, 7] {
            let start = Instant::now();
            let expected = u64::from(per_second) * (86_400 + 1);
            let (mut bucket, mut now, mut taken) = (bucket(per_second, start), start, 0_u64);
            // One that is never empty would be taken from without end.
            while now <= start + DAY && taken <= expected {
                assert!(bucket.take(now));
                taken += 1;
                now = now.max(bucket.next_at());
            }
            assert_eq!(taken, expected, "{per_second}");
        }
    }

    #[test]
    fn a_burst_is_one_seconds_worth_and_the_rest_comes_one_by_one() {
        let start = Instant::now();
        let mut bucket = bucket(4, start);
        assert_eq!((0..9).filter(|_| bucket.take(start)).count(), 4);
        assert_eq!(bucket.next_at(), start + Duration::from_millis(250));
        assert!(!bucket.has_token(start + Duration::from_nanos(249_999_999)));
        assert!(bucket.has_token(start + Duration::from_millis(250)));
        let later = start + DAY;
        assert_eq!((0..9).filter(|_| bucket.take(later)).count(), 4);
    }

    #[test]
    fn a_full_bucket_has_a_token_now_and_holds_no_more_when_one_is_put_back() {
        let start = Instant::now();
        let mut bucket = bucket(2, start);
        assert_eq!(bucket.next_at(), start);
        bucket.put_back(start);
        assert_eq!((0..9).filter(|_| bucket.take(start)).count(), 2);
        bucket.put_back(start);
        assert_eq!((0..9).filter(|_| bucket.take(start)).count(), 1);
        let quarter = start + Duration::from_millis(250);
        bucket.put_back(quarter);
        assert!(bucket.take(quarter) && !bucket.take(quarter));
        assert_eq!(bucket.next_at(), start + Duration::from_millis(500), "half a token was kept");
    }

    #[test]
    fn a_clock_that_stands_or_goes_back_gives_nothing() {
        let start = Instant::now() + DAY;
        let (mut bucket, before) = (bucket(2, start), start.checked_sub(DAY).unwrap());
        assert!(bucket.take(start) && bucket.take(before) && !bucket.take(before) && !bucket.take(start));
        bucket.put_back(before);
        assert!(bucket.take(start) && !bucket.take(start));
        assert_eq!(bucket.next_at(), start + Duration::from_millis(500));
    }

    proptest! {
        /// Held against a list of what was taken: a token is refused exactly when some time that ends now would have
        /// more than its rate and the burst.
        #[test]
        fn a_token_is_there_exactly_when_every_time_span_allows_it(
            per_second in 1_u32..20, gaps in vec(0_u64..400_000_000, 1..200),
        ) {
            let start = Instant::now();
            let (mut bucket, mut now) = (bucket(per_second, start), start);
            let mut taken: Vec<Instant> = Vec::new();
            for gap in gaps {
                now += Duration::from_nanos(gap);
                let allowed = (0..taken.len()).all(|first| {
                    let span = (now - taken[first]).as_nanos();
                    let count = (taken.len() - first + 1) as u128;
                    count * TOKEN <= u128::from(per_second) * (TOKEN + span)
                });
                prop_assert_eq!(bucket.next_at() <= now, allowed);
                prop_assert_eq!(bucket.take(now), allowed);
                if allowed {
                    taken.push(now);
                }
            }
        }
    }
}
