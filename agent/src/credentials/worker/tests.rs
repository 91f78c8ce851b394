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

#[tokio::test(start_paused = true)]
async fn a_flush_fetches_anew_and_serves_the_old_until_then() {
    let world = world(Duration::from_millis(50));
    world.obtain("t1").await.unwrap();
    let old = Arc::downgrade(&world.cached("t1").unwrap());
    let meanwhile = async {
        sleep(Duration::from_millis(25)).await;
        assert_eq!(world.cached("t1").unwrap().access_key_id, "ASIA1");
    };
    let (flushed, ()) = tokio::join!(world.credentials.flush(), meanwhile);
    assert!(matches!(flushed, Flushed::Renewed(issued) if issued.access_key_id == "ASIA2"));
    assert_eq!(world.cached("t1").unwrap().access_key_id, "ASIA2");
    assert!(old.upgrade().is_none(), "the old ones are wiped");
}

#[tokio::test(start_paused = true)]
async fn a_flush_takes_away_what_eks_auth_refuses_and_nothing_else() {
    let world = world(Duration::ZERO);
    world.obtain("t1").await.unwrap();
    for outage in [
        Refusal::EksAuthUnavailable(Outage::Transport),
        Refusal::EksAuthThrottled { retry_after: 1 },
        Refusal::NodeCredentials,
    ] {
        let said = outage.clone();
        world.script.answer(move |_| Err(said.clone()));
        assert!(matches!(world.credentials.flush().await, Flushed::Kept(refusal) if refusal == outage));
        assert!(world.cached("t1").is_some());
    }
    world.script.answer(|_| Err(denied()));
    assert!(matches!(world.credentials.flush().await, Flushed::Refused(refusal) if refusal == denied()));
    assert!(world.cached("t1").is_none());
    assert_eq!(world.obtain("t1").await.unwrap_err(), denied());
    // The association is repaired: a second flush asks at once, whatever is remembered.
    world.script.answer(|_| Ok(LIFE));
    assert!(matches!(world.credentials.flush().await, Flushed::Renewed(_)));
    assert!(world.cached("t1").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_flush_is_told_of_the_end_of_its_own_fetch_and_of_nothing_before() {
    const LATENCY: Duration = Duration::from_secs(1);
    let outcomes = [Ok(LIFE), Err(Refusal::EksAuthUnavailable(Outage::Transport)), Err(denied())];
    for (expected, under_way) in outcomes.iter().flat_map(|outcome| [(outcome, false), (outcome, true)]) {
        let world = world(LATENCY);
        world.obtain("t1").await.unwrap();
        let answer = expected.clone();
        world.script.answer(move |_| answer.clone());
        let mut begins = Instant::now();
        if under_way {
            // The call is half over when the operator comes: the flush's own begins when it ends.
            tokio::time::timeout(LATENCY / 2, world.obtain("t2")).await.unwrap_err();
            begins += LATENCY;
        }
        let calls = world.script.calls();
        let flushed = world.credentials.flush().await;
        let running = world.script.running.load(Ordering::SeqCst);
        assert_eq!((Instant::now() - begins, running), (LATENCY, 0), "{expected:?}, told {flushed:?}");
        assert_eq!(world.script.calls(), calls + 1);
        let is_told = match expected {
            Ok(_) => {
                matches!(&flushed, Flushed::Renewed(issued) if issued.access_key_id == format!("ASIA{}", calls + 1))
            }
            Err(Refusal::EksAuthRefused(_)) => matches!(flushed, Flushed::Refused(_)),
            Err(_) => matches!(flushed, Flushed::Kept(_)),
        };
        assert!(is_told, "{expected:?}: {flushed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_during_a_fetch_begins_one_of_its_own() {
    let world = world(Duration::from_millis(50));
    let flush = async {
        sleep(Duration::from_millis(10)).await;
        world.credentials.flush().await
    };
    let (first, flushed) = tokio::join!(world.obtain("t1"), flush);
    assert_eq!(first.unwrap().access_key_id, "ASIA1");
    assert!(matches!(flushed, Flushed::Renewed(issued) if issued.access_key_id == "ASIA2"));
    assert_eq!(world.script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_flush_of_nothing_asks_nothing() {
    let world = world(Duration::ZERO);
    assert!(matches!(world.credentials.flush().await, Flushed::Nothing));
    assert_eq!(world.script.calls(), 0);
    world.ended.cancel();
    assert!(matches!(world.credentials.flush().await, Flushed::Ended));
}

/// A kubelet's file that can be read at times.
struct File {
    holds: Mutex<Result<Option<&'static str>, Unreadable>>,
    looks: AtomicUsize,
    clock: Clock,
}

impl File {
    fn with(token: &'static str) -> Arc<Self> {
        let clock = Clock::virtual_from(UNIX_EPOCH + START);
        Arc::new(Self { holds: Mutex::new(Ok(Some(token))), looks: AtomicUsize::new(0), clock })
    }

    fn set(&self, holds: Result<Option<&'static str>, Unreadable>) {
        *self.holds.lock().unwrap() = holds;
    }
}

impl TokenSource for Arc<File> {
    fn newest(&self, _: PodUid) -> Result<Option<PresentedToken>, Unreadable> {
        assert!(self.looks.fetch_add(1, Ordering::SeqCst) < 10_000, "looked at without end");
        self.holds.lock().unwrap().map(|raw| raw.map(|raw| presented(raw, &self.clock)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_waits_for_a_token_file_that_cannot_be_read() {
    let file = File::with("file");
    let world = world_over(Duration::ZERO, 24 * HOUR, Arc::new(Arc::clone(&file)));
    world.credentials.vouch(&world.token("file"));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.script.calls(), 1, "prefetched");
    assert!(world.cached("file").is_some());
    file.set(Err(Unreadable));
    assert!(matches!(world.credentials.flush().await, Flushed::TokenUnreadable));
    sleep(3 * HOUR).await;
    assert_eq!(world.script.calls(), 1);
    file.set(Ok(Some("file")));
    sleep(Duration::from_mins(1)).await;
    assert_eq!(world.script.calls(), 2, "renewed as soon as the back-off allows");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_without_a_good_token_is_tried_again_until_the_kubelet_has_written_one() {
    let file = File::with("file");
    let world = world_over(Duration::ZERO, 24 * HOUR, Arc::new(Arc::clone(&file)));
    world.credentials.vouch(&world.token("file"));
    world.obtain("file").await.unwrap();
    file.set(Ok(None));
    sleep(4 * HOUR).await;
    assert_eq!(world.script.calls(), 1);
    let now = world.clock.now();
    assert!(matches!(&*world.credentials.state(), State::Available { renew_at, .. } if *renew_at > now));
    file.set(Ok(Some("newer")));
    sleep(Duration::from_mins(1)).await;
    assert_eq!(world.script.calls(), 2, "renewed, though nobody has told of the new token");
    assert!(world.cached("newer").is_some());
    // With none until the end of what is served, nothing is tried beyond it.
    file.set(Ok(None));
    sleep(7 * HOUR).await;
    assert!(matches!(&*world.credentials.state(), State::Empty));
    file.set(Ok(Some("newest")));
    sleep(HOUR).await;
    assert_eq!(world.script.calls(), 2, "the pod's next request fetches");
    assert_eq!(world.obtain("newest").await.unwrap().access_key_id, "ASIA3");
}

#[tokio::test(start_paused = true)]
async fn a_request_with_a_rotated_token_may_overtake_the_news_of_it() {
    let file = File::with("old");
    let world = world_over(Duration::ZERO, 24 * HOUR, Arc::new(Arc::clone(&file)));
    world.obtain("old").await.unwrap();
    world.script.answer(|_| Err(Refusal::EksAuthUnavailable(Outage::Transport)));
    file.set(Ok(Some("new")));
    assert_eq!(world.obtain("new").await.unwrap().access_key_id, "ASIA1");
    assert!(world.cached("new").is_some() && world.cached("old").is_some());
    // Vain looks are rare, so that what is made up keeps nobody busy; after a while the file counts again.
    world.obtain("made up").await.unwrap_err();
    file.set(Ok(Some("newer")));
    world.obtain("newer").await.unwrap_err();
    sleep(policy::FILE_LOOK_INTERVAL).await;
    assert_eq!(world.obtain("newer").await.unwrap().access_key_id, "ASIA1");
    assert_eq!(world.script.calls(), 2, "the first fetch, and one for what was made up");
}
