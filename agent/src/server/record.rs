//! What is said about grants and refusals: metrics always, log lines at a limited rate for each pod.
use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use super::Context;
use crate::{
    attestation::{Caller, Evidence},
    audit::{Decision, Event},
    credentials::Issued,
    metrics::Answer,
    namespace::Namespace,
    pod_uid::PodUid,
    refusal::Refusal,
    telemetry::{RateLimiter, Verdict},
    token::Claims,
};

/// Refusals logged at once for one pod, and the time after which it may have one more.
const BURST: u32 = 5;
const INTERVAL: Duration = Duration::from_secs(10);
/// Pods whose rate is remembered: more than run on any node.
const PODS: usize = 2048;

/// Whose share of the log a line takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Speaker {
    /// A pod.
    Pod(PodUid),
    /// Callers that are no pods, by the namespace they are in.
    Namespace(u64),
    /// A pod that asks for more than its share.
    Eager(PodUid),
    /// A pod that presents other pods' tokens.
    Impersonator(PodUid),
}

pub(super) fn limiter() -> RateLimiter<Speaker> {
    RateLimiter::new(BURST, INTERVAL, PODS)
}

/// Counts and logs an answer with credentials: a pod's first at info, later ones at debug.
pub(super) fn granted(context: &Context, caller: &Caller, issued: &Issued, kind: Answer, duration: Duration) {
    context.metrics.grants.inc();
    context.metrics.responded(hyper::StatusCode::OK);
    context.metrics.answered(kind, duration);
    context.audit.push(Event {
        at: context.clock.now(),
        who: caller.into(),
        subject: Some(caller.pod().credentials().shared_subject()),
        decision: Decision::Granted { names: Arc::clone(&issued.names), cached: kind == Answer::Cached },
    });
    macro_rules! log {
        ($level:ident, $message:literal) => {
            tracing::$level!(
                decision = "granted",
                pod_uid = %caller.pod().uid(),
                container_id = caller.container().map(tracing::field::display),
                cgroup_id = caller.cgroup().0,
                uid = caller.user(),
                access_key_id = issued.access_key_id,
                association_id = issued.association_id,
                cached = kind == Answer::Cached,
                ?duration,
                $message
            )
        };
    }
    if caller.pod().first_grant() {
        log!(info, "the pod got its first credentials");
    } else {
        log!(debug, "the pod got credentials");
    }
}

/// Counts a refusal, and logs it unless this pod (or, of callers that are no pods, this namespace) has had its share of
/// the log.
pub(super) fn refused(context: &Context, namespace: &Namespace, who: Evidence, refusal: &Refusal, duration: Duration) {
    context.metrics.refused(refusal);
    let (at, pod) = (context.clock.now(), who.pod.and_then(|uid| context.attestor.pod(uid)));
    if let Some(pod) = &pod {
        pod.was_refused(at, refusal);
    }
    let subject = pod.map(|pod| pod.credentials().shared_subject());
    context.audit.push(Event { at, who, subject, decision: Decision::Refused(refusal.clone()) });
    let speaker = who.pod.map_or(Speaker::Namespace(namespace.cookie), Speaker::Pod);
    let Some(suppressed) = may_log(context, speaker) else { return };
    tracing::info!(
        decision = "refused",
        reason = refusal.reason(),
        status = refusal.status().as_u16(),
        pod_uid = who.pod.map(tracing::field::display),
        container_id = who.container.map(tracing::field::display),
        cgroup_id = who.cgroup.map(|cgroup| cgroup.0),
        uid = who.user,
        netns_cookie = namespace.cookie,
        suppressed,
        ?duration,
        "{}",
        refusal.message()
    );
}

/// Logs that a caller presented another pod's token. Not part of the pod's share: other refusals must not hide it.
pub(super) fn impersonation(context: &Context, caller: &Caller, claims: &Claims) {
    let Some(suppressed) = may_log(context, Speaker::Impersonator(caller.pod().uid())) else { return };
    tracing::warn!(
        decision = "refused",
        reason = "foreign_token",
        pod_uid = %caller.pod().uid(),
        container_id = caller.container().map(tracing::field::display),
        cgroup_id = caller.cgroup().0,
        uid = caller.user(),
        claimed_pod_uid = %claims.pod_uid,
        claimed_namespace = %claims.namespace,
        claimed_service_account = %claims.service_account,
        suppressed,
        "impersonation attempt: a pod presented the service account token of another pod"
    );
}

/// Counts, and tells, that a pod must wait as it asks for more than its share.
pub(super) fn delayed(context: &Context, caller: &Caller) {
    context.metrics.delays.inc();
    let Some(suppressed) = may_log(context, Speaker::Eager(caller.pod().uid())) else { return };
    tracing::info!(
        decision = "delayed",
        pod_uid = %caller.pod().uid(),
        container_id = caller.container().map(tracing::field::display),
        cgroup_id = caller.cgroup().0,
        uid = caller.user(),
        suppressed,
        "the pod asks for more than its share of the agent's time (--max-share-per-pod): its connections wait"
    );
}

/// How many lines were left out before this one, or `None` when this one is too.
fn may_log(context: &Context, speaker: Speaker) -> Option<u64> {
    match context.refusal_log.lock().unwrap_or_else(PoisonError::into_inner).admit(speaker, Instant::now()) {
        Verdict::Log { suppressed } => Some(suppressed),
        Verdict::Suppress => None,
    }
}
