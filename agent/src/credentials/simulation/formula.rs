//! The formula of [`super`], computed from the table of pods and the seed alone.
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    time::Duration,
};

use super::{
    SECOND,
    eks_auth::{Fault, Spell},
    fleet::PodSpec,
};
use crate::{
    credentials::{engine::Limits, policy::jitter_seed},
    pod_uid::PodUid,
};

/// The timers of the agent have this grain, and are late rather than early.
const GRAIN: Duration = Duration::from_millis(1);

/// `p₁, p₂, …`: how long after each success a pod's next call is due.
pub(super) struct Periods {
    jitter: fastrand::Rng,
    longest: Duration,
}

impl Periods {
    pub(super) fn new(pod: &PodSpec, limits: &Limits, latency: Duration) -> Self {
        let jitter = fastrand::Rng::with_seed(jitter_seed(limits.seed, pod.uid()));
        Self { jitter, longest: longest_period(pod.life - latency, limits.longest_retention) }
    }

    pub(super) fn next(&mut self) -> Duration {
        self.longest.mul_f64(1.0 - 0.1 * self.jitter.f64())
    }
}

/// `P`: half of the life or the cap on retention, whichever is less.
pub(super) fn longest_period(life: Duration, longest_retention: Duration) -> Duration {
    (life / 2).min(longest_retention)
}

/// When a timer set for `at` goes off.
fn goes_off(at: Duration) -> Duration {
    let grain = GRAIN.as_nanos();
    GRAIN * u32::try_from(at.as_nanos().div_ceil(grain)).unwrap()
}

/// How many calls a pod costs whose calls never queue: the closed form.
pub(super) fn calls_without_queue(pod: &PodSpec, limits: &Limits, latency: Duration) -> usize {
    let mut periods = Periods::new(pod, limits, latency);
    let (mut at, mut calls) = (pod.born, 0);
    while at < pod.ends {
        calls += 1;
        at = goes_off(at + latency + periods.next());
        let asked = pod.first_ask().filter(|first| *first < at);
        if calls == 2 && asked.is_none() {
            // Renewed once; from now on the pod's first request is what fetches.
            let Some(first) = pod.first_ask() else { break };
            at = first;
        }
    }
    calls
}

/// When each pod's calls begin on a node without faults, queues included.
pub(super) fn calls_of_all<'a>(
    pods: impl IntoIterator<Item = &'a PodSpec>,
    limits: &Limits,
    latency: Duration,
) -> BTreeMap<PodUid, Vec<Duration>> {
    let mut node = Node { rate: Rate::new(limits), ..Node::default() };
    for spec in pods {
        let periods = Periods::new(spec, limits, latency);
        node.pods.insert(spec.uid(), Pod { spec: *spec, periods, calls: Vec::new(), stopped: false });
        node.events.push(Reverse((spec.born, Event::Due, spec.uid())));
        if let Some(first) = spec.first_ask() {
            node.events.push(Reverse((first, Event::FirstAsk, spec.uid())));
        }
    }
    node.run(latency);
    node.pods.into_iter().map(|(pod, state)| (pod, state.calls)).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Due,
    FirstAsk,
}

struct Pod {
    spec: PodSpec,
    periods: Periods,
    calls: Vec<Duration>,
    /// Renewed once and never asked for.
    stopped: bool,
}

#[derive(Default)]
struct Node {
    pods: BTreeMap<PodUid, Pod>,
    events: BinaryHeap<Reverse<(Duration, Event, PodUid)>>,
    /// Prefetches go before renewals.
    lines: [VecDeque<PodUid>; 2],
    rate: Rate,
}

impl Node {
    fn run(&mut self, latency: Duration) {
        let mut now = Duration::ZERO;
        loop {
            let admits_at = self.lines.iter().any(|line| !line.is_empty()).then(|| now.max(self.rate.next_at()));
            let event_at = self.events.peek().map(|Reverse((at, ..))| *at);
            now = match (event_at, admits_at) {
                (Some(event), Some(admits)) if admits < event => admits,
                (Some(event), _) => event,
                (None, Some(admits)) => admits,
                (None, None) => return,
            };
            if event_at == Some(now) {
                if let Some(Reverse((_, event, pod))) = self.events.pop() {
                    self.happens(event, pod, now, latency);
                }
            } else if let Some(pod) = self.lines.iter_mut().find_map(VecDeque::pop_front)
                && now < self.pods[&pod].spec.ends
            {
                self.rate.take(now);
                self.call(pod, now, latency);
            }
        }
    }

    fn happens(&mut self, event: Event, uid: PodUid, now: Duration, latency: Duration) {
        let pod = self.pods.get_mut(&uid).unwrap();
        match event {
            Event::Due => {
                let asked = pod.spec.first_ask().is_some_and(|first| first < now);
                if pod.calls.len() == 2 && !asked {
                    pod.stopped = true;
                } else {
                    self.lines[usize::from(!pod.calls.is_empty())].push_back(uid);
                }
            }
            Event::FirstAsk => {
                let queued = pod.calls.is_empty();
                if queued || pod.stopped {
                    // A client that waits leaves the line, and needs no token.
                    self.lines[0].retain(|other| *other != uid);
                    self.call(uid, now, latency);
                }
            }
        }
    }

    fn call(&mut self, uid: PodUid, now: Duration, latency: Duration) {
        let pod = self.pods.get_mut(&uid).unwrap();
        pod.stopped = false;
        pod.calls.push(now);
        let due = goes_off(now + latency + pod.periods.next());
        if due < pod.spec.ends {
            self.events.push(Reverse((due, Event::Due, uid)));
        }
    }
}

/// `r` calls a second, and `r` at once after a quiet second. Counted in nanoseconds × `r`, so that nothing is rounded.
#[derive(Default)]
struct Rate {
    per_second: u128,
    /// When the last call would have been made, had all been spread evenly.
    even: u128,
}

impl Rate {
    fn new(limits: &Limits) -> Self {
        Self { per_second: u128::from(limits.background_per_second.get()), even: 0 }
    }

    fn next_at(&self) -> Duration {
        let early = SECOND.as_nanos() * (self.per_second - 1);
        let nanos = self.even.saturating_sub(early).div_ceil(self.per_second);
        goes_off(Duration::from_nanos(u64::try_from(nanos).unwrap()))
    }

    fn take(&mut self, now: Duration) {
        self.even = self.even.max(now.as_nanos() * self.per_second) + SECOND.as_nanos();
    }
}

/// What a reader without the seed can say of a pod that asks and whose calls may queue, or fail in spells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) least: usize,
    pub(super) most: usize,
}

impl Bounds {
    /// `queue` is the longest wait at the gate once EKS Auth answers.
    pub(super) fn of(pod: &PodSpec, limits: &Limits, latency: Duration, queue: Duration, spells: &[Spell]) -> Self {
        let lives = pod.ends - pod.born;
        let period = longest_period(pod.life - latency, limits.longest_retention);
        let spells = spells.iter().filter(|spell| spell.from < pod.ends && pod.born < spell.to);
        let (lost, failures) = spells.fold((Duration::ZERO, 0), |(lost, failures), spell| {
            let lasts = spell.to - spell.from;
            let failing = if matches!(spell.fault, Fault::Slow { .. }) { 0 } else { failures_within(lasts) };
            (lost + lasts + queue, failures + failing)
        });
        Self {
            least: whole(lives.saturating_sub(lost), period + latency + queue),
            most: 1 + whole(lives, period.mul_f64(0.9) + latency) + failures,
        }
    }
}

/// How many calls of one pod can fail in a spell: the first when it begins, the others at least 1, 2, 4, 8, 16, 30, 30 …
/// seconds apart.
pub(super) fn failures_within(spell: Duration) -> usize {
    let (mut at, mut gap, mut failures) = (Duration::ZERO, SECOND, 0);
    while at < spell {
        failures += 1;
        at += gap;
        gap = (gap * 2).min(30 * SECOND);
    }
    failures
}

fn whole(time: Duration, period: Duration) -> usize {
    usize::try_from(time.as_nanos() / period.as_nanos()).unwrap()
}
