//! Exchanges of bytes with the agent, as `wire` makes them in a pod and reports them.
use serde::{Deserialize, Serialize};

/// Bytes to send on a connection of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// What to send at first.
    pub sent: Vec<u8>,
    /// What to send after it when the connection is still open then: a good request, which shows whether both ends still
    /// agree about where requests begin.
    pub then: Vec<u8>,
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Statuses of the answers to what was sent at first.
    pub statuses: Vec<u16>,
    /// Whether the agent closed the connection after that.
    pub closed: bool,
    /// Statuses of the answers to what was sent then.
    pub then: Vec<u16>,
    /// What came that is no answer.
    pub rest: String,
}
