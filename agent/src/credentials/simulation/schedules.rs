//! Days of a few pods by random schedules: requests with good tokens and made-up ones, rotations, evictions, flushes,
//! ends, outages and storms, in any order.
use std::{sync::Arc, time::Duration};

use proptest::{collection::vec, prelude::*, test_runner::TestCaseResult};
use tokio::{runtime::Builder, task::JoinSet};

use super::{
    DAY, FIFTY_NINE_MINUTES, LATENCY, MINUTE, SECOND, SIX_HOURS,
    eks_auth::{Call, EksAuth, Fault, MADE_UP, Reply, Spell},
    fleet::{Fleet, PodSpec, token},
    formula::longest_period,
    node::{Agent, Ours, flush, least_left, limits},
    sdks::Sdk,
};
use crate::{credentials::handle::Message, pod_uid::PodUid, refusal::Refusal};

const PODS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Ask,
    AskWithMadeUp { token: u8 },
    Evict,
    Flush,
    End,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    after: Duration,
    pod: usize,
    event: Event,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let after = prop_oneof![
        2 => Just(Duration::ZERO),
        4 => (0..20_000_u64).prop_map(Duration::from_millis),
        4 => (1..240_u64).prop_map(Duration::from_mins),
    ];
    let event = prop_oneof![
        10 => Just(Event::Ask),
        5 => (0..3_u8).prop_map(|token| Event::AskWithMadeUp { token }),
        1 => Just(Event::Evict),
        1 => Just(Event::Flush),
        1 => Just(Event::End),
    ];
    vec((after, 0..PODS, event).prop_map(|(after, pod, event)| Step { after, pod, event }), 1..50)
}

fn weather() -> impl Strategy<Value = Vec<Spell>> {
    let fault = prop_oneof![Just(Fault::Down), (0..2_usize).prop_map(|above| Fault::Throttles { above })];
    let spell = (0..2 * 24 * 60_u64, 1..4 * 3600_u64, fault)
        .prop_map(|(from, lasts, fault)| Spell::new(Duration::from_mins(from), Duration::from_secs(lasts), fault));
    vec(spell, 0..4)
}

fn pods(until: Duration) -> impl Iterator<Item = PodSpec> {
    let lives = [SIX_HOURS, FIFTY_NINE_MINUTES, SIX_HOURS];
    // How they ask is in the schedule; that one may ask is what counts here.
    lives.into_iter().enumerate().map(move |(number, life)| {
        PodSpec::new(number, until).life(life).asks(Sdk::CommandLine { every: DAY }, Duration::ZERO)
    })
}

/// A request and what came of it.
struct Request {
    pod: PodUid,
    made_up: bool,
    asked_at: Duration,
    answered_at: Duration,
    /// The expiration.
    answer: Result<Duration, Refusal>,
}

struct Days {
    fleet: Arc<Fleet>,
    eks_auth: EksAuth,
    ours: Arc<Ours>,
    /// Evictions, flushes and ends, and requests of any kind.
    happened: Vec<(Duration, PodUid, Event)>,
    answers: JoinSet<Request>,
}

impl Days {
    async fn take(&mut self, step: Step) {
        let (pod, now) = (PodSpec::new(step.pod, DAY).uid(), self.fleet.now());
        self.happened.push((now, pod, step.event));
        let credentials = self.ours.credentials(pod);
        match (step.event, credentials) {
            (Event::Ask, _) => self.ask(pod, None),
            (Event::AskWithMadeUp { token }, _) => self.ask(pod, Some(token)),
            (Event::End, _) => self.ours.ended(pod),
            (Event::Evict, Some(credentials)) => drop(credentials.messages.try_send(Message::Evict)),
            (Event::Flush, Some(credentials)) => flush(&credentials),
            (Event::Evict | Event::Flush, None) => {}
        }
        // The owner sees it before anything of the same time that is asked later.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    fn ask(&mut self, pod: PodUid, made_up: Option<u8>) {
        let (fleet, ours) = (Arc::clone(&self.fleet), Arc::clone(&self.ours));
        let good = fleet.token(pod);
        let asked_with = match made_up {
            Some(number) => token(pod, &format!("{MADE_UP}-{number}"), good.claims().expires_at),
            None => good,
        };
        self.answers.spawn(async move {
            let asked_at = fleet.now();
            let answer = ours.ask(pod, asked_with).await.map(Fleet::since_start);
            Request { pod, made_up: made_up.is_some(), asked_at, answered_at: fleet.now(), answer }
        });
    }

    fn any(&self, pod: PodUid, from: Duration, to: Duration, events: &[Event]) -> bool {
        self.happened.iter().any(|(at, who, what)| *who == pod && from <= *at && *at <= to && events.contains(what))
    }

    /// Whether the pod asked, with whatever, before `at`.
    fn asked_before(&self, pod: PodUid, at: Duration) -> bool {
        self.happened.iter().any(|(when, who, what)| {
            *who == pod && *when < at && matches!(what, Event::Ask | Event::AskWithMadeUp { .. })
        })
    }

    fn check_answer(&self, request: &Request) -> TestCaseResult {
        let Request { pod, made_up, asked_at, answered_at, answer } = request;
        let told = || format!("{pod} asked at {asked_at:?}, answered at {answered_at:?}: {answer:?}");
        prop_assert!(*answered_at - *asked_at <= Duration::from_millis(900), "{}", told());
        if self.any(*pod, Duration::ZERO, *answered_at, &[Event::End]) {
            return Ok(());
        }
        if *made_up {
            prop_assert!(answer.is_err(), "a made-up token is served: {}", told());
            return Ok(());
        }
        let well = self.fleet.answers(*asked_at);
        let Ok(expires_at) = answer else {
            prop_assert!(!well, "not served while EKS Auth answers: {}", told());
            prop_assert!(!self.held(*pod, *asked_at), "not served what is valid: {}", told());
            return Ok(());
        };
        let left = expires_at.saturating_sub(*answered_at);
        prop_assert!(!left.is_zero(), "expired: {}", told());
        prop_assert!(!well || left >= least_left(self.fleet.pods[pod].life), "short: {}", told());
        Ok(())
    }

    /// Whether something valid was fetched, and nothing took it away since.
    fn held(&self, pod: PodUid, at: Duration) -> bool {
        let life = self.fleet.pods[&pod].life;
        let calls = self.eks_auth.calls(pod);
        let granted = calls.iter().filter(|call| call.reply == Reply::Granted);
        let mut valid = granted.filter_map(|call| call.ended.filter(|ended| *ended < at && at < call.at + life));
        let taken = |since| self.any(pod, since, at, &[Event::Evict, Event::Flush]);
        self.asked_before(pod, at) && valid.any(|ended| self.asked_before(pod, ended) && !taken(ended - LATENCY))
    }

    /// No call is early, but for what an operator or the cache did.
    fn check_calls(&self, pod: &PodSpec) -> TestCaseResult {
        let (uid, calls) = (pod.uid(), self.eks_auth.calls(pod.uid()));
        let ended = self.happened.iter().find(|(_, who, what)| *who == uid && *what == Event::End);
        let late = calls.iter().find(|call| ended.is_some_and(|(end, ..)| call.at > *end));
        prop_assert!(late.is_none(), "{late:?} after the end of {uid}");
        let (made_up, good): (Vec<Call>, Vec<Call>) = calls.into_iter().partition(|call| call.made_up);
        let mut failures = 0;
        for pair in good.windows(2) {
            let [first, second] = pair else { continue };
            let gap = second.at - first.ended.unwrap_or(first.at);
            if first.reply == Reply::Granted {
                failures = 0;
            } else {
                failures += 1;
            }
            if self.any(uid, first.at, second.at, &[Event::Evict, Event::Flush]) {
                failures = 0;
                continue;
            }
            let least = match first.reply {
                Reply::Granted => longest_period(pod.life - LATENCY, limits(1).longest_retention).mul_f64(0.9),
                _ => (SECOND * (1 << (failures - 1).min(16))).min(30 * SECOND),
            };
            prop_assert!(gap >= least, "{gap:?} instead of {least:?} between {first:?} and {second:?} of {uid}");
        }
        for pair in made_up.windows(2) {
            let [first, second] = pair else { continue };
            let least = if first.reply == Reply::Refused { 10 * SECOND } else { SECOND };
            let flushed = self.any(uid, first.at, second.at, &[Event::Flush]);
            prop_assert!(flushed || second.at - first.at >= least, "{first:?} and {second:?} of {uid}");
        }
        Ok(())
    }
}

async fn live(steps: Vec<Step>, spells: Vec<Spell>) -> TestCaseResult {
    let until = steps.iter().map(|step| step.after).sum::<Duration>() + MINUTE;
    let fleet = Fleet::with(pods(until), &spells);
    let eks_auth = EksAuth::new(&fleet, LATENCY);
    let ours = Ours::new(&eks_auth, limits(1));
    let mut kubelet = JoinSet::new();
    for spec in fleet.pods.values() {
        let (fleet, ours, spec) = (Arc::clone(&fleet), Arc::clone(&ours), *spec);
        ours.appeared(spec.uid());
        kubelet.spawn(async move {
            loop {
                fleet.until(fleet.next_rotation(&spec)).await;
                ours.rotated(spec.uid());
            }
        });
    }
    let mut days = Days { fleet, eks_auth, ours, happened: Vec::new(), answers: JoinSet::new() };
    let mut at = Duration::ZERO;
    for step in steps {
        at += step.after;
        days.fleet.until(at).await;
        days.take(step).await;
    }
    while let Some(answered) = days.answers.join_next().await {
        days.check_answer(&answered.unwrap())?;
    }
    prop_assert!(days.eks_auth.most_in_flight() <= 1);
    for pod in days.fleet.pods.values() {
        days.check_calls(pod)?;
    }
    Ok(())
}

fn cases() -> u32 {
    if std::env::var("POD_IDENTITY_TEST_SIZE").is_ok_and(|size| size == "full") { 4000 } else { 250 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_what_is_valid_is_served_and_no_call_is_early(steps in steps(), weather in weather()) {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(live(steps, weather))?;
    }
}
