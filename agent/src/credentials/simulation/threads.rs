//! What is read without a lock, from other threads than the owner's: published states, the time of the last use, and the
//! cache that several owners share. Real threads and real time, bounded in count.
use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use super::{HOUR, SIX_HOURS, fleet::PodSpec, node};
use crate::{
    credentials::{
        Clock, Credentials, Engine, Grant, NoTokens, PresentedToken, State, Upstream, UpstreamFuture, engine::Limits,
        handle::Message,
    },
    metrics::Metrics,
    pod_uid::PodUid,
    refusal::Refusal,
    token::TokenDigest,
};

const PODS: usize = 4;
const CACHED: usize = 2;
const ROUNDS: usize = 1500;
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers at once, with numbers that grow.
struct Counting(Arc<AtomicU64>);

impl Upstream for Counting {
    fn assume_role(&self, _: Arc<PresentedToken>) -> UpstreamFuture {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            tokio::task::yield_now().await;
            Ok(Grant {
                access_key_id: format!("{number}"),
                secret_access_key: "secret".to_owned().into(),
                session_token: "session".to_owned().into(),
                account_id: "123456789012".to_owned(),
                association_id: String::new(),
                expires_at: Clock::system().now() + SIX_HOURS,
            })
        })
    }
}

struct Pod {
    uid: PodUid,
    credentials: Credentials,
    ended: CancellationToken,
    /// Somebody saw that it has ended.
    gone: AtomicBool,
}

impl Pod {
    fn token(&self) -> PresentedToken {
        super::fleet::token(self.uid, &self.uid.to_string(), Clock::system().now() + HOUR)
    }
}

/// Reads until told to stop. Panics when it sees older credentials after newer ones, any after the end, or any for a token
/// that nobody vouched for.
fn read(pods: &[Pod], stop: &AtomicBool) -> usize {
    let (mut newest, mut reads) = (BTreeMap::new(), 0);
    let digests: Vec<TokenDigest> = pods.iter().map(|pod| pod.token().digest()).collect();
    while !stop.load(Ordering::Relaxed) {
        for (pod, digest) in pods.iter().zip(&digests) {
            let gone = pod.gone.load(Ordering::Acquire);
            let now = Clock::system().now();
            assert!(pod.credentials.cached(&TokenDigest::of("another"), now).is_none());
            let Some(issued) = pod.credentials.cached(digest, now) else { continue };
            assert!(!gone, "served after the end");
            assert!(issued.body.starts_with(b"{\"AccessKeyId\""), "wiped while it is served");
            let number: u64 = issued.access_key_id.parse().unwrap();
            let last = newest.insert(pod.uid, number).unwrap_or(0);
            assert!(number >= last, "{number} after {last}");
            reads += 1;
        }
    }
    reads
}

/// Asks as the serving thread does, on a runtime of its own. Each request is answered.
fn ask(pods: &[Pod], seed: u64) -> (usize, usize) {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut served, mut gone) = (0, 0);
    for _ in 0..ROUNDS {
        let pod = &pods[random.usize(..PODS)];
        match runtime.block_on(async { tokio::time::timeout(PATIENCE, pod.credentials.obtain(pod.token())).await }) {
            Ok(Ok(_)) => served += 1,
            Ok(Err(Refusal::PodGone)) => gone += 1,
            other => panic!("{other:?}"),
        }
    }
    (served, gone)
}

fn disturb(pods: &[Pod]) {
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..ROUNDS {
        let pod = &pods[random.usize(..PODS)];
        match random.u8(..3) {
            0 => drop(pod.credentials.messages.try_send(Message::Evict)),
            1 => node::vouch(&pod.credentials, &pod.token()),
            _ => drop(pod.credentials.state()),
        }
        thread::yield_now();
    }
}

/// The thread of the pods' owners. It ends when this is dropped.
struct Owners {
    handle: Handle,
    stop: CancellationToken,
}

impl Owners {
    fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let (handle, stop) = (runtime.handle().clone(), CancellationToken::new());
        let stopped = stop.clone();
        thread::spawn(move || runtime.block_on(stopped.cancelled()));
        Self { handle, stop }
    }
}

impl Drop for Owners {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn other_threads_see_states_in_order_and_nothing_after_the_end() {
    let owners = Owners::start();
    let limits = Limits { cached_pods: CACHED, background_per_second: NonZeroU32::MAX, ..node::limits(1) };
    let (upstream, metrics) = (Arc::new(Counting(Arc::default())), Arc::new(Metrics::new()));
    let engine = Engine::new(upstream, Arc::new(NoTokens), Clock::system(), limits, metrics, owners.handle.clone());
    let pods: Vec<Pod> = (0..PODS)
        .map(|number| {
            let (uid, ended) = (PodSpec::new(number, HOUR).uid(), CancellationToken::new());
            let credentials = engine.open(uid, ended.clone());
            Pod { uid, credentials, ended, gone: AtomicBool::new(false) }
        })
        .collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // A failure below ends the readers too, or the scope would wait for them for ever.
        let stopping = StopOnDrop(&stop);
        let readers = [0, 1].map(|_| scope.spawn(|| read(&pods, &stop)));
        let askers = [1, 2].map(|seed| {
            scope.spawn({
                let pods = &pods;
                move || ask(pods, seed)
            })
        });
        disturb(&pods);
        for asker in askers {
            let (served, gone) = asker.join().unwrap();
            assert_eq!((served, gone), (ROUNDS, 0));
        }
        let available =
            || pods.iter().filter(|pod| matches!(&*pod.credentials.state(), State::Available { .. })).count();
        wait_until("the cache holds no more than it may", || available() <= CACHED);
        for pod in &pods {
            pod.ended.cancel();
            wait_until("the pod has ended", || matches!(&*pod.credentials.state(), State::Ended));
            pod.gone.store(true, Ordering::Release);
        }
        assert_eq!(ask(&pods, 4), (0, ROUNDS));
        drop(stopping);
        for reader in readers {
            assert!(reader.join().unwrap() > 0, "a reader that was served nothing shows nothing");
        }
    });
}
