//! The SDKs as clients: when each asks again for credentials that it has.
use std::time::Duration;

use super::{MINUTE, SECOND};

/// A client signs this often, so a client inside its window asks this often.
const SIGNS_EVERY: Duration = MINUTE;

/// A client, named for the rule it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sdk {
    /// Inside of 15 min it tries at every signing, and inside of 10 min it has to.
    Botocore,
    Go,
    JavaScript,
    /// 60 min before the expiration if there are 90 min left when it asks, else 15 min.
    Java,
    Rust,
    DotNet,
    /// Every 5 min, whatever the expiration.
    Cpp,
    /// A process for each job.
    CommandLine {
        every: Duration,
    },
}

pub(super) const SDKS: [Sdk; 7] =
    [Sdk::Botocore, Sdk::Go, Sdk::JavaScript, Sdk::Java, Sdk::Rust, Sdk::DotNet, Sdk::Cpp];

impl Sdk {
    /// How long before the expiration it asks again, by what is left when it gets them; `None` when it asks by the clock.
    pub(super) fn window(self, left: Duration) -> Option<Duration> {
        match self {
            Self::Java if left >= 90 * MINUTE => Some(60 * MINUTE),
            Self::Botocore | Self::DotNet | Self::Java => Some(15 * MINUTE),
            Self::Go | Self::JavaScript => Some(5 * MINUTE),
            Self::Rust => Some(10 * SECOND),
            Self::Cpp | Self::CommandLine { .. } => None,
        }
    }

    /// How long after it got credentials with `left` it asks again.
    pub(super) fn asks_after(self, left: Duration) -> Duration {
        match (self, self.window(left)) {
            (Self::CommandLine { every }, _) => every,
            (_, None) => 5 * MINUTE,
            (_, Some(window)) => left.saturating_sub(window).max(SIGNS_EVERY),
        }
    }

    /// Whether it got credentials that it asks for again at its next signing.
    pub(super) fn multiplies(self, left: Duration) -> bool {
        self.window(left).is_some_and(|window| left <= window)
    }
}
