//! EKS Auth by a script: how long it takes, when it is down, when it throttles. It keeps a log of its calls, which is all
//! that the tests know of what an agent does.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::sleep;
use zeroize::Zeroizing;

use super::fleet::Fleet;
use crate::{
    credentials::{Grant, PresentedToken, Upstream, UpstreamFuture},
    pod_uid::PodUid,
    refusal::{Outage, Refusal, UpstreamError},
    token,
};

/// What is wrong for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nobody is answered.
    Down,
    /// Beyond so many calls in a second, calls are throttled.
    Throttles { above: usize },
    /// Calls are answered, and take this long.
    Slow { latency: Duration },
}

/// A fault and its time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spell {
    pub(super) from: Duration,
    pub(super) to: Duration,
    pub(super) fault: Fault,
}

impl Spell {
    pub(super) fn new(from: Duration, lasts: Duration, fault: Fault) -> Self {
        Self { from, to: from + lasts, fault }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Granted,
    /// The pod's own fault.
    Refused,
    Throttled,
    Down,
}

/// A call. `ended` is none for one that the agent gave up.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) at: Duration,
    pub(super) ended: Option<Duration>,
    pub(super) reply: Reply,
    pub(super) made_up: bool,
}

/// What tokens begin with that no API server signed.
pub(super) const MADE_UP: &str = "made-up";

#[derive(Debug, Default)]
struct Log {
    calls: BTreeMap<PodUid, Vec<Call>>,
    in_flight: BTreeMap<PodUid, usize>,
    most_in_flight: usize,
    /// Arrivals in the current second.
    second: (u64, usize),
}

/// Clones are the same EKS Auth.
#[derive(Clone)]
pub(super) struct EksAuth {
    pub(super) fleet: Arc<Fleet>,
    latency: Duration,
    log: Arc<Mutex<Log>>,
}

impl EksAuth {
    pub(super) fn new(fleet: &Arc<Fleet>, latency: Duration) -> Self {
        Self { fleet: Arc::clone(fleet), latency, log: Arc::default() }
    }

    pub(super) fn calls(&self, pod: PodUid) -> Vec<Call> {
        self.log.lock().unwrap().calls.get(&pod).cloned().unwrap_or_default()
    }

    pub(super) fn total(&self) -> usize {
        self.log.lock().unwrap().calls.values().map(Vec::len).sum()
    }

    /// Calls for one pod at the same time.
    pub(super) fn most_in_flight(&self) -> usize {
        self.log.lock().unwrap().most_in_flight
    }

    fn fault(&self, now: Duration) -> Option<Fault> {
        self.fleet.spells.iter().find(|spell| spell.from <= now && now < spell.to).map(|spell| spell.fault)
    }

    fn reply(&self, log: &mut Log, token: &PresentedToken) -> Reply {
        let (spec, now) = (self.fleet.pods[&token.claims().pod_uid], self.fleet.now());
        log.second = if log.second.0 == now.as_secs() { (log.second.0, log.second.1 + 1) } else { (now.as_secs(), 1) };
        match self.fault(now) {
            Some(Fault::Down) => Reply::Down,
            Some(Fault::Throttles { above }) if log.second.1 > above => Reply::Throttled,
            // A token is bound to its pod, and ends with it.
            _ if spec.ends <= now || token.secret().starts_with(MADE_UP) => Reply::Refused,
            _ if token::expired(token.claims().expires_at, self.fleet.clock.now()) => Reply::Refused,
            _ => spec.fails.unwrap_or(Reply::Granted),
        }
    }

    fn begin(&self, token: &PresentedToken) -> (InFlight, Reply) {
        let pod = token.claims().pod_uid;
        let mut log = self.log.lock().unwrap();
        let reply = self.reply(&mut log, token);
        let calls = log.calls.entry(pod).or_default();
        let made_up = token.secret().starts_with(MADE_UP);
        calls.push(Call { at: self.fleet.now(), ended: None, reply, made_up });
        let call = calls.len() - 1;
        let in_flight = log.in_flight.get(&pod).copied().unwrap_or(0) + 1;
        log.in_flight.insert(pod, in_flight);
        log.most_in_flight = log.most_in_flight.max(in_flight);
        (InFlight { pod, call, log: Arc::clone(&self.log) }, reply)
    }
}

/// A call under way, which its caller may drop.
struct InFlight {
    pod: PodUid,
    call: usize,
    log: Arc<Mutex<Log>>,
}

impl InFlight {
    fn end(self, now: Duration) {
        self.log.lock().unwrap().calls.get_mut(&self.pod).unwrap()[self.call].ended = Some(now);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        *self.log.lock().unwrap().in_flight.get_mut(&self.pod).unwrap() -= 1;
    }
}

impl Upstream for EksAuth {
    fn assume_role(&self, token: Arc<PresentedToken>) -> UpstreamFuture {
        let this = self.clone();
        Box::pin(async move {
            let (call, reply) = this.begin(&token);
            // The life begins when EKS Auth writes them down, not when they arrive.
            let issued_at = this.fleet.clock.now();
            let latency = match this.fault(this.fleet.now()) {
                Some(Fault::Slow { latency }) => latency,
                _ => this.latency,
            };
            if !latency.is_zero() {
                sleep(latency).await;
            }
            let number = call.call;
            call.end(this.fleet.now());
            match reply {
                Reply::Granted => Ok(Grant {
                    access_key_id: format!("ASIA{number}"),
                    secret_access_key: Zeroizing::new("secret".to_owned()),
                    session_token: Zeroizing::new("session".to_owned()),
                    account_id: "123456789012".to_owned(),
                    association_id: "a-1".to_owned(),
                    expires_at: issued_at + this.fleet.pods[&token.claims().pod_uid].life,
                }),
                Reply::Refused => {
                    let error = UpstreamError::new(400, "id", "AccessDeniedException", "no association");
                    Err(Refusal::EksAuthRefused(error))
                }
                Reply::Throttled => Err(Refusal::EksAuthThrottled { retry_after: 1 }),
                Reply::Down => Err(Refusal::EksAuthUnavailable(Outage::Transport)),
            }
        })
    }
}
