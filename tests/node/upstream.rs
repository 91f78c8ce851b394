//! The way to EKS Auth with real connections: they are kept, they go where the operator's proxy and exceptions say, to
//! whom the operator's CA bundle trusts, and are signed with what the shared credentials file holds now.
use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use pod_identity_tests::{
    agent::{Agent, AgentSpec},
    client::Client,
    eks_auth::{EksAuthSpec, TLS_ADDRESS, TLS_NAME},
    node::{Node, NodeSpec},
    proxy::Proxy,
    sigv4::AccessKey,
    tls::Issued,
    token::random_hex,
};

use crate::common::{must_be_granted, must_refuse, refusal, served_with};

#[test]
fn calls_share_a_connection() -> Result<()> {
    const CALLS: usize = 100;
    // Nothing is kept, so every request is a call.
    let served = served_with(&AgentSpec::flags(&["--max-credential-retention-before-renewal=0"]))?;
    let answers = served.pod.ask(&Client::with_token(served.pod.token()).requests(CALLS))?;
    answers.iter().try_for_each(must_be_granted)?;
    let counters = served.node.eks_auth().counters()?;
    println!("{} calls on {} connections", counters.calls, counters.connections);
    ensure!(answers.len() == CALLS && counters.calls == 100, "{counters:?}");
    ensure!(counters.connections == 1, "{} connections for {CALLS} calls, one after the other", counters.connections);
    Ok(())
}

/// A node whose EKS Auth speaks TLS, and a proxy that leads there.
fn behind_a_proxy() -> Result<(Node, Proxy)> {
    let eks_auth = EksAuthSpec { tls: true, ..EksAuthSpec::default() };
    let node = Node::with(NodeSpec { eks_auth, ..NodeSpec::default() })?;
    let proxy = Proxy::start(node.netns(), TLS_ADDRESS.parse()?)?;
    Ok((node, proxy))
}

/// An agent with the proxy, these exceptions, and EKS Auth's authority in its bundle.
fn agent_of(node: &Node, proxy: &Proxy, exceptions: &str, endpoint: &str) -> Result<Agent> {
    let (bundle, proxy) = (node.eks_auth().authority()?.display().to_string(), proxy.url()?);
    let env = [("HTTPS_PROXY", proxy), ("NO_PROXY", exceptions.to_owned()), ("AWS_CA_BUNDLE", bundle)];
    node.agent_with(&AgentSpec {
        env: env.map(|(name, value)| (name.to_owned(), value)).into(),
        ..AgentSpec::flags(&["--endpoint", endpoint])
    })
}

#[test]
fn the_operators_proxy_leads_to_eks_auth() -> Result<()> {
    let (node, proxy) = behind_a_proxy()?;
    // Only the proxy knows this name.
    let name = format!("{TLS_NAME}:4430");
    let _agent = agent_of(&node, &proxy, "example.com", &format!("https://{name}"))?;
    for _ in 0..3 {
        node.pod("app")?.must_get_credentials()?;
    }
    ensure!(proxy.asked_for() == [name], "one tunnel, kept: {:?}", proxy.asked_for());
    ensure!(node.eks_auth().counters()?.connections == 1);
    Ok(())
}

#[test]
fn exceptions_are_called_without_the_proxy() -> Result<()> {
    let (node, proxy) = behind_a_proxy()?;
    let (address, _) = TLS_ADDRESS.rsplit_once(':').unwrap_or_default();
    let direct = agent_of(&node, &proxy, address, &node.eks_auth().url())?;
    node.pod("app")?.must_get_credentials()?;
    ensure!(proxy.asked_for().is_empty(), "{:?}", proxy.asked_for());
    drop(direct);
    // The control: the same address without the exception.
    let _agent = agent_of(&node, &proxy, "example.com", &node.eks_auth().url())?;
    node.pod("app")?.must_get_credentials()?;
    ensure!(proxy.asked_for() == [TLS_ADDRESS], "{:?}", proxy.asked_for());
    Ok(())
}

#[test]
fn an_eks_auth_that_the_bundle_does_not_vouch_for_is_shown_no_token() -> Result<()> {
    let eks_auth = EksAuthSpec { tls: true, ..EksAuthSpec::default() };
    let node = Node::with(NodeSpec { eks_auth, ..NodeSpec::default() })?;
    // Another authority, which would issue for the same names.
    let elsewhere = node.dir().join("elsewhere");
    fs::create_dir(&elsewhere)?;
    let (address, _) = TLS_ADDRESS.rsplit_once(':').unwrap_or_default();
    let bundle = Issued::make(&elsewhere, &[address])?.authority;
    let env = vec![("AWS_CA_BUNDLE".to_owned(), bundle.display().to_string())];
    let (agent, pod) = (node.agent_with(&AgentSpec { env, ..AgentSpec::default() })?, node.pod("app")?);
    must_refuse(&agent, refusal(503, "eks_auth_unavailable", "try again"), || pod.credentials())?;
    agent.wait_for_log(&["invalid peer certificate"], Duration::from_secs(5))?;
    let counters = node.eks_auth().counters()?;
    ensure!(counters.connections >= 1 && counters.calls == 0, "{counters:?}");
    Ok(())
}

fn new_key() -> AccessKey {
    AccessKey { id: format!("AKIA{}", random_hex(8).to_uppercase()), secret: random_hex(20) }
}

/// Writes a credentials file as those who rotate it do: another file, and a rename.
fn write_credentials(path: &Path, key: &AccessKey) -> Result<()> {
    let coming = path.with_extension("new");
    fs::write(&coming, format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", key.id, key.secret))?;
    Ok(fs::rename(coming, path)?)
}

#[test]
fn a_rotated_credentials_file_signs_the_next_call() -> Result<()> {
    for (flag, follows) in [("--rotate-credentials=true", true), ("--rotate-credentials=false", false)] {
        let node = Node::new()?;
        let file = node.dir().join("credentials");
        write_credentials(&file, node.eks_auth().node_key())?;
        let mut spec = AgentSpec::flags(&[flag]);
        spec.env = [
            ("AWS_ACCESS_KEY_ID", ""),
            ("AWS_SECRET_ACCESS_KEY", ""),
            ("AWS_SHARED_CREDENTIALS_FILE", &file.to_string_lossy()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let agent = node.agent_with(&spec)?;
        node.pod("app")?.must_get_credentials()?;

        let key = new_key();
        write_credentials(&file, &key)?;
        node.eks_auth().replace_node_key(&key)?;
        let pod = node.pod("app")?;
        if follows {
            pod.must_get_credentials()?;
            ensure!(node.eks_auth().outcomes()?.keys().eq(["ok"]), "the old key was tried");
        } else {
            must_refuse(&agent, refusal(503, "node_credentials", "IAM role is at fault"), || pod.credentials())?;
        }
    }
    Ok(())
}
