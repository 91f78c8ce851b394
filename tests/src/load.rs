//! What the load tool found: counts, and latencies in a histogram that those of other processes can be added to.
use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// Significant bits of a latency that are kept: an error below one percent.
const SIGNIFICANT_BITS: u32 = 7;

/// Latencies in nanoseconds, each counted under its value without what is below its significant bits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram(BTreeMap<u64, u64>);

impl Histogram {
    /// Counts a latency.
    pub fn add(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let excess = (u64::BITS - nanos.leading_zeros()).saturating_sub(SIGNIFICANT_BITS);
        *self.0.entry(nanos >> excess << excess).or_default() += 1;
    }

    /// Adds what another one has counted.
    pub fn merge(&mut self, other: &Self) {
        for (nanos, count) in &other.0 {
            *self.0.entry(*nanos).or_default() += count;
        }
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// The latency that this share (0 to 1) of all does not exceed; zero when there are none.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts of requests are far below 2^53"
    )]
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let at_rank = self.0.iter().find(|(_, count)| {
            seen += **count;
            seen >= rank
        });
        Duration::from_nanos(at_rank.map_or(0, |(nanos, _)| *nanos))
    }

    /// Each latency that was counted, in nanoseconds, and how often.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(nanos, count)| (*nanos, *count))
    }

    /// The longest one.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.0.last_key_value().map_or(0, |(nanos, _)| *nanos))
    }
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without an answer, by what was wrong.
    pub failures: BTreeMap<String, u64>,
    /// Of answered requests: from the time at which each was due, or in a closed loop from its start.
    pub latencies: Histogram,
    /// How long the run took.
    pub seconds: f64,
    /// Processor time of the clients.
    pub cpu_seconds: f64,
}

impl Report {
    /// Adds what another process found at the same time.
    pub fn merge(&mut self, other: &Self) {
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (failure, count) in &other.failures {
            *self.failures.entry(failure.clone()).or_default() += count;
        }
        self.latencies.merge(&other.latencies);
        self.seconds = self.seconds.max(other.seconds);
        self.cpu_seconds += other.cpu_seconds;
    }

    /// Requests that were made.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.statuses.values().chain(self.failures.values()).sum()
    }

    /// Requests that were answered with credentials.
    #[must_use]
    pub fn granted(&self) -> u64 {
        self.statuses.get(&200).copied().unwrap_or_default()
    }
}

/// What a flood did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FloodReport {
    /// Requests, connections, bytes or namespaces: whatever it is made of.
    pub attempts: u64,
    /// Processor time that it used.
    pub cpu_seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_a_percent() {
        let mut histogram = Histogram::default();
        for micros in 1..=10_000 {
            histogram.add(Duration::from_micros(micros));
        }
        for (share, exact) in [(0.5, 5_000_u64), (0.99, 9_900), (0.999, 9_990)] {
            let found = u64::try_from(histogram.quantile(share).as_micros()).unwrap();
            assert!(found <= exact && found * 100 >= exact * 98, "{share}: {found}");
        }
        assert_eq!((histogram.count(), histogram.quantile(0.0)), (10_000, Duration::from_micros(1)));
    }

    #[test]
    fn reports_add_up() {
        let mut one = Report { statuses: [(200, 3)].into(), seconds: 2.0, ..Report::default() };
        let other = Report { statuses: [(200, 1), (503, 1)].into(), failures: [("x".into(), 2)].into(), ..one.clone() };
        one.merge(&other);
        assert_eq!((one.requests(), one.granted()), (7, 4));
        let text = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), one);
    }
}
