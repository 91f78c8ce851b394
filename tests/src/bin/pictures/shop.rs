//! The node that both pictures are taken of: an AWS of its own, service accounts with roles, pods with names.
use anyhow::{Context as _, Result};
use pod_identity_tests::{
    agent::{Agent, AgentSpec},
    node::{Node, NodeSpec},
    pod::{Network, Pod, PodSpec},
};

pub(crate) const NAMESPACE: &str = "shop";
/// The service accounts that have an association.
pub(crate) const ACCOUNTS: [&str; 5] = ["web", "orders", "payments", "search", "report"];
/// The one that has none.
pub(crate) const STRANGER: &str = "stranger";

/// A node whose service accounts have roles.
pub(crate) fn node() -> Result<Node> {
    let node = Node::with(NodeSpec { aws: true, ..NodeSpec::default() })?;
    let aws = node.aws()?;
    for account in ACCOUNTS {
        aws.associate(NAMESPACE, account, &aws.role(account, account)?)?;
    }
    Ok(node)
}

/// An agent as the chart starts it: credentials are fetched before a pod asks.
pub(crate) fn agent(node: &Node, flags: &[&str]) -> Result<Agent> {
    node.agent_with(&AgentSpec::flags(&[&["--prefetch=true"], flags].concat()))
}

/// How the UIDs of the pods begin: lower than that of the agent's own pod, which is random, so that lists have one order.
pub(crate) const UID: &str = "00013a52-0c4e-4b7a-9d21-";

/// A pod with this name and a UID that is the same in every run; `number` is one that no other pod of the node has.
pub(crate) fn spec(account: &str, name: &str, number: usize) -> PodSpec {
    let mut spec = PodSpec::named(account).uid(&format!("{UID}{number:012}"));
    NAMESPACE.clone_into(&mut spec.subject.namespace);
    name.clone_into(&mut spec.subject.pod_name);
    spec
}

/// A pod in whose namespace every port that the agent could listen on is somebody else's, and what has them. It has to be
/// there before the agent.
pub(crate) fn crowded(node: &Node, number: usize) -> Result<(Pod, Vec<std::net::TcpListener>)> {
    let pod = node.pod_with(spec("search", "crowded-0", number).network(Network::default()))?;
    let taken =
        pod.netns()?.within(|| (706..=737).map(|port| std::net::TcpListener::bind(("127.0.0.1", port))).collect());
    let taken: std::io::Result<Vec<_>> = taken?;
    Ok((pod, taken.context("take the agent's ports")?))
}
