//! Gives back what bursts of work leave in memory.
//!
//! The allocator keeps what is freed for whoever asks next, and the pages of a burst (every pod's first credentials, with a
//! connection and its buffers for each call under way) lie between what stays. Nobody needs them again for hours, nor the code
//! that such a burst, or the start, ran through.
use std::mem;

use crate::{slow_clock::Ticks, sys};

/// Calls to EKS Auth that make a burst: a few leave nothing worth the walk through the heap.
const BURST: u64 = 32;
/// Calls from one tick to the next with which it is over: the renewals of a large node are spread like that.
const QUIET: u64 = 4;
/// Connections to EKS Auth are closed within 20 s, and their buffers go with them.
const QUIET_TICKS: u32 = 2;

/// Tidies up when it is due, for ever, the first time after the start. `calls` counts calls to EKS Auth.
pub(crate) async fn run(calls: impl Fn() -> u64, mut due: Ticks) {
    let mut bursts = Bursts::default();
    let mut over = true;
    loop {
        due.next().await;
        over |= bursts.are_over(calls());
        if mem::take(&mut over) {
            sys::trim_heap();
            sys::unmap_code();
        }
    }
}

/// Looks at the number of calls, from tick to tick.
#[derive(Debug, Default)]
struct Bursts {
    /// At the last tick, and when the heap was tidied last.
    last: u64,
    tidied: u64,
    quiet: u32,
}

impl Bursts {
    /// Whether there was a burst that is over now, which is told once.
    fn are_over(&mut self, calls: u64) -> bool {
        let quiet = calls - self.last <= QUIET;
        self.last = calls;
        self.quiet = if quiet { self.quiet + 1 } else { 0 };
        let over = self.quiet >= QUIET_TICKS && calls - self.tidied >= BURST;
        if over {
            self.tidied = calls;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_over_when_it_was_quiet_for_two_ticks_and_is_told_once() {
        let mut bursts = Bursts::default();
        let told: Vec<bool> = [0, 200, 700, 702, 703, 703, 703].map(|calls| bursts.are_over(calls)).into();
        assert_eq!(told, [false, false, false, false, true, false, false]);
    }

    #[test]
    fn renewals_one_by_one_are_a_burst_only_together() {
        let mut bursts = Bursts::default();
        let told = (1..=100).filter(|calls| bursts.are_over(*calls)).collect::<Vec<_>>();
        assert_eq!(told, [32, 64, 96]);
    }
}
