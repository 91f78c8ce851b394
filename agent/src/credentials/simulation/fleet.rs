//! The pods of a node over days, as a table: when each lives, what its credentials' life is, how it asks. The kubelet's
//! tokens follow from it as a function of time.
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::{Instant, sleep_until};

use super::{
    DAY, SIX_HOURS,
    eks_auth::{Reply, Spell},
    sdks::Sdk,
};
use crate::{
    credentials::{Clock, PresentedToken, TokenSource, Unreadable},
    pod_uid::PodUid,
    token::{Claims, TokenDigest},
};

const START: Duration = Duration::from_hours(500_000);
pub(super) const TOKEN_LIFE: Duration = DAY;
/// The kubelet writes a new token when four fifths of the old one's life have passed.
pub(super) const ROTATION: Duration = Duration::from_mins(24 * 60 * 4 / 5);

/// One pod. Times count from the simulation's start unless they say otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct PodSpec {
    pub(super) number: usize,
    pub(super) born: Duration,
    pub(super) ends: Duration,
    /// Of the credentials that EKS Auth gives it.
    pub(super) life: Duration,
    /// Who asks, and how long after the pod's birth for the first time.
    pub(super) asks: Option<(Sdk, Duration)>,
    /// What EKS Auth answers to every call for it, whatever it answers to others.
    pub(super) fails: Option<Reply>,
}

impl PodSpec {
    /// Lives from the start for `ends`, with credentials of six hours, and never asks.
    pub(super) fn new(number: usize, ends: Duration) -> Self {
        Self { number, born: Duration::ZERO, ends, life: SIX_HOURS, asks: None, fails: None }
    }

    pub(super) fn born_at(self, born: Duration) -> Self {
        Self { born, ..self }
    }

    pub(super) fn life(self, life: Duration) -> Self {
        Self { life, ..self }
    }

    pub(super) fn asks(self, sdk: Sdk, first: Duration) -> Self {
        Self { asks: Some((sdk, first)), ..self }
    }

    pub(super) fn fails(self, reply: Reply) -> Self {
        Self { fails: Some(reply), ..self }
    }

    pub(super) fn uid(&self) -> PodUid {
        format!("00000000-0000-4000-8000-{:012x}", self.number).parse().unwrap()
    }

    /// When it asks for the first time, if it does while it lives.
    pub(super) fn first_ask(&self) -> Option<Duration> {
        self.asks.map(|(_, after)| self.born + after).filter(|at| *at < self.ends)
    }

    /// Which of its tokens the kubelet's file holds.
    fn rotations(&self, now: Duration) -> u32 {
        u32::try_from(now.saturating_sub(self.born).as_nanos() / ROTATION.as_nanos()).unwrap()
    }
}

/// All pods, the kubelet that writes their tokens, and what is wrong with EKS Auth when.
pub(super) struct Fleet {
    pub(super) pods: BTreeMap<PodUid, PodSpec>,
    pub(super) spells: Vec<Spell>,
    pub(super) clock: Clock,
    started: Instant,
    readable: AtomicBool,
}

impl Fleet {
    pub(super) fn new(pods: impl IntoIterator<Item = PodSpec>) -> Arc<Self> {
        Self::with(pods, &[])
    }

    pub(super) fn with(pods: impl IntoIterator<Item = PodSpec>, spells: &[Spell]) -> Arc<Self> {
        Arc::new(Self {
            pods: pods.into_iter().map(|pod| (pod.uid(), pod)).collect(),
            spells: spells.to_vec(),
            clock: Clock::virtual_from(UNIX_EPOCH + START),
            started: Instant::now(),
            readable: AtomicBool::new(true),
        })
    }

    /// From now on the kubelet's files cannot be read, or can again.
    pub(super) fn set_readable(&self, readable: bool) {
        self.readable.store(readable, Ordering::Relaxed);
    }

    pub(super) fn is_readable(&self) -> bool {
        self.readable.load(Ordering::Relaxed)
    }

    /// The longest that a background call queues: one for each pod before it at the default rate, and the gate's longest
    /// pauses after it was throttled.
    pub(super) fn longest_queue(&self) -> Duration {
        Duration::from_secs(self.pods.len() as u64 / 3 + 90)
    }

    /// Whether EKS Auth answers, and has for long enough that everything due has been fetched.
    pub(super) fn answers(&self, now: Duration) -> bool {
        !self.spells.iter().any(|spell| spell.from <= now && now < spell.to + self.longest_queue())
    }

    /// Since the start.
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The time of day as time since the start.
    pub(super) fn since_start(at: SystemTime) -> Duration {
        at.duration_since(UNIX_EPOCH + START).unwrap()
    }

    pub(super) async fn until(&self, moment: Duration) {
        sleep_until(self.started + moment).await;
    }

    /// When the kubelet next writes a token for the pod.
    pub(super) fn next_rotation(&self, pod: &PodSpec) -> Duration {
        pod.born + ROTATION * (pod.rotations(self.now()) + 1)
    }

    /// What the pod's token file holds now.
    pub(super) fn token(&self, pod: PodUid) -> PresentedToken {
        let spec = self.pods[&pod];
        let rotations = spec.rotations(self.now());
        token(pod, &format!("{pod}/{rotations}"), UNIX_EPOCH + START + spec.born + ROTATION * rotations + TOKEN_LIFE)
    }
}

/// A token of the pod, whoever made it.
pub(super) fn token(pod: PodUid, raw: &str, expires_at: SystemTime) -> PresentedToken {
    let (namespace, service_account) = ("default".into(), "app".into());
    let claims = Claims { pod_uid: pod, pod_name: None, namespace, service_account, expires_at };
    PresentedToken::new(raw, TokenDigest::of(raw), claims)
}

impl TokenSource for Fleet {
    fn newest(&self, pod: PodUid) -> Result<Option<PresentedToken>, Unreadable> {
        Ok(self.is_readable().then(|| self.token(pod)))
    }
}
