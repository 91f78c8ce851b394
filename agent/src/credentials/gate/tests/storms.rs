//! Many pods against an EKS Auth that throttles or is dead.
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::credentials::policy as renewal;

/// An EKS Auth that answers so many calls a second, and the others with throttling; or none at all.
struct Upstream {
    alive: AtomicBool,
    capacity: Mutex<bucket::Bucket>,
    calls: AtomicUsize,
    throttled: AtomicUsize,
}

impl Upstream {
    fn new(per_second: u32) -> Arc<Self> {
        let capacity = bucket::Bucket::new(NonZeroU32::new(per_second).unwrap(), Instant::now());
        Arc::new(Self {
            alive: AtomicBool::new(true),
            capacity: Mutex::new(capacity),
            calls: AtomicUsize::new(0),
            throttled: AtomicUsize::new(0),
        })
    }

    async fn call(&self) -> Outcome {
        self.calls.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(50)).await;
        if !self.alive.load(Ordering::Relaxed) {
            return Outcome::Failed;
        }
        if self.capacity.lock().unwrap().take(Instant::now()) {
            return Outcome::Answered;
        }
        self.throttled.fetch_add(1, Ordering::Relaxed);
        Outcome::Throttled
    }

    fn counts(&self) -> (usize, usize) {
        (self.calls.load(Ordering::Relaxed), self.throttled.load(Ordering::Relaxed))
    }
}

/// A pod whose client waits until it has credentials, with a pod's own back-off after failed calls.
async fn pod(gate: Gate, upstream: Arc<Upstream>, seed: u64) {
    let mut jitter = fastrand::Rng::with_seed(seed);
    let mut priority = Priority::Waiting;
    for failures in 1.. {
        let permit = gate.enter(priority).admitted().await;
        let outcome = upstream.call().await;
        permit.finish(outcome);
        match outcome {
            Outcome::Answered => return,
            Outcome::Throttled => {}
            Outcome::Failed => priority = Priority::Retry,
        }
        sleep(renewal::back_off(failures, jitter.f64())).await;
    }
}

fn pods(gate: &Gate, upstream: &Arc<Upstream>, count: u64) -> JoinSet<()> {
    (0..count).map(|seed| pod(gate.clone(), Arc::clone(upstream), seed)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_throttling_storm_passes() {
    let (gate, upstream) = (gate(64, 3), Upstream::new(20));
    let start = Instant::now();
    let clients = pods(&gate, &upstream, 2000);
    clients.join_all().await;
    let (calls, throttled) = upstream.counts();
    assert_eq!(calls - throttled, 2000);
    // At 20 a second they need 99 s if nothing that EKS Auth would answer goes unused. It takes one call at a time, so
    // that every second one is one too many: the finest that a limit can be.
    assert!(start.elapsed() < Duration::from_secs(150), "{:?}", start.elapsed());
    assert!(throttled < 800, "{throttled} of {calls} were throttled");
    sleep(Duration::from_mins(5)).await;
    let state = gate.snapshot();
    assert_eq!((state.limit, state.in_flight, state.queued), (64, 0, Queued::default()));
}

#[tokio::test(start_paused = true)]
async fn a_dead_upstream_sees_each_pod_once_and_then_the_rate_of_retries() {
    let (gate, upstream) = (gate(64, 3), Upstream::new(10_000));
    upstream.alive.store(false, Ordering::Relaxed);
    let clients = pods(&gate, &upstream, 2000);
    sleep(Duration::from_mins(10)).await;
    let (calls, _) = upstream.counts();
    assert!((2000 + 5900..=2000 + 10 + 6000).contains(&calls), "{calls}");
    // A pod that has not failed is not made to wait for those that have.
    assert!(now(&mut gate.enter(Priority::Waiting)).await.is_some());
    upstream.alive.store(true, Ordering::Relaxed);
    let back = Instant::now();
    clients.join_all().await;
    // The longest back-off of a pod, and what is left of its queue.
    assert!(back.elapsed() < Duration::from_secs(40), "{:?}", back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn two_hundred_failing_pods_do_not_slow_each_other_down() {
    let (gate, upstream) = (gate(64, 3), Upstream::new(10_000));
    upstream.alive.store(false, Ordering::Relaxed);
    let _failing = pods(&gate, &upstream, 200);
    sleep(Duration::from_mins(10)).await;
    let (before, _) = upstream.counts();
    sleep(Duration::from_hours(1)).await;
    // 30 to 33 s between the calls of a pod, 31.5 s on average, and 50 ms for the call.
    let (calls, expected) = (upstream.counts().0 - before, 200 * 3600 * 100 / 3155);
    assert!(calls * 100 >= expected * 98 && calls <= expected * 101 / 100, "{calls} of {expected}");
}
