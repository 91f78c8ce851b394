//! How often one pod may make the log speak.
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Grants log lines by key: a burst, then one per interval. What is not logged is counted, and the count comes with the
/// next line that is.
///
/// Metrics count every refusal; this is for the log, in which one pod in a retry loop must not hide all others.
#[derive(Debug)]
pub struct RateLimiter<K> {
    burst: u32,
    interval: Duration,
    capacity: usize,
    buckets: HashMap<K, Bucket>,
    /// Shared by all keys that come when no more can be remembered.
    overflow: Bucket,
    swept_at: Option<Instant>,
}

/// Whether a line may be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may; so many before it were not.
    Log {
        /// Lines of this key that were not logged since the last one that was.
        suppressed: u64,
    },
    /// It may not.
    Suppress,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// When the bucket will be full again. Tokens are not stored: they follow from the distance to this instant.
    full_at: Option<Instant>,
    suppressed: u64,
}

impl<K: Hash + Eq> RateLimiter<K> {
    /// `burst` lines at once, then one per `interval`; at most `capacity` keys are remembered.
    #[must_use]
    pub fn new(burst: u32, interval: Duration, capacity: usize) -> Self {
        let overflow = Bucket::full();
        Self { burst, interval, capacity, buckets: HashMap::new(), overflow, swept_at: None }
    }

    /// Asks for one line.
    pub fn admit(&mut self, key: K, now: Instant) -> Verdict {
        if self.buckets.len() >= self.capacity && !self.buckets.contains_key(&key) {
            self.sweep(now);
        }
        let bucket = if self.buckets.len() < self.capacity || self.buckets.contains_key(&key) {
            self.buckets.entry(key).or_insert_with(Bucket::full)
        } else {
            &mut self.overflow
        };
        bucket.take(self.burst, self.interval, now)
    }

    /// Forgets a key, when its pod has ended.
    pub fn forget(&mut self, key: &K) {
        self.buckets.remove(key);
    }

    /// Forgets the keys whose bucket is full: they would start with a full one again. Looked at once per interval at
    /// most, so that a flood of new keys pays for one look-up each, not for a walk.
    fn sweep(&mut self, now: Instant) {
        let recently = |at: Instant| now.saturating_duration_since(at) < self.interval;
        if self.swept_at.is_some_and(recently) {
            return;
        }
        self.swept_at = Some(now);
        self.buckets.retain(|_, bucket| bucket.full_at.is_some_and(|full_at| full_at > now));
    }
}

impl Bucket {
    const fn full() -> Self {
        Self { full_at: None, suppressed: 0 }
    }

    fn take(&mut self, burst: u32, interval: Duration, now: Instant) -> Verdict {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now));
        let full_then = full_at + interval;
        if full_then.duration_since(now) > interval * burst {
            self.suppressed = self.suppressed.saturating_add(1);
            return Verdict::Suppress;
        }
        self.full_at = Some(full_then);
        Verdict::Log { suppressed: std::mem::take(&mut self.suppressed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn limiter(capacity: usize) -> (RateLimiter<&'static str>, Instant) {
        (RateLimiter::new(5, INTERVAL, capacity), Instant::now())
    }

    fn logged(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Log { .. })
    }

    #[test]
    fn a_burst_passes_then_one_line_per_interval_with_what_was_left_out() {
        let (mut limiter, start) = limiter(10);
        let first: Vec<bool> = (0..8).map(|_| logged(limiter.admit("a", start))).collect();
        assert_eq!(first, [true, true, true, true, true, false, false, false]);
        assert_eq!(limiter.admit("a", start + INTERVAL), Verdict::Log { suppressed: 3 });
        assert_eq!(limiter.admit("a", start + INTERVAL), Verdict::Suppress);
        assert_eq!(limiter.admit("a", start + INTERVAL * 2), Verdict::Log { suppressed: 1 });
    }

    #[test]
    fn a_quiet_key_has_its_burst_again() {
        let (mut limiter, start) = limiter(10);
        (0..9).for_each(|_| _ = limiter.admit("a", start));
        let later = start + INTERVAL * 50;
        assert_eq!((0..9).filter(|_| logged(limiter.admit("a", later))).count(), 5);
    }

    #[test]
    fn keys_do_not_share_their_lines() {
        let (mut limiter, start) = limiter(10);
        (0..9).for_each(|_| _ = limiter.admit("a", start));
        assert_eq!(limiter.admit("b", start), Verdict::Log { suppressed: 0 });
    }

    #[test]
    fn memory_is_bounded_and_what_does_not_fit_shares_one_bucket() {
        let (mut limiter, start) = limiter(2);
        assert!(logged(limiter.admit("a", start)) && logged(limiter.admit("b", start)));
        let more = ["c", "d", "e", "f", "g", "h", "i"];
        assert_eq!(more.iter().filter(|key| logged(limiter.admit(key, start))).count(), 5);
        assert_eq!(limiter.buckets.len(), 2);
        assert!(logged(limiter.admit("a", start)), "a known key keeps its own");
    }

    #[test]
    fn keys_that_fell_silent_make_room() {
        let (mut limiter, start) = limiter(2);
        for key in ["a", "b", "c"] {
            limiter.admit(key, start);
        }
        limiter.admit("d", start + INTERVAL * 2);
        assert!(limiter.buckets.contains_key("d") && !limiter.buckets.contains_key("a"));
    }

    #[test]
    fn a_pods_end_forgets_it() {
        let (mut limiter, start) = limiter(2);
        limiter.admit("a", start);
        limiter.forget(&"a");
        assert!(limiter.buckets.is_empty());
    }
}
