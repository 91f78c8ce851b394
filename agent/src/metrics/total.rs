//! A counter whose name is exposed as it is.
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// A number of events since the start. Clones count the same events.
///
/// It differs from `prometheus_client`'s counter in its name alone: that one appends `_total`, which the names of AWS's
/// agent do not have.
#[derive(Clone, Debug, Default)]
pub struct Total(Arc<AtomicU64>);

impl Total {
    pub(super) fn at(value: u64) -> Self {
        Self(Arc::new(AtomicU64::new(value)))
    }

    /// Counts one event.
    pub fn inc(&self) {
        // Numbers for people: nothing is ordered by them.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl TypedMetric for Total {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for Total {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        // The encoder's way of writing a plain sample; the type was written as counter before.
        encoder.encode_gauge(&self.get())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
