//! What the agent counts, in the names that operators know.
//!
//! Everything is served in Prometheus' text format 0.0.4, not in `OpenMetrics`: there a counter's name may end as it
//! likes, and three names have to stay what AWS's agent calls them, without `_total`.
use std::fmt;
use std::time::Duration;

use agent_ebpf::names;
use hyper::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::refusal::Refusal;

mod sources;
#[cfg(test)]
mod tests;
mod total;

pub use sources::{PodCounts, SteeringCounts};
pub use total::Total;

use sources::Sources;

/// Content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Bounds of an answer's duration in seconds: a cached answer takes tens of microseconds, a fetched one tens of
/// milliseconds, and at 0.9 s the caller is sent away.
const ANSWER_SECONDS: [f64; 13] =
    [0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 0.9, 1.0, 2.5];

/// Bounds of a call to EKS Auth in seconds.
const EKS_AUTH_SECONDS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// All metrics of the process. The handles are shared atomics: to count is an atomic addition, and only
/// [`Metrics::refused`] and [`Metrics::cache_error`], which no served credential passes, look anything up.
pub struct Metrics {
    registry: Registry,
    responses: Family<CodeLabel, Total>,
    responses_ok: Total,
    refusals: Family<ReasonLabel, Total>,
    cache_errors: Family<CacheErrorLabels, Total>,
    interference: Family<InterferenceLabels, Total>,
    renewals: [Total; EksAuthOutcome::ALL.len()],
    answer_seconds: [Histogram; Answer::ALL.len()],
    eks_auth_seconds: [Histogram; EksAuthOutcome::ALL.len()],
    sources: Sources,

    /// Credentials taken from the cache (`pod_identity_cache_state{state="hit"}`).
    pub cache_hits: Total,
    /// Credentials that had to be fetched first (`…{state="miss"}`).
    pub cache_misses: Total,
    /// Credentials dropped before they were replaced (`…{state="evicted"}`).
    pub cache_evictions: Total,
    /// Answers that carried credentials.
    pub grants: Total,
    /// Tokens presented by another pod than their own.
    pub impersonation_attempts: Total,
    /// Connections accepted.
    pub connections_accepted: Total,
    /// Times that a connection had to wait because its pod asked for more than its share.
    pub delays: Total,
    /// Connections open now.
    pub connections: Gauge,
    /// Pods known now.
    pub pods: Gauge,
    /// Network namespaces with a listener now.
    pub namespaces: Gauge,
    /// Network namespaces of pods that could not be served.
    pub namespace_failures: Total,
    /// Programs of others that run before the agent's own now, at all hooks together.
    pub preceding_programs: Gauge,
    /// Rescans that found something the events had missed, and repaired it.
    pub reconciliations: Total,
}

/// How a request ended, for its duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Served from the cache.
    Cached,
    /// Served after a fetch.
    Fetched,
    /// Refused.
    Refused,
}

impl Answer {
    const ALL: [Self; 3] = [Self::Cached, Self::Fetched, Self::Refused];

    fn label(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Fetched => "fetched",
            Self::Refused => "refused",
        }
    }
}

/// How a call to EKS Auth ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EksAuthOutcome {
    /// Credentials came.
    Ok,
    /// The pod is refused.
    Refused,
    /// The node's own credentials are refused.
    NodeCredentials,
    /// The node is throttled.
    Throttled,
    /// No answer, a server error, or an answer that makes no sense.
    Unavailable,
}

impl EksAuthOutcome {
    const ALL: [Self; 5] = [Self::Ok, Self::Refused, Self::NodeCredentials, Self::Throttled, Self::Unavailable];

    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::NodeCredentials => "node_credentials",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What a failed renewal means for cached credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheErrorKind {
    /// They are kept, and renewal is tried again.
    Recoverable,
    /// They are dropped.
    NonRecoverable,
}

/// What somebody did to one of the agent's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interference {
    /// Took it off its cgroup.
    Detached,
    /// Put another in its place.
    Replaced,
    /// Had another run before it.
    Preceded,
}

impl Interference {
    const ALL: [Self; 3] = [Self::Detached, Self::Replaced, Self::Preceded];

    fn label(self) -> &'static str {
        match self {
            Self::Detached => "detached",
            Self::Replaced => "replaced",
            Self::Preceded => "preceded",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InterferenceLabels {
    program: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheErrorLabels {
    r#type: &'static str,
    code: &'static str,
}

impl Metrics {
    /// Registers every metric, at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("pod_identity");
        let r = &mut registry;
        let responses = register(r, "http_response", "HTTP responses by status", Family::default());
        let refusals = register(r, "refusals_total", "Requests refused, by reason", Family::default());
        for reason in Refusal::REASONS {
            let _ = refusals.get_or_create_owned(&ReasonLabel { reason });
        }
        let cache_state: Family<[(&str, &str); 1], Total> =
            register(r, "cache_state", "Requests by what the cache held for them, and evictions", Family::default());
        let state = |state| cache_state.get_or_create_owned(&[("state", state)]);
        let build: Family<[(&str, &str); 1], Gauge> = register(r, "build_info", "The running build", Family::default());
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        let sources = Sources::default();
        r.register_collector(Box::new(sources.clone()));
        Self {
            responses_ok: responses.get_or_create_owned(&CodeLabel { code: StatusCode::OK.as_u16() }),
            responses,
            refusals,
            cache_errors: register(
                r,
                "cache_errors",
                "Failed renewals by what they mean for the cache",
                Family::default(),
            ),
            interference: interference(r),
            renewals: renewals(r),
            answer_seconds: histograms(
                r,
                ("answer_seconds", "From a request's head to its answer"),
                Answer::ALL.map(Answer::label),
                || Histogram::new(ANSWER_SECONDS),
            ),
            eks_auth_seconds: histograms(
                r,
                ("eks_auth_seconds", "Calls to EKS Auth, the wait for a place included"),
                EksAuthOutcome::ALL.map(EksAuthOutcome::label),
                || Histogram::new(EKS_AUTH_SECONDS),
            ),
            sources,
            cache_hits: state("hit"),
            cache_misses: state("miss"),
            cache_evictions: state("evicted"),
            grants: register(r, "grants_total", "Answers that carried credentials", Total::default()),
            impersonation_attempts: register(
                r,
                "impersonation_attempts_total",
                "Tokens presented by another pod than their own",
                Total::default(),
            ),
            connections_accepted: register(r, "connections_total", "Connections accepted", Total::default()),
            delays: register(
                r,
                "delays_total",
                "Waits of connections whose pod asked for more than its share",
                Total::default(),
            ),
            connections: register(r, "connections", "Connections open now", Gauge::default()),
            pods: register(r, "pods", "Pods known now", Gauge::default()),
            namespaces: register(r, "namespaces", "Network namespaces with a listener now", Gauge::default()),
            namespace_failures: register(
                r,
                "namespace_failures_total",
                "Network namespaces of pods that could not be served",
                Total::default(),
            ),
            preceding_programs: register(
                r,
                "preceding_programs",
                "eBPF programs of others that run before the agent's now",
                Gauge::default(),
            ),
            reconciliations: register(r, "reconciliations_total", "Repairs made by a rescan", Total::default()),
            registry,
        }
    }

    /// Counts a response by its status; 200, the only one that is hurried, without a look-up.
    pub fn responded(&self, status: StatusCode) {
        if status == StatusCode::OK {
            self.responses_ok.inc();
        } else {
            self.responses.get_or_create(&CodeLabel { code: status.as_u16() }).inc();
        }
    }

    /// Counts a refusal by its reason; its response is counted by [`Metrics::responded`].
    pub fn refused(&self, refusal: &Refusal) {
        self.refusals.get_or_create(&ReasonLabel { reason: refusal.reason() }).inc();
        if matches!(refusal, Refusal::ForeignToken) {
            self.impersonation_attempts.inc();
        }
    }

    /// Counts a failed renewal. `code` is one of a fixed set, never text that came over the wire.
    pub fn cache_error(&self, kind: CacheErrorKind, code: &'static str) {
        let r#type = match kind {
            CacheErrorKind::Recoverable => "Recoverable",
            CacheErrorKind::NonRecoverable => "NonRecoverable",
        };
        self.cache_errors.get_or_create(&CacheErrorLabels { r#type, code }).inc();
    }

    /// Counts what somebody did to a program.
    pub fn interfered(&self, program: &'static str, interference: Interference) {
        self.interference.get_or_create(&InterferenceLabels { program, kind: interference.label() }).inc();
    }

    /// Books the time from a request's head to its answer.
    pub fn answered(&self, answer: Answer, took: Duration) {
        observe(&self.answer_seconds, answer as usize, took);
    }

    /// Books the time of a call to EKS Auth; a renewal is one for a pod that still had valid credentials.
    pub fn asked_eks_auth(&self, outcome: EksAuthOutcome, renewal: bool, took: Duration) {
        observe(&self.eks_auth_seconds, outcome as usize, took);
        if let Some(renewals) = self.renewals.get(outcome as usize).filter(|_| renewal) {
            renewals.inc();
        }
    }

    /// Says where pods are counted by what they have. As [`Metrics::read_steering_from`].
    pub fn read_pods_from(&self, read: impl Fn() -> PodCounts + Send + Sync + 'static) {
        let _ = self.sources.0.pods.set(Box::new(read));
    }

    /// Says where the programs' counters are read. Called once, when they are loaded; later calls change nothing.
    pub fn read_steering_from(&self, read: impl Fn() -> Vec<SteeringCounts> + Send + Sync + 'static) {
        let _ = self.sources.0.steering.set(Box::new(read));
    }

    /// Says where the number of log lines is read that were dropped because the output did not take them.
    pub fn read_dropped_log_lines_from(&self, read: impl Fn() -> u64 + Send + Sync + 'static) {
        let _ = self.sources.0.dropped_log_lines.set(Box::new(read));
    }

    /// Everything in Prometheus' text format, see [`CONTENT_TYPE`].
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        // Writing to a String cannot fail.
        let _ = encode_registry(&mut text, &self.registry);
        text
    }
}

/// Nothing was renewed yet.
fn renewals(registry: &mut Registry) -> [Total; EksAuthOutcome::ALL.len()] {
    let help = "Calls to EKS Auth for pods that still had valid credentials";
    let family: Family<[(&str, &str); 1], Total> = register(registry, "renewals_total", help, Family::default());
    EksAuthOutcome::ALL.map(|outcome| family.get_or_create_owned(&[("outcome", outcome.label())]))
}

/// Nothing was done to any program yet.
fn interference(registry: &mut Registry) -> Family<InterferenceLabels, Total> {
    let help = "What others did to the agent's eBPF programs";
    let family = register(registry, "interference_total", help, Family::default());
    for program in names::PROGRAMS {
        for kind in Interference::ALL.map(Interference::label) {
            let _ = family.get_or_create_owned(&InterferenceLabels { program, kind });
        }
    }
    family
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

fn register<M>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M
where
    M: prometheus_client::registry::Metric + Clone,
{
    registry.register(name, help, metric.clone());
    metric
}

fn histograms<const N: usize>(
    registry: &mut Registry,
    (name, help): (&str, &str),
    outcomes: [&'static str; N],
    new: fn() -> Histogram,
) -> [Histogram; N] {
    let family = register(registry, name, help, Family::<[(&str, &str); 1], Histogram>::new_with_constructor(new));
    outcomes.map(|outcome| family.get_or_create_owned(&[("outcome", outcome)]))
}

fn observe(histograms: &[Histogram], outcome: usize, took: Duration) {
    if let Some(histogram) = histograms.get(outcome) {
        histogram.observe(took.as_secs_f64());
    }
}
