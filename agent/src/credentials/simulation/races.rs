//! Every order in which demands, hang-ups, the kubelet's word, evictions, flushes, answers and the end of the pod can meet
//! at one pod's owner, sampled: each step is a task of its own that begins at a chosen millisecond, after a chosen number
//! of turns of the scheduler, so that steps of one millisecond come before and after each other at every await.
use std::{
    sync::{Arc, Mutex, Weak},
    time::{Duration, UNIX_EPOCH},
};

use proptest::{collection::vec, option, prelude::*};
use tokio::{
    runtime::{Builder, Handle},
    task::{JoinSet, yield_now},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    HOUR, SIX_HOURS,
    fleet::token,
    node::{flush, limits, vouch},
};
use crate::{
    credentials::{
        Clock, Credentials, Engine, Grant, Issued, NoTokens, PresentedToken, State, Upstream, UpstreamFuture,
        engine::Limits,
        gate::{Outcome, Priority},
        handle::Message,
    },
    metrics::Metrics,
    pod_uid::PodUid,
    refusal::{Outage, Refusal, UpstreamError},
};

const UID: &str = "6a4d7b1e-0c7b-4b43-9f0e-1d6f3b1f2a77";
const LONGEST_CALL: u64 = 4;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A client asks with one of three tokens, and may hang up.
    Demand {
        token: u8,
        hangs_up_after: Option<u64>,
    },
    /// The kubelet wrote the token.
    Vouch {
        token: u8,
    },
    Evict,
    Flush,
    /// Another pod's call holds the gate's only place.
    Busy {
        millis: u64,
    },
    End,
}

#[derive(Clone, Copy, Debug)]
struct At {
    millisecond: u64,
    turns: usize,
    step: Step,
}

#[derive(Clone, Copy, Debug)]
enum Reply {
    Granted,
    Refused,
    Down,
}

/// How a call goes: milliseconds, and turns of the scheduler before and after.
#[derive(Clone, Copy, Debug)]
struct Answering {
    takes: u64,
    turns: usize,
    reply: Reply,
}

fn schedules() -> impl Strategy<Value = Vec<At>> {
    let hangs_up = option::weighted(0.3, 0..6_u64);
    let step = prop_oneof![
        8 => (0..3_u8, hangs_up).prop_map(|(token, hangs_up_after)| Step::Demand { token, hangs_up_after }),
        3 => (0..3_u8).prop_map(|token| Step::Vouch { token }),
        1 => Just(Step::Evict),
        1 => Just(Step::Flush),
        2 => (0..6_u64).prop_map(|millis| Step::Busy { millis }),
        1 => Just(Step::End),
    ];
    vec((0..12_u64, 0..4_usize, step).prop_map(|(millisecond, turns, step)| At { millisecond, turns, step }), 1..16)
}

fn answers() -> impl Strategy<Value = Vec<Answering>> {
    let reply = prop_oneof![4 => Just(Reply::Granted), 1 => Just(Reply::Refused), 1 => Just(Reply::Down)];
    let answer = (0..=LONGEST_CALL, 0..3_usize, reply);
    vec(answer.prop_map(|(takes, turns, reply)| Answering { takes, turns, reply }), 1..6)
}

#[derive(Default)]
struct Observed {
    in_flight: usize,
    most_in_flight: usize,
    began: Vec<Instant>,
    ended_at: Option<Instant>,
    issued: Vec<Weak<Issued>>,
    wrong: Vec<String>,
}

#[derive(Clone)]
struct Script {
    answers: Arc<[Answering]>,
    observed: Arc<Mutex<Observed>>,
    clock: Clock,
}

struct Running(Arc<Mutex<Observed>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.lock().unwrap().in_flight -= 1;
    }
}

impl Upstream for Script {
    fn assume_role(&self, _: Arc<PresentedToken>) -> UpstreamFuture {
        let this = self.clone();
        Box::pin(async move {
            let (running, call) = {
                let mut observed = this.observed.lock().unwrap();
                observed.began.push(Instant::now());
                observed.in_flight += 1;
                observed.most_in_flight = observed.most_in_flight.max(observed.in_flight);
                (Running(Arc::clone(&this.observed)), observed.began.len() - 1)
            };
            let answer = this.answers[call % this.answers.len()];
            turns(answer.turns).await;
            if answer.takes > 0 {
                sleep(Duration::from_millis(answer.takes)).await;
            }
            turns(answer.turns).await;
            drop(running);
            match answer.reply {
                Reply::Granted => Ok(Grant {
                    access_key_id: format!("ASIA{call}"),
                    secret_access_key: "secret".to_owned().into(),
                    session_token: "session".to_owned().into(),
                    account_id: "123456789012".to_owned(),
                    association_id: String::new(),
                    expires_at: this.clock.now() + SIX_HOURS,
                }),
                Reply::Refused => {
                    Err(Refusal::EksAuthRefused(UpstreamError::new(400, "id", "AccessDeniedException", "no")))
                }
                Reply::Down => Err(Refusal::EksAuthUnavailable(Outage::Server)),
            }
        })
    }
}

async fn turns(count: usize) {
    for _ in 0..count {
        yield_now().await;
    }
}

struct Pod {
    engine: Arc<Engine>,
    credentials: Credentials,
    ended: CancellationToken,
    clock: Clock,
    observed: Arc<Mutex<Observed>>,
}

impl Pod {
    fn token(&self, number: u8) -> PresentedToken {
        token(UID.parse().unwrap(), &format!("token-{number}"), self.clock.now() + 24 * HOUR)
    }

    async fn take(&self, At { millisecond, turns: count, step }: At) {
        sleep(Duration::from_millis(millisecond)).await;
        turns(count).await;
        match step {
            Step::Demand { token, hangs_up_after } => self.demand(token, hangs_up_after).await,
            Step::Vouch { token } => vouch(&self.credentials, &self.token(token)),
            Step::Evict => drop(self.credentials.messages.try_send(Message::Evict)),
            Step::Flush => flush(&self.credentials),
            Step::Busy { millis } => {
                let permit = self.engine.gate.enter(Priority::Waiting).admitted().await;
                sleep(Duration::from_millis(millis)).await;
                permit.finish(Outcome::Answered);
            }
            Step::End => {
                self.ended.cancel();
                self.observed.lock().unwrap().ended_at.get_or_insert_with(Instant::now);
            }
        }
    }

    async fn demand(&self, number: u8, hangs_up_after: Option<u64>) {
        let demand = self.credentials.obtain(self.token(number));
        let Some(patience) = hangs_up_after else { return self.answered(demand.await) };
        if let Ok(answer) = timeout(Duration::from_millis(patience), demand).await {
            self.answered(answer);
        }
    }

    fn answered(&self, answer: Result<Arc<Issued>, Refusal>) {
        let mut observed = self.observed.lock().unwrap();
        match answer {
            Ok(issued) => observed.issued.push(Arc::downgrade(&issued)),
            Err(Refusal::PodGone) if observed.ended_at.is_none() => {
                observed.wrong.push("told that its pod has gone before it has".to_owned());
            }
            Err(_) => {}
        }
    }
}

async fn explore(schedule: Vec<At>, answers: Vec<Answering>) -> Result<(), TestCaseError> {
    let (clock, observed) = (Clock::virtual_from(UNIX_EPOCH + 500_000 * HOUR), Arc::<Mutex<Observed>>::default());
    let upstream = Script { answers: answers.into(), observed: Arc::clone(&observed), clock: clock.clone() };
    let (limits, metrics) = (Limits { upstream_concurrency: 1, ..limits(1) }, Arc::new(Metrics::new()));
    let tokens = Arc::new(NoTokens);
    let engine = Engine::new(Arc::new(upstream), tokens, clock.clone(), limits, metrics, Handle::current());
    let (ended, uid): (_, PodUid) = (CancellationToken::new(), UID.parse().unwrap());
    let credentials = engine.open(uid, ended.clone());
    let pod = Arc::new(Pod { engine: Arc::clone(&engine), credentials, ended, clock, observed });
    let (mut tasks, started) = (JoinSet::new(), Instant::now());
    let busy: u64 = schedule.iter().map(|at| if let Step::Busy { millis } = at.step { millis } else { 0 }).sum();
    let last = schedule.iter().map(|at| at.millisecond).max().unwrap_or(0);
    for at in schedule {
        let pod = Arc::clone(&pod);
        tasks.spawn(async move { pod.take(at).await });
    }
    // A token waits for three others at most and then for its own call, each behind other pods'; a flush may come between.
    // Nobody waits longer than that: who is not woken is found here.
    let patience = Duration::from_millis(last + busy + 8 * (LONGEST_CALL + 1));
    let all = timeout(patience, tasks.join_all()).await;
    prop_assert!(all.is_ok(), "somebody waits still after {:?}", started.elapsed());

    pod.ended.cancel();
    let end = *pod.observed.lock().unwrap().ended_at.get_or_insert_with(Instant::now);
    prop_assert_eq!(pod.credentials.obtain(pod.token(0)).await.unwrap_err(), Refusal::PodGone);
    sleep(HOUR).await;
    let observed = pod.observed.lock().unwrap();
    prop_assert!(observed.most_in_flight <= 1, "{} calls at once", observed.most_in_flight);
    prop_assert!(observed.wrong.is_empty(), "{:?}", observed.wrong);
    prop_assert!(observed.began.iter().all(|began| *began <= end), "a call began after the end");
    prop_assert_eq!(observed.in_flight, 0, "a call outlives its pod");
    prop_assert!(matches!(&*pod.credentials.state(), State::Ended));
    prop_assert!(observed.issued.iter().all(|issued| issued.upgrade().is_none()), "credentials outlive their pod");
    let gate = engine.gate();
    prop_assert_eq!((gate.in_flight, gate.queued.waiting + gate.queued.retry + gate.queued.prefetch), (0, 0));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_waiter_is_answered_once_one_call_is_under_way_and_the_end_ends_all(
        schedule in schedules(), answers in answers(),
    ) {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(explore(schedule, answers))?;
    }
}
