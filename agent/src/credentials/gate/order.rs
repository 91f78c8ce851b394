//! Which line is next: the more urgent one, but not for ever.
use super::Priority;

/// After so many admissions that passed a less urgent call over, it is that one's turn. A share of one in nine keeps
/// renewals going while clients queue without end (a node under throttling, with pods that fail and ask again), and costs
/// those clients a ninth at most.
const PATIENCE: u32 = 8;

/// Which lines have a turn that could be admitted now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ready {
    pub(super) waiting: Option<Priority>,
    pub(super) retry: Option<Priority>,
    pub(super) prefetch: Option<Priority>,
    pub(super) renewal: Option<Priority>,
}

/// How often each less urgent side was passed over: clients before the background, and within each the one line before
/// the other. Compared in pairs because a renewal has less to fear from a prefetch, which has the same rate, than from
/// clients, which have none: one count for all would forget who is urgent as soon as clients queue.
#[derive(Debug, Default)]
pub(super) struct Order {
    sides: Precedence,
    clients: Precedence,
    background: Precedence,
}

impl Order {
    /// Who is next, if anybody is ready.
    pub(super) fn next(&self, ready: Ready) -> Option<Priority> {
        let client = self.clients.choose(ready.waiting, ready.retry);
        let background = self.background.choose(ready.prefetch, ready.renewal);
        self.sides.choose(client, background)
    }

    /// Takes note of who went, and so of who was passed over.
    pub(super) fn went(&mut self, priority: Priority, ready: Ready) {
        let background = ready.prefetch.or(ready.renewal);
        match priority {
            Priority::Waiting | Priority::Retry => {
                self.clients.went(priority == Priority::Waiting, ready.retry);
                self.sides.went(true, background);
            }
            Priority::Prefetch | Priority::Renewal => {
                self.background.went(priority == Priority::Prefetch, ready.renewal);
                self.sides.went(false, background);
            }
        }
    }
}

/// Two of which the first goes first, until the second was passed over [`PATIENCE`] times.
#[derive(Debug, Default)]
struct Precedence {
    passed_over: u32,
}

impl Precedence {
    fn choose(&self, first: Option<Priority>, second: Option<Priority>) -> Option<Priority> {
        if self.passed_over >= PATIENCE { second.or(first) } else { first.or(second) }
    }

    /// A second that was not ready was not passed over: its own rate held it back.
    fn went(&mut self, first: bool, second: Option<Priority>) {
        if !first {
            self.passed_over = 0;
        } else if second.is_some() {
            self.passed_over = self.passed_over.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Priority::{Prefetch, Renewal, Retry, Waiting},
        *,
    };

    fn ready(lines: &[Priority]) -> Ready {
        let when = |line| lines.contains(&line).then_some(line);
        Ready { waiting: when(Waiting), retry: when(Retry), prefetch: when(Prefetch), renewal: when(Renewal) }
    }

    fn go(order: &mut Order, lines: &[Priority], count: usize) -> Vec<Priority> {
        let ready = ready(lines);
        let next = |_| {
            let next = order.next(ready).unwrap();
            order.went(next, ready);
            next
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn the_more_urgent_goes_first() {
        let lines = [Waiting, Retry, Prefetch, Renewal];
        for first in 0..lines.len() {
            assert_eq!(go(&mut Order::default(), &lines[first..], 1), [lines[first]]);
        }
        assert_eq!(Order::default().next(Ready::default()), None);
    }

    #[test]
    fn one_admission_in_nine_is_for_who_was_passed_over() {
        for (first, second) in [(Waiting, Retry), (Waiting, Renewal), (Retry, Prefetch), (Prefetch, Renewal)] {
            let went = go(&mut Order::default(), &[first, second], 27);
            let second_went: Vec<usize> = (0..27).filter(|n| went[*n] == second).collect();
            assert_eq!(second_went, [8, 17, 26], "{first:?} before {second:?}");
        }
    }

    #[test]
    fn urgency_counts_among_those_passed_over_too() {
        let went = go(&mut Order::default(), &[Waiting, Retry, Prefetch, Renewal], 810);
        let count = |line| went.iter().filter(|w| **w == line).count();
        assert_eq!((count(Waiting), count(Retry), count(Prefetch), count(Renewal)), (640, 80, 80, 10));
    }

    #[test]
    fn who_was_not_ready_was_not_passed_over() {
        let mut order = Order::default();
        go(&mut order, &[Waiting], 100);
        assert_eq!(go(&mut order, &[Waiting, Prefetch], 1), [Waiting]);
        go(&mut order, &[Waiting, Prefetch], 7);
        go(&mut order, &[Waiting], 3);
        assert_eq!(go(&mut order, &[Waiting, Prefetch], 2), [Prefetch, Waiting], "what was counted is not forgotten");
    }

    #[test]
    fn who_is_due_but_not_ready_holds_nobody_up() {
        let mut order = Order::default();
        go(&mut order, &[Waiting, Renewal], 8);
        assert_eq!(go(&mut order, &[Waiting], 2), [Waiting, Waiting]);
        assert_eq!(go(&mut order, &[Waiting, Renewal], 1), [Renewal]);
    }
}
