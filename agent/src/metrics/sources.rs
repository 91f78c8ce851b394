//! Numbers that somebody else keeps, read at the moment of the scrape.
use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::Gauge},
};

use super::Total;

/// What one program did, all CPUs together, as its map says at the moment of the scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteeringCounts {
    /// Name of the program (`connect4`, …).
    pub program: &'static str,
    /// Connections rewritten to a listener.
    pub steered: u64,
    /// Connections refused because their namespace has no listener.
    pub missed: u64,
    /// Connections refused because their container makes too many in the host netns.
    pub paced: u64,
}

/// How many pods have what, at the moment of the scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodCounts {
    /// With valid credentials.
    pub cached: usize,
    /// Of those, with credentials that SDKs do not like any more: a renewal is overdue.
    pub expiring: usize,
    /// Served at least once.
    pub served: usize,
}

/// Where they are read.
#[derive(Clone, Default)]
pub(super) struct Sources(pub(super) Arc<SourceFns>);

#[derive(Default)]
pub(super) struct SourceFns {
    pub(super) steering: OnceLock<Box<dyn Fn() -> Vec<SteeringCounts> + Send + Sync>>,
    pub(super) pods: OnceLock<Box<dyn Fn() -> PodCounts + Send + Sync>>,
    pub(super) dropped_log_lines: OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

/// A metric's name, help and value for one program.
type Column = (&'static str, &'static str, fn(&SteeringCounts) -> u64);

impl Collector for Sources {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let programs = self.0.steering.get().map(|read| read()).unwrap_or_default();
        let columns: [Column; 3] = [
            ("steering_steered_total", "Connections rewritten to a listener.", |p| p.steered),
            ("steering_paced_total", "Connections refused for being too many in the host netns.", |p| p.paced),
            ("steering_missed_total", "Connections refused for want of a listener.", |p| p.missed),
        ];
        for (name, help, value) in columns {
            let mut descriptor = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for program in &programs {
                let labels = [("program", program.program)];
                Total::at(value(program)).encode(descriptor.encode_family(&labels)?)?;
            }
        }
        let pods = self.0.pods.get().map(|read| read()).unwrap_or_default();
        let gauges = [
            ("cached_pods", "Pods with valid credentials now.", pods.cached),
            ("expiring_pods", "Pods whose credentials expire within 15 minutes.", pods.expiring),
            ("served_pods", "Pods known now that were given credentials.", pods.served),
        ];
        for (name, help, count) in gauges {
            let gauge: Gauge = Gauge::default();
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let dropped = self.0.dropped_log_lines.get().map_or(0, |read| read());
        let (name, help) = ("log_lines_dropped_total", "Log lines that the output did not take.");
        Total::at(dropped).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
    }
}
