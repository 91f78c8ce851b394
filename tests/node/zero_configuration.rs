//! On an EKS node nothing has to be given: the node knows its cluster.
use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use pod_identity_tests::{agent::AgentSpec, eks_auth::CLUSTER, node::Node};

/// An empty value is as good as none, as where a chart's value is left out.
const NO_NAME: &str = "--cluster-name=";

/// As EKS makes it, of which only the arguments matter here.
fn kubeconfig(cluster: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nusers:\n- name: kubelet\n  user:\n    exec:\n      \
         apiVersion: client.authentication.k8s.io/v1beta1\n      command: aws\n      \
         args: [eks, get-token, --cluster-name, {cluster}, --region, eu-central-1]\n"
    )
}

#[test]
fn the_clusters_name_is_found_in_the_kubelets_kubeconfig() -> Result<()> {
    let node = Node::new()?;
    fs::write(node.kubelet().path().join("kubeconfig"), kubeconfig(CLUSTER))?;
    let agent = node.agent_with(&AgentSpec::flags(&[NO_NAME]))?;
    node.pod("app")?.must_get_credentials()?;
    agent
        .wait_for_log(&["EKS Auth is set up", "the kubelet's kubeconfig", "the environment"], Duration::from_secs(2))?;
    Ok(())
}

#[test]
fn the_flag_wins() -> Result<()> {
    let node = Node::new()?;
    fs::write(node.kubelet().path().join("kubeconfig"), kubeconfig("another"))?;
    let _agent = node.agent()?;
    node.pod("app")?.must_get_credentials()?;
    Ok(())
}

#[test]
fn an_agent_that_finds_no_name_ends_and_says_where_it_looked() -> Result<()> {
    let node = Node::new()?;
    let mut agent = node.start_agent(&AgentSpec::flags(&[NO_NAME]))?;
    let status = agent.wait(Duration::from_secs(10))?;
    ensure!(status.code() == Some(64), "{status}");
    for part in ["set --cluster-name", "the kubelet's kubeconfig: ", "tags: the instance metadata service"] {
        ensure!(agent.log_text().contains(part), "no '{part}' in\n{}", agent.log_text());
    }
    Ok(())
}
