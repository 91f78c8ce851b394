//! A node: pods that live as their table says, and an agent that serves them.
use std::{
    collections::BTreeMap,
    future::Future,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    MINUTE, SECOND, SIX_HOURS,
    eks_auth::EksAuth,
    fleet::{Fleet, PodSpec},
    sdks::Sdk,
};
use crate::{
    credentials::{Credentials, Engine, PresentedToken, engine::Limits},
    metrics::Metrics,
    pod_uid::PodUid,
    refusal::Refusal,
};

/// The agent's own deadline for an answer.
const ANSWER_WITHIN: Duration = Duration::from_millis(900);
/// When a client gives a request up.
const HANGS_UP_AFTER: Duration = Duration::from_secs(2);

/// What stands on the node.
pub(super) trait Agent: Send + Sync + 'static {
    /// A pod's cgroup appeared, and its token file with it.
    fn appeared(&self, pod: PodUid);
    /// The kubelet wrote a newer token.
    fn rotated(&self, pod: PodUid);
    /// The pod's cgroup has gone.
    fn ended(&self, pod: PodUid);
    /// A request; the expiration of what is served.
    fn ask(&self, pod: PodUid, token: PresentedToken) -> impl Future<Output = Result<SystemTime, Refusal>> + Send;
}

/// The real engine.
pub(super) struct Ours {
    fleet: Arc<Fleet>,
    eks_auth: EksAuth,
    limits: Limits,
    running: Mutex<Running>,
}

/// What an agent forgets when it ends.
struct Running {
    engine: Arc<Engine>,
    pods: BTreeMap<PodUid, (Credentials, CancellationToken)>,
}

/// The defaults of the command line.
pub(super) fn limits(seed: u64) -> Limits {
    Limits {
        longest_retention: Duration::from_hours(3),
        upstream_concurrency: 64,
        background_per_second: NonZeroU32::new(3).unwrap(),
        cached_pods: 4000,
        prefetch: true,
        seed,
    }
}

impl Ours {
    pub(super) fn new(eks_auth: &EksAuth, limits: Limits) -> Arc<Self> {
        let (fleet, eks_auth) = (Arc::clone(&eks_auth.fleet), eks_auth.clone());
        let engine = engine(&eks_auth, limits);
        Arc::new(Self { fleet, eks_auth, limits, running: Mutex::new(Running { engine, pods: BTreeMap::new() }) })
    }

    /// A new agent, with another seed, that finds the pods there are.
    pub(super) fn restart(&self, seed: u64) {
        let pods = {
            let mut running = self.running.lock().unwrap();
            running.engine = engine(&self.eks_auth, Limits { seed, ..self.limits });
            std::mem::take(&mut running.pods)
        };
        for (pod, (_, ended)) in pods {
            ended.cancel();
            self.appeared(pod);
        }
    }

    pub(super) fn credentials(&self, pod: PodUid) -> Option<Credentials> {
        self.running.lock().unwrap().pods.get(&pod).map(|(credentials, _)| credentials.clone())
    }
}

fn engine(eks_auth: &EksAuth, limits: Limits) -> Arc<Engine> {
    let (upstream, fleet) = (Arc::new(eks_auth.clone()), Arc::clone(&eks_auth.fleet));
    let clock = fleet.clock.clone();
    Engine::new(upstream, fleet, clock, limits, Arc::new(Metrics::new()), Handle::current())
}

/// Tells the owner that the kubelet wrote this token.
pub(super) fn vouch(credentials: &Credentials, token: &PresentedToken) {
    credentials.vouch(token);
}

/// An operator's flush, without waiting for what comes of it.
pub(super) fn flush(credentials: &Credentials) {
    let credentials = credentials.clone();
    tokio::spawn(async move { credentials.flush().await });
}

impl Agent for Ours {
    fn appeared(&self, pod: PodUid) {
        let ended = CancellationToken::new();
        let mut running = self.running.lock().unwrap();
        let credentials = running.engine.open(pod, ended.clone());
        running.pods.insert(pod, (credentials, ended));
        drop(running);
        self.rotated(pod);
    }

    fn rotated(&self, pod: PodUid) {
        if self.fleet.is_readable()
            && let Some(credentials) = self.credentials(pod)
        {
            vouch(&credentials, &self.fleet.token(pod));
        }
    }

    fn ended(&self, pod: PodUid) {
        if let Some((_, ended)) = self.running.lock().unwrap().pods.remove(&pod) {
            ended.cancel();
        }
    }

    /// As `server/route.rs` does.
    async fn ask(&self, pod: PodUid, token: PresentedToken) -> Result<SystemTime, Refusal> {
        let credentials = self.credentials(pod).ok_or(Refusal::PodGone)?;
        if let Some(issued) = credentials.cached(&token.digest(), self.fleet.clock.now()) {
            return Ok(issued.expires_at);
        }
        match timeout(ANSWER_WITHIN, credentials.obtain(token)).await {
            Ok(answer) => Ok(answer?.expires_at),
            Err(_) => Err(Refusal::AnswerDeadline),
        }
    }
}

/// What a served credential has left at least, by its life, while EKS Auth answers.
pub(super) fn least_left(life: Duration) -> Duration {
    if life >= SIX_HOURS { 61 * MINUTE } else { 16 * MINUTE }
}

/// What a pod's client saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Requests that brought credentials.
    pub(super) served: u32,
    /// Requests that did not.
    pub(super) failed: u32,
    /// Served when they had expired.
    pub(super) expired: u32,
    /// Served with less than [`least_left`] while EKS Auth answers.
    pub(super) short: u32,
    /// Served inside the SDK's window, so that it asks again at its next signing.
    pub(super) multiplied: u32,
    pub(super) longest_request: Duration,
    /// From the first try to credentials, however many requests that took.
    pub(super) longest_wait: Duration,
}

impl Seen {
    pub(super) fn add(&mut self, other: &Self) {
        self.served += other.served;
        self.failed += other.failed;
        self.expired += other.expired;
        self.short += other.short;
        self.multiplied += other.multiplied;
        self.longest_request = self.longest_request.max(other.longest_request);
        self.longest_wait = self.longest_wait.max(other.longest_wait);
    }

    pub(super) fn of_all<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        all.into_iter().for_each(|seen| sum.add(seen));
        sum
    }
}

/// Lives all pods' lives.
pub(super) async fn run(agent: &Arc<impl Agent>, fleet: &Arc<Fleet>) -> BTreeMap<PodUid, Seen> {
    let mut lives = JoinSet::new();
    for spec in fleet.pods.values() {
        lives.spawn(live(Arc::clone(agent), Arc::clone(fleet), *spec));
    }
    lives.join_all().await.into_iter().collect()
}

async fn live(agent: Arc<impl Agent>, fleet: Arc<Fleet>, spec: PodSpec) -> (PodUid, Seen) {
    let (pod, mut seen) = (spec.uid(), Seen::default());
    fleet.until(spec.born).await;
    agent.appeared(pod);
    let rotations = async {
        loop {
            fleet.until(fleet.next_rotation(&spec)).await;
            agent.rotated(pod);
        }
    };
    tokio::select! {
        biased;
        () = fleet.until(spec.ends) => {}
        () = rotations => {}
        () = ask_again_and_again(&*agent, &fleet, &spec, &mut seen) => {}
    }
    agent.ended(pod);
    (pod, seen)
}

/// A client until the pod's end.
pub(super) async fn client(agent: Arc<impl Agent>, fleet: Arc<Fleet>, spec: PodSpec) -> Seen {
    let mut seen = Seen::default();
    tokio::select! {
        biased;
        () = fleet.until(spec.ends) => {}
        () = ask_again_and_again(&*agent, &fleet, &spec, &mut seen) => {}
    }
    seen
}

async fn ask_again_and_again(agent: &impl Agent, fleet: &Fleet, spec: &PodSpec, seen: &mut Seen) {
    let Some((sdk, _)) = spec.asks else { return std::future::pending().await };
    let Some(first) = spec.first_ask() else { return std::future::pending().await };
    fleet.until(first).await;
    loop {
        let wanted_at = fleet.now();
        let expires_at = tries(agent, fleet, spec, seen).await;
        seen.longest_wait = seen.longest_wait.max(fleet.now() - wanted_at);
        let left = expires_at.saturating_sub(fleet.now());
        note(seen, fleet, spec, sdk, left);
        sleep(sdk.asks_after(left)).await;
    }
}

fn note(seen: &mut Seen, fleet: &Fleet, spec: &PodSpec, sdk: Sdk, left: Duration) {
    seen.served += 1;
    seen.expired += u32::from(left.is_zero());
    seen.short += u32::from(left < least_left(spec.life) && fleet.answers(fleet.now()));
    seen.multiplied += u32::from(sdk.multiplies(left));
}

/// Three tries a second apart, as SDKs do; the application comes again after half a minute.
async fn tries(agent: &impl Agent, fleet: &Fleet, spec: &PodSpec, seen: &mut Seen) -> Duration {
    for attempt in 1_u32.. {
        let asked_at = fleet.now();
        let answer = timeout(HANGS_UP_AFTER, agent.ask(spec.uid(), fleet.token(spec.uid()))).await;
        seen.longest_request = seen.longest_request.max(fleet.now() - asked_at);
        if let Ok(Ok(expires_at)) = answer {
            return Fleet::since_start(expires_at);
        }
        seen.failed += 1;
        sleep(if attempt.is_multiple_of(3) { 30 * SECOND } else { SECOND }).await;
    }
    unreachable!()
}
