//! The wall clock, as a value that tests can hold.
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Tells the time of day. Expirations are instants of the wall clock, because EKS Auth and the SDKs say them so.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// A virtual clock follows tokio's, which tests pause and advance.
    virtual_since: Option<(SystemTime, Instant)>,
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that shows `start` now and goes on with tokio's time.
    #[must_use]
    pub fn virtual_from(start: SystemTime) -> Self {
        Self { virtual_since: Some((start, Instant::now())) }
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        match self.virtual_since {
            None => SystemTime::now(),
            Some((start, since)) => start + since.elapsed(),
        }
    }

    /// How long until `when`; zero when it has passed.
    #[must_use]
    pub fn until(&self, when: SystemTime) -> Duration {
        when.duration_since(self.now()).unwrap_or_default()
    }
}
