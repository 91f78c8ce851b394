use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::UNIX_EPOCH,
};

use tokio::{runtime::Handle, time::sleep};
use zeroize::Zeroizing;

use super::{super::engine::Limits, *};
use crate::{
    credentials::{Clock, Grant, NoTokens, TokenSource, Upstream, UpstreamFuture},
    metrics::Metrics,
    refusal::UpstreamError,
    token::Claims,
};

mod files;
mod flushes;

const UID: &str = "6a4d7b1e-0c7b-4b43-9f0e-1d6f3b1f2a77";
const START: Duration = Duration::from_hours(500_000);
const HOUR: Duration = Duration::from_hours(1);
const LIFE: Duration = Duration::from_hours(6);

/// What to answer for a token: the life of its credentials, or a refusal.
type Answers = Box<dyn FnMut(&str) -> Result<Duration, Refusal> + Send>;

/// An EKS Auth that answers after `latency` what the test says, and counts.
struct Script {
    calls: AtomicUsize,
    running: AtomicUsize,
    most_running: AtomicUsize,
    latency: Duration,
    clock: Clock,
    answers: Mutex<Answers>,
}

impl Script {
    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn answer(&self, answers: impl FnMut(&str) -> Result<Duration, Refusal> + Send + 'static) {
        *self.answers.lock().unwrap() = Box::new(answers);
    }
}

#[derive(Clone)]
struct Shared(Arc<Script>);

impl Upstream for Shared {
    fn assume_role(&self, token: Arc<PresentedToken>) -> UpstreamFuture {
        let Self(script) = self.clone();
        Box::pin(async move {
            let call = script.calls.fetch_add(1, Ordering::SeqCst) + 1;
            // Without latency a worker that asks at once again and again would never let the paused clock go on.
            assert!(call < 10_000, "asked without end");
            let running = script.running.fetch_add(1, Ordering::SeqCst) + 1;
            script.most_running.fetch_max(running, Ordering::SeqCst);
            sleep(script.latency).await;
            script.running.fetch_sub(1, Ordering::SeqCst);
            let life = (script.answers.lock().unwrap())(token.secret())?;
            Ok(Grant {
                access_key_id: format!("ASIA{call}"),
                secret_access_key: Zeroizing::new("secret".to_owned()),
                session_token: Zeroizing::new("session".to_owned()),
                account_id: "123456789012".to_owned(),
                association_id: "a-1".to_owned(),
                expires_at: script.clock.now() + life,
            })
        })
    }
}

struct World {
    script: Arc<Script>,
    clock: Clock,
    credentials: Credentials,
    ended: CancellationToken,
}

fn world(latency: Duration) -> World {
    world_that_keeps(latency, 24 * HOUR)
}

fn world_that_keeps(latency: Duration, longest_retention: Duration) -> World {
    world_over(latency, longest_retention, Arc::new(NoTokens))
}

fn world_over(latency: Duration, longest_retention: Duration, tokens: Arc<dyn TokenSource>) -> World {
    let clock = Clock::virtual_from(UNIX_EPOCH + START);
    let script = Arc::new(Script {
        calls: AtomicUsize::new(0),
        running: AtomicUsize::new(0),
        most_running: AtomicUsize::new(0),
        latency,
        clock: clock.clone(),
        answers: Mutex::new(Box::new(|_| Ok(LIFE))),
    });
    let limits = Limits {
        longest_retention,
        upstream_concurrency: 64,
        background_per_second: std::num::NonZeroU32::new(3).unwrap(),
        cached_pods: 2000,
        prefetch: true,
        seed: 1,
    };
    let upstream = Arc::new(Shared(Arc::clone(&script)));
    let engine = Engine::new(upstream, tokens, clock.clone(), limits, Arc::new(Metrics::new()), Handle::current());
    let ended = CancellationToken::new();
    let credentials = engine.open(UID.parse().unwrap(), ended.clone());
    World { script, clock, credentials, ended }
}

fn presented(raw: &str, clock: &Clock) -> PresentedToken {
    let claims = Claims {
        pod_uid: UID.parse().unwrap(),
        pod_name: None,
        namespace: "default".into(),
        service_account: "app".into(),
        expires_at: clock.now() + 24 * HOUR,
    };
    PresentedToken::new(raw, TokenDigest::of(raw), claims)
}

impl World {
    fn token(&self, raw: &str) -> PresentedToken {
        presented(raw, &self.clock)
    }

    async fn obtain(&self, raw: &str) -> Answer {
        self.credentials.obtain(self.token(raw)).await
    }

    fn cached(&self, raw: &str) -> Option<Arc<Issued>> {
        self.credentials.cached(&TokenDigest::of(raw), self.clock.now())
    }
}

fn denied() -> Refusal {
    Refusal::EksAuthRefused(UpstreamError::new(400, "id", "AccessDeniedException", "no"))
}

#[tokio::test(start_paused = true)]
async fn a_hundred_callers_at_once_make_one_call() {
    let world = world(Duration::from_millis(50));
    let answers = futures(100, || world.obtain("t1")).await;
    assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|issued| issued.access_key_id == "ASIA1")));
    assert_eq!(world.script.calls(), 1);
    assert!(world.cached("t1").is_some());
    assert!(world.cached("t2").is_none(), "a token that was never accepted is served nothing from the cache");
}

async fn futures<F: Future<Output = Answer>>(count: usize, make: impl Fn() -> F) -> Vec<Answer> {
    let mut pending: Vec<_> = (0..count).map(|_| Box::pin(make())).collect();
    let mut answers = Vec::new();
    std::future::poll_fn(|cx| {
        pending.retain_mut(|future| match future.as_mut().poll(cx) {
            std::task::Poll::Ready(answer) => {
                answers.push(answer);
                false
            }
            std::task::Poll::Pending => true,
        });
        if pending.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    answers
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_hangs_up_does_not_cancel_the_fetch() {
    let world = world(Duration::from_secs(2));
    let hung_up = tokio::time::timeout(Duration::from_millis(10), world.obtain("t1")).await;
    assert!(hung_up.is_err());
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.script.calls(), 1);
    assert!(world.cached("t1").is_some());
}

#[tokio::test(start_paused = true)]
async fn without_retention_everybody_who_waits_shares_a_call_and_nothing_is_kept() {
    let world = world_that_keeps(Duration::from_millis(50), Duration::ZERO);
    let answers = futures(10, || world.obtain("t1")).await;
    assert!(answers.iter().all(Result::is_ok));
    assert!(world.cached("t1").is_none());
    sleep(24 * HOUR).await;
    assert_eq!(world.script.calls(), 1);
    world.obtain("t1").await.unwrap();
    assert_eq!(world.script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn renewal_comes_at_half_life_with_nobody_waiting() {
    let world = world(Duration::from_millis(50));
    world.obtain("t1").await.unwrap();
    sleep(2 * HOUR).await;
    assert_eq!(world.script.calls(), 1);
    sleep(HOUR + Duration::from_secs(1)).await;
    assert_eq!(world.script.calls(), 2);
    let served = world.cached("t1").unwrap();
    assert_eq!(served.access_key_id, "ASIA2");
    // 23 h later its token ends; by then there were 7 or 8 renewals, each after 2.7 to 3 h.
    sleep(21 * HOUR).await;
    assert!((8..=10).contains(&world.script.calls()), "{}", world.script.calls());
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_nothing_until_what_is_valid_expires() {
    let world = world(Duration::from_millis(50));
    world.obtain("t1").await.unwrap();
    world.script.answer(|_| Err(Refusal::EksAuthUnavailable(Outage::Transport)));
    sleep(5 * HOUR).await;
    assert!(world.cached("t1").is_some());
    let calls = world.script.calls();
    // From 2.7 h on, every 30 to 33 s after the first doublings.
    assert!((200..=340).contains(&calls), "{calls}");
    sleep(2 * HOUR).await;
    assert!(world.cached("t1").is_none());
    assert!(matches!(&*world.credentials.state(), State::Empty));
    assert_eq!(world.obtain("t1").await.unwrap_err().reason(), "eks_auth_unavailable");
}

#[tokio::test(start_paused = true)]
async fn a_failed_fetch_is_answered_from_memory_until_the_back_off_has_passed() {
    let world = world(Duration::ZERO);
    world.script.answer(|_| Err(Refusal::EksAuthUnavailable(Outage::Server)));
    for _ in 0..50 {
        assert_eq!(world.obtain("t1").await.unwrap_err().reason(), "eks_auth_unavailable");
    }
    assert_eq!(world.script.calls(), 1);
    sleep(Duration::from_millis(1100)).await;
    world.obtain("t1").await.unwrap_err();
    assert_eq!(world.script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn failing_calls_are_six_a_minute_at_most() {
    let world = world(Duration::ZERO);
    world.script.answer(|_| Err(Refusal::EksAuthUnavailable(Outage::Server)));
    for _ in 0..600 {
        world.obtain("t1").await.unwrap_err();
        sleep(Duration::from_millis(100)).await;
    }
    assert!(world.script.calls() <= 6, "{}", world.script.calls());
}

#[tokio::test(start_paused = true)]
async fn a_token_that_nothing_vouches_for_never_evicts_and_is_asked_about_rarely() {
    let world = world(Duration::ZERO);
    world.obtain("good").await.unwrap();
    world.script.answer(|token| if token == "good" { Ok(LIFE) } else { Err(denied()) });
    let mut reasons = Vec::new();
    for attempt in 0..600 {
        let raw = format!("garbage-{attempt}");
        reasons.push(world.obtain(&raw).await.unwrap_err().reason());
        assert!(world.cached("good").is_some());
        sleep(Duration::from_millis(100)).await;
    }
    assert!(world.script.calls() <= 1 + 6, "{}", world.script.calls());
    assert!(reasons.contains(&"eks_auth_refused") && reasons.contains(&"pod_limit"));
}

#[tokio::test(start_paused = true)]
async fn a_definite_refusal_is_repeated_until_the_token_may_be_asked_about_again() {
    let world = world(Duration::ZERO);
    world.script.answer(|_| Err(denied()));
    world.obtain("t1").await.unwrap_err();
    sleep(Duration::from_secs(9)).await;
    assert_eq!(world.obtain("t1").await.unwrap_err(), denied());
    assert_eq!(world.script.calls(), 1);
    world.script.answer(|_| Ok(LIFE));
    sleep(Duration::from_secs(1)).await;
    world.obtain("t1").await.unwrap();
    assert_eq!(world.script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn two_tokens_at_once_are_asked_about_one_after_the_other() {
    let world = world(Duration::from_millis(100));
    let (a, b) = tokio::join!(world.obtain("a"), world.obtain("b"));
    assert!(a.is_ok() && b.is_ok());
    assert_eq!((world.script.calls(), world.script.most_running.load(Ordering::SeqCst)), (2, 1));
    assert!(world.cached("a").is_some() && world.cached("b").is_some());
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_pod_wipes_and_answers_everybody_who_waits() {
    let world = world(Duration::from_secs(5));
    let waiting = world.obtain("t1");
    let end = async {
        sleep(Duration::from_millis(10)).await;
        world.ended.cancel();
    };
    let (answer, ()) = tokio::join!(waiting, end);
    assert_eq!(answer.unwrap_err(), Refusal::PodGone);
    assert!(matches!(&*world.credentials.state(), State::Ended));
    assert_eq!(world.obtain("t1").await.unwrap_err(), Refusal::PodGone);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_pod_frees_the_memory_of_what_was_served() {
    let world = world(Duration::ZERO);
    let issued = world.obtain("t1").await.unwrap();
    let watched = Arc::downgrade(&issued);
    drop(issued);
    assert!(watched.upgrade().is_some());
    world.ended.cancel();
    sleep(Duration::from_millis(1)).await;
    assert!(watched.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn credentials_that_are_about_to_expire_are_not_served() {
    let world = world(Duration::ZERO);
    world.script.answer(|_| Ok(Duration::from_secs(15)));
    assert_eq!(world.obtain("t1").await.unwrap_err(), Refusal::Expiring);
    assert!(world.cached("t1").is_none());
}

#[tokio::test(start_paused = true)]
async fn an_accepted_token_is_served_until_it_ends_itself() {
    let world = world(Duration::ZERO);
    let mut token = world.token("short");
    token.claims.expires_at = world.clock.now() + HOUR;
    world.credentials.obtain(token).await.unwrap();
    sleep(HOUR + Duration::from_secs(29)).await;
    assert!(world.cached("short").is_some());
    sleep(Duration::from_secs(1)).await;
    assert!(world.cached("short").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_token_that_the_kubelet_wrote_is_served_without_a_call() {
    let world = world(Duration::ZERO);
    world.obtain("old").await.unwrap();
    world.credentials.vouch(&world.token("rotated"));
    sleep(Duration::from_millis(1)).await;
    assert!(world.cached("rotated").is_some());
    assert_eq!(world.script.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_refused_tokens_do_not_make_room_for_each_other() {
    let world = world(Duration::ZERO);
    for token in ["a", "b"] {
        world.credentials.vouch(&world.token(token));
    }
    world.script.answer(|_| Err(denied()));
    for _ in 0..100 {
        world.obtain("a").await.unwrap_err();
        world.obtain("b").await.unwrap_err();
    }
    assert_eq!(world.script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn tokens_that_nothing_vouches_for_do_not_put_off_the_renewal() {
    let world = world(Duration::ZERO);
    world.obtain("good").await.unwrap();
    world.script.answer(|token| if token == "good" { Ok(LIFE) } else { Err(denied()) });
    let mut served = String::new();
    for minute in 0..(4 * 60) {
        world.obtain(&format!("made-up-{minute}")).await.unwrap_err();
        sleep(Duration::from_mins(1)).await;
        served = world.cached("good").unwrap().access_key_id.clone();
    }
    assert_ne!(served, "ASIA1");
}
