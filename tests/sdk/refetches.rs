//! botocore fetches again when 15 min or less are left, and then for *every* signing until what it gets lasts longer. With
//! this agent that is one fetch: what is served was renewed at half of its life, long before.
//!
//! The clock is the machine's, so the situation is made and not waited for. EKS Auth gives credentials that end in
//! 14 min, which botocore fetches: it holds now what it would hold 45 min after a fetch of credentials that live 59 min.
//! By then the agent has renewed them, at 29.5 min; here it is made to. 200 signings follow, of which the first fetches
//! what has at least 29.5 min left, and the others have no reason to.
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::{Agent, AgentSpec},
    aws::{
        application::{Application, Family},
        clients::Clients,
    },
    eks_auth::EksAuthSpec,
    host,
    node::{Node, NodeSpec},
    pod::Pod,
    process::eventually,
    standin::control::Effect,
};
use serde_json::Value;

use crate::client::{Fetched, Session};

const SIGNINGS: u32 = 200;
/// What is left of what botocore holds: in its 15 min of advice, not in the 10 in which it insists.
const LEFT: Duration = Duration::from_mins(14);
/// Of credentials of a role with role chaining.
const LIFE: Duration = Duration::from_mins(59);

/// A node, an agent, and a botocore that holds credentials which end soon.
struct Holding {
    session: Session,
    held: Fetched,
    pod: Pod,
    agent: Agent,
    node: Node,
}

impl Holding {
    fn with(flags: &[&str]) -> Result<Self> {
        let eks_auth = EksAuthSpec { lifetime_seconds: Some(LIFE.as_secs()), ..EksAuthSpec::default() };
        let node = Node::with(NodeSpec { eks_auth, ..NodeSpec::default() })?;
        let agent = node.agent_with(&AgentSpec::flags(flags))?;
        let pod = node.pod("app")?;
        node.eks_auth().always(Effect::ExpiresIn(LEFT.as_secs()))?;
        let application = Application::new(&pod, Family::V4, None)?;
        let mut command = application.command(&application.clients().python_program("python3"))?;
        command.arg(Clients::script("sign.py")).arg(format!("--signings={SIGNINGS}"));
        let mut session = Session::start(&mut command)?;
        let held = Fetched::read(&session.next()?)?;
        ensure!(node.eks_auth().calls_for(pod.uid())? == 1);
        Ok(Self { session, held, pod, agent, node })
    }

    /// Has the agent renew what botocore holds.
    fn renew(&mut self) -> Result<()> {
        self.node.eks_auth().behave()?;
        if host::full_size() {
            // At the age that the flag says, which is a minute at least.
            return eventually("the renewal", Duration::from_secs(70), || {
                Ok((self.node.eks_auth().calls_for(self.pod.uid())? >= 2).then_some(()))
            });
        }
        // Another agent takes the place of this one: what it serves is as new as after a renewal.
        self.agent.terminate(Duration::from_secs(40))?;
        self.agent = self.node.agent()?;
        self.pod.must_get_credentials().map(|_| ())
    }

    /// Has botocore sign, and tells how often it fetched meanwhile, and with which access keys it signed.
    fn sign(&mut self) -> Result<(u32, Vec<(String, u32)>)> {
        let before = self.grants()?;
        self.session.go_on()?;
        let said = self.session.next()?;
        let keys = serde_json::from_value(said.get("keys").cloned().unwrap_or(Value::Null));
        let keys = keys.with_context(|| format!("no keys in what the client said: {said}"))?;
        Ok((self.grants()? - before, keys))
    }

    /// The agent's answers with credentials so far.
    fn grants(&self) -> Result<u32> {
        Ok(self.agent.metric("pod_identity_grants_total")?.to_string().parse()?)
    }
}

#[test]
fn botocore_fetches_once_for_two_hundred_signings() -> Result<()> {
    let mut holding = Holding::with(&["--max-credential-retention-before-renewal=1m"])?;
    holding.renew()?;
    let (fetches, keys) = holding.sign()?;
    println!("{SIGNINGS} signings with {LEFT:?} left: {fetches} fetch");
    ensure!(fetches == 1, "{fetches} fetches for {SIGNINGS} signings");
    let [(key, count)] = keys.as_slice() else { anyhow::bail!("{keys:?}") };
    ensure!(*key != holding.held.access_key_id && *count == SIGNINGS, "{keys:?}");
    // And none from then on.
    let (fetches, again) = holding.sign()?;
    ensure!(fetches == 0 && again == keys, "{fetches} more fetches, {again:?}");
    Ok(())
}

/// The control: an agent that serves what ends within botocore's window is asked for every signing. Here EKS Auth gives
/// nothing better; the official agent serves 1-hour credentials until 15 s before their end.
#[test]
fn botocore_fetches_for_every_signing_what_does_not_last() -> Result<()> {
    let mut holding = Holding::with(&[])?;
    let (fetches, keys) = holding.sign()?;
    println!("{SIGNINGS} signings with {LEFT:?} left, and no better to be had: {fetches} fetches");
    ensure!(fetches == SIGNINGS, "{fetches} fetches for {SIGNINGS} signings");
    ensure!(keys == [(holding.held.access_key_id.clone(), SIGNINGS)], "{keys:?}");
    // Which the cache carries: EKS Auth was asked once.
    ensure!(holding.node.eks_auth().calls_for(holding.pod.uid())? == 1);
    Ok(())
}
