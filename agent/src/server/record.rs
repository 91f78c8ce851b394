//! What is said about grants and refusals: metrics always, log lines at a limited rate for each pod.
use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use super::Context;
use crate::{
    attestation::Caller,
    credentials::Issued,
    metrics::Answer,
    pod_uid::PodUid,
    refusal::Refusal,
    telemetry::{RateLimiter, Verdict},
};

/// Refusals logged at once for one pod, and the time after which it may have one more.
const BURST: u32 = 5;
const INTERVAL: Duration = Duration::from_secs(10);
/// Pods whose rate is remembered: more than run on any node.
const PODS: usize = 2048;

pub(super) fn limiter() -> RateLimiter<Option<PodUid>> {
    RateLimiter::new(BURST, INTERVAL, PODS)
}

/// Counts and logs an answer with credentials: a pod's first at info, later ones at debug.
pub(super) fn granted(context: &Context, caller: &Caller, issued: &Issued, kind: Answer, duration: Duration) {
    context.metrics.grants.inc();
    context.metrics.responded(hyper::StatusCode::OK);
    context.metrics.answered(kind, duration);
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

/// Counts a refusal, and logs it unless this pod has had its share of the log.
pub(super) fn refused(context: &Context, caller: Option<&Caller>, refusal: &Refusal, duration: Duration) {
    context.metrics.refused(refusal);
    let pod = caller.map(|caller| caller.pod().uid());
    let verdict = context.refusal_log.lock().unwrap_or_else(PoisonError::into_inner).admit(pod, Instant::now());
    let Verdict::Log { suppressed } = verdict else { return };
    tracing::info!(
        decision = "refused",
        reason = refusal.reason(),
        status = refusal.status().as_u16(),
        pod_uid = pod.map(tracing::field::display),
        container_id = caller.and_then(Caller::container).map(tracing::field::display),
        cgroup_id = caller.map(|caller| caller.cgroup().0),
        uid = caller.map(Caller::user),
        suppressed,
        ?duration,
        "{}",
        refusal.message()
    );
}
