//! What the tests of this tier run in.
use anyhow::Result;
use pod_identity_tests::{
    agent::Agent,
    aws::application::Family,
    node::{Node, NodeSpec},
    pod::{Pod, PodSpec},
};

/// The bucket that the role `reader` may list, the key of the object in it, and the bucket that it may not.
pub(crate) const ALLOWED: &str = "good";
pub(crate) const OTHER: &str = "bad";
pub(crate) const KEY: &str = "hello.txt";

/// Namespace and service account that are associated with the role.
pub(crate) const NAMESPACE: &str = "shop";
pub(crate) const READER: &str = "reader";

/// A node with AWS and an agent.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) agent: Agent,
    pub(crate) node: Node,
}

impl World {
    pub(crate) fn new() -> Result<Self> {
        let node = Node::with(NodeSpec { aws: true, ..NodeSpec::default() })?;
        let aws = node.aws()?;
        aws.bucket(ALLOWED, KEY)?;
        aws.bucket(OTHER, KEY)?;
        aws.associate(NAMESPACE, READER, &aws.role(READER, ALLOWED)?)?;
        Ok(Self { agent: node.agent()?, node })
    }

    /// Connections that the hook of this family steered.
    pub(crate) fn steered(&self, family: Family) -> Result<f64> {
        steered(&self.agent, family)
    }

    /// A pod of this service account of the namespace `shop`.
    pub(crate) fn pod(&self, service_account: &str) -> Result<Pod> {
        let mut spec = PodSpec::named(service_account);
        NAMESPACE.clone_into(&mut spec.subject.namespace);
        self.node.pod_with(spec)
    }
}

/// Connections that the hook of this family steered to this agent.
pub(crate) fn steered(agent: &Agent, family: Family) -> Result<f64> {
    let program = match family {
        Family::V4 => "connect4",
        Family::V6 => "connect6",
    };
    agent.metric(&format!("pod_identity_steering_steered_total{{program=\"{program}\"}}"))
}
