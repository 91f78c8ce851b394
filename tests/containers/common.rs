//! What the modules share: a node with a containerd and an agent.
use anyhow::{Result, ensure};
use pod_identity_tests::{
    agent::{Agent, AgentSpec},
    client::Answer,
    containers::{Containerd, driver},
    node::{Node, NodeSpec},
};

/// A node of which the kubelet and containerd use the cgroupfs driver, or the systemd driver where there is a systemd.
pub(crate) fn node() -> Result<Node> {
    Node::with(NodeSpec { driver: driver(), ..NodeSpec::default() })
}

/// A node with a containerd and an agent.
pub(crate) struct World {
    // Containers end before the agent, both before the node.
    pub(crate) runtime: Containerd,
    pub(crate) agent: Agent,
    pub(crate) node: Node,
}

impl World {
    /// The usual case.
    pub(crate) fn new() -> Result<Self> {
        Self::with(&AgentSpec::default())
    }

    /// The usual case with flags for the agent.
    pub(crate) fn with(spec: &AgentSpec) -> Result<Self> {
        let node = node()?;
        let agent = node.agent_with(spec)?;
        let runtime = Containerd::start(&node)?;
        Ok(Self { runtime, agent, node })
    }
}

/// Fails unless the answer carries credentials; returns the access key.
pub(crate) fn must_be_granted(answer: &Answer) -> Result<String> {
    ensure!(answer.status == Some(200) && answer.access_key_id().starts_with("ASIA"), "not granted: {answer:?}");
    Ok(answer.access_key_id())
}

/// Fails unless the answer is a refusal with this status.
pub(crate) fn must_be_refused(answer: &Answer, status: u16) -> Result<()> {
    ensure!(answer.status == Some(status) && answer.access_key_id().is_empty(), "not {status}: {answer:?}");
    Ok(())
}
