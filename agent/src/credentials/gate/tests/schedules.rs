//! Random schedules: against the state itself, step by step, and through the gate with tasks that raise and give up.
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::{collection::vec, option, prelude::*, sample::Index};

use super::{
    super::{policy, state::State},
    *,
};

const CONCURRENCY: usize = 4;

fn priorities() -> impl Strategy<Value = Priority> {
    prop_oneof![Just(Priority::Waiting), Just(Priority::Retry), Just(Priority::Prefetch), Just(Priority::Renewal)]
}

fn outcomes() -> impl Strategy<Value = Option<Outcome>> {
    prop_oneof![
        4 => Just(Some(Outcome::Answered)),
        1 => Just(Some(Outcome::Throttled)),
        1 => Just(Some(Outcome::Failed)),
        1 => Just(None),
    ]
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Enter(Priority),
    Leave(Index),
    Raise(Index, Priority),
    Release(Index, Option<Outcome>),
    Pass(Duration),
    PassUntilAlarm,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => priorities().prop_map(Step::Enter),
        1 => any::<Index>().prop_map(Step::Leave),
        1 => (any::<Index>(), priorities()).prop_map(|(which, to)| Step::Raise(which, to)),
        4 => (any::<Index>(), outcomes()).prop_map(|(which, outcome)| Step::Release(which, outcome)),
        2 => (0_u64..500).prop_map(|ms| Step::Pass(Duration::from_millis(ms))),
        1 => Just(Step::PassUntilAlarm),
    ]
}

/// The state under test beside the plainest record of who queues and who calls.
struct Model {
    state: State,
    now: Instant,
    alarm: Option<Instant>,
    /// In the order in which they joined the line that they are in.
    queued: Vec<(Priority, u64, oneshot::Receiver<Admission>)>,
    calling: Vec<(Priority, Admission)>,
}

impl Model {
    fn new() -> Self {
        let limits = GateLimits { concurrency: CONCURRENCY, background_per_second: NonZeroU32::new(2).unwrap() };
        let now = Instant::now();
        let state = State::new(limits, fastrand::Rng::with_seed(7), now);
        Self { state, now, alarm: None, queued: Vec::new(), calling: Vec::new() }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Enter(priority) => {
                let (number, admitted) = self.state.enter(priority);
                self.queued.push((priority, number, admitted));
            }
            Step::Leave(which) if !self.queued.is_empty() => {
                let (priority, number, _) = self.queued.remove(which.index(self.queued.len()));
                assert!(self.state.leave(priority, number));
                assert!(!self.state.leave(priority, number));
            }
            Step::Raise(which, to) if !self.queued.is_empty() => {
                let (from, number, admitted) = self.queued.remove(which.index(self.queued.len()));
                let number = self.state.raise(from, number, to).unwrap();
                self.queued.push((to, number, admitted));
            }
            Step::Release(which, outcome) if !self.calling.is_empty() => {
                let (_, admission) = self.calling.remove(which.index(self.calling.len()));
                self.state.release(admission, outcome, self.now);
            }
            Step::Pass(time) => self.now += time,
            Step::PassUntilAlarm => self.now = self.alarm.map_or(self.now, |alarm| alarm.max(self.now)),
            Step::Leave(_) | Step::Raise(..) | Step::Release(..) => {}
        }
        self.admit();
    }

    fn admit(&mut self) {
        let (before, others) = (self.state.snapshot(self.now), self.others());
        self.alarm = self.state.admit(self.now);
        let mut left: Vec<(Priority, u64, oneshot::Receiver<Admission>)> = Vec::new();
        for (priority, number, mut admitted) in std::mem::take(&mut self.queued) {
            match admitted.try_recv() {
                Ok(admission) => {
                    assert!(left.iter().all(|(line, ..)| *line != priority), "overtaken in its line");
                    self.calling.push((priority, admission));
                }
                Err(_) => left.push((priority, number, admitted)),
            }
        }
        self.queued = left;
        self.check(&before, others);
    }

    fn count(&self, priorities: &[Priority]) -> usize {
        self.queued.iter().filter(|(line, ..)| priorities.contains(line)).count()
    }

    fn others(&self) -> usize {
        self.calling.iter().filter(|(priority, _)| *priority != Priority::Waiting).count()
    }

    fn check(&self, before: &GateState, others_before: usize) {
        let (after, others) = (self.state.snapshot(self.now), self.others());
        assert_eq!(after.in_flight, self.calling.len());
        assert_eq!(after.queued.waiting, self.count(&[Priority::Waiting]));
        assert_eq!(after.queued.retry, self.count(&[Priority::Retry]));
        assert_eq!(after.queued.prefetch, self.count(&[Priority::Prefetch]));
        assert_eq!(after.queued.renewal, self.count(&[Priority::Renewal]));
        if after.in_flight > before.in_flight {
            assert_eq!(before.paused_until, None, "admitted in a pause");
            assert!(after.in_flight <= after.limit && after.limit <= CONCURRENCY);
        }
        let places = policy::places_for_others(after.limit);
        assert!(others <= places || others <= others_before, "more than their places admitted");
        // Nobody queues who could go, and whoever waits for time alone has an alarm.
        if let Some(until) = after.paused_until {
            assert_eq!(self.alarm, Some(until));
        } else if after.in_flight < after.limit {
            assert_eq!(after.queued.waiting, 0);
            let for_time = others < places && self.count(&[Priority::Retry, Priority::Prefetch, Priority::Renewal]) > 0;
            assert_eq!(self.alarm.is_some(), for_time);
            assert!(self.alarm.is_none_or(|alarm| alarm > self.now));
        }
    }

    /// Calls end and time passes: how long until nobody is left.
    fn drain(&mut self) -> Duration {
        let start = self.now;
        while !(self.queued.is_empty() && self.calling.is_empty()) {
            let (queued, calling) = (self.queued.len(), self.calling.len());
            self.step(Step::PassUntilAlarm);
            while let Some((_, admission)) = self.calling.pop() {
                self.state.release(admission, Some(Outcome::Answered), self.now);
            }
            self.admit();
            assert!(calling > 0 || self.queued.len() < queued || self.alarm.is_some(), "stuck");
        }
        self.now - start
    }
}

#[derive(Clone, Debug)]
struct Visit {
    after: Duration,
    priority: Priority,
    raised: Option<(Duration, Priority)>,
    gives_up: Option<Duration>,
    hangs_up: bool,
    call: Duration,
    outcome: Option<Outcome>,
}

fn visits() -> impl Strategy<Value = Visit> {
    let ms = |most| (0..most).prop_map(Duration::from_millis);
    let raised = option::of((ms(3000_u64), priorities()));
    (ms(2000), priorities(), raised, option::weighted(0.3, ms(5000)), any::<bool>(), ms(1500), outcomes()).prop_map(
        |(after, priority, raised, gives_up, hangs_up, call, outcome)| Visit {
            after,
            priority,
            raised,
            gives_up,
            hangs_up,
            call,
            outcome,
        },
    )
}

/// Queues, is raised, gives up or calls; how many call at once is `calling`.
async fn visit(gate: Gate, visit: Visit, calling: Arc<AtomicUsize>) {
    sleep(visit.after).await;
    let mut turn = gate.enter(visit.priority);
    let gives_up = sleep(visit.gives_up.unwrap_or(Duration::from_hours(24)));
    tokio::pin!(gives_up);
    let mut raise = visit.raised;
    let permit = loop {
        let raise_in = raise.map_or(Duration::from_hours(24), |(after, _)| after);
        // Recreated at each turn of the loop: a wait that is dropped must lose nothing.
        tokio::select! {
            permit = turn.admitted() => break permit,
            () = &mut gives_up => return,
            () = sleep(raise_in) => if let Some((_, to)) = raise.take() { turn.raise(to) },
        }
    };
    let at_once = calling.fetch_add(1, Ordering::SeqCst) + 1;
    assert!(at_once <= CONCURRENCY && at_once <= gate.snapshot().in_flight);
    if visit.hangs_up {
        let _ = timeout(visit.call / 2, sleep(visit.call)).await;
    } else {
        sleep(visit.call).await;
    }
    calling.fetch_sub(1, Ordering::SeqCst);
    match visit.outcome {
        Some(outcome) => permit.finish(outcome),
        None => drop(permit),
    }
}

proptest! {
    #[test]
    fn every_step_keeps_the_rules_and_everybody_comes_up(steps in vec(steps(), 1..300)) {
        let mut model = Model::new();
        for step in steps {
            model.step(step);
        }
        let queued = u32::try_from(model.queued.len()).unwrap();
        let took = model.drain();
        // The pause, and the slowest rate for all of them.
        prop_assert!(took <= Duration::from_secs(30) + SECOND / 2 * (queued + 1), "{took:?} for {queued}");
    }

    #[test]
    fn tasks_that_come_and_go_in_any_order_all_end_and_leave_nothing(visits in vec(visits(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (gate, calling) = (gate(CONCURRENCY, 2), Arc::new(AtomicUsize::new(0)));
            let tasks: JoinSet<()> =
                visits.into_iter().map(|v| visit(gate.clone(), v, Arc::clone(&calling))).collect();
            timeout(Duration::from_hours(1), tasks.join_all()).await.expect("everybody came up");
            let state = gate.snapshot();
            assert_eq!((state.in_flight, state.queued), (0, Queued::default()));
        });
    }
}
