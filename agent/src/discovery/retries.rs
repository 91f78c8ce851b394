//! Looks again at containers whose processes are not there yet.
use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use tokio::time::{Instant, sleep_until};

/// Milliseconds between looks. A runtime needs 1 to 2 ms from the cgroup to the process in its own namespace, and may
/// need much longer on a node that is busy.
const DELAYS: [u64; 15] = [0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377];

/// Containers to look at again, by when.
#[derive(Debug, Default)]
pub(super) struct Retries(BinaryHeap<Reverse<(Instant, String, usize)>>);

impl Retries {
    /// Plans look number `attempt` at a container; after the last one only events and the rescan lead to it.
    pub(super) fn schedule(&mut self, container: String, attempt: usize) {
        if let Some(delay) = DELAYS.get(attempt) {
            self.0.push(Reverse((Instant::now() + Duration::from_millis(*delay), container, attempt)));
        }
    }

    /// Waits for the next one; for ever when none is planned.
    pub(super) async fn next(&mut self) -> (String, usize) {
        match self.0.peek() {
            Some(Reverse((when, ..))) => sleep_until(*when).await,
            None => std::future::pending().await,
        }
        match self.0.pop() {
            Some(Reverse((_, container, attempt))) => (container, attempt),
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn looks_are_spread_over_a_second_and_end() {
        let mut retries = Retries::default();
        let start = Instant::now();
        retries.schedule("late".to_owned(), 14);
        retries.schedule("a".to_owned(), 0);
        let mut looks = 0;
        while let Ok((container, attempt)) = tokio::time::timeout(Duration::from_secs(5), retries.next()).await {
            looks += 1;
            if container == "a" {
                retries.schedule(container, attempt + 1);
            }
        }
        assert_eq!(looks, DELAYS.len() + 1);
        let planned: u64 = DELAYS.iter().sum();
        assert!(start.elapsed() >= Duration::from_millis(planned + 5000));
    }
}
