//! Who queues: a line for each priority, first come first served.
use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::{Priority, Queued, state::Admission};

/// Where a turn is told that it has come up.
pub(super) type Told = oneshot::Sender<Admission>;

/// The lines. A number is given once and grows, so it is both a turn's name and its rank in its line.
#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: [BTreeMap<u64, Told>; 4],
    next_number: u64,
}

impl Lines {
    /// Queues at the end.
    pub(super) fn push(&mut self, priority: Priority, told: Told) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.line(priority).insert(number, told);
        number
    }

    /// Takes a turn out, wherever in the line it is; none if it has come up.
    pub(super) fn remove(&mut self, priority: Priority, number: u64) -> Option<Told> {
        self.line(priority).remove(&number)
    }

    /// Takes out who came first.
    pub(super) fn pop(&mut self, priority: Priority) -> Option<Told> {
        self.line(priority).pop_first().map(|(_, told)| told)
    }

    pub(super) fn len(&self, priority: Priority) -> usize {
        let [waiting, retry, prefetch, renewal] = &self.lines;
        match priority {
            Priority::Waiting => waiting.len(),
            Priority::Retry => retry.len(),
            Priority::Prefetch => prefetch.len(),
            Priority::Renewal => renewal.len(),
        }
    }

    pub(super) fn queued(&self) -> Queued {
        Queued {
            waiting: self.len(Priority::Waiting),
            retry: self.len(Priority::Retry),
            prefetch: self.len(Priority::Prefetch),
            renewal: self.len(Priority::Renewal),
        }
    }

    fn line(&mut self, priority: Priority) -> &mut BTreeMap<u64, Told> {
        let [waiting, retry, prefetch, renewal] = &mut self.lines;
        match priority {
            Priority::Waiting => waiting,
            Priority::Retry => retry,
            Priority::Prefetch => prefetch,
            Priority::Renewal => renewal,
        }
    }
}
