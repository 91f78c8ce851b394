//! A node: a network namespace, a cgroup sub-tree, a kubelet's directory and an EKS Auth of its own.
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use anyhow::{Context as _, Result};

use crate::{
    agent::{Agent, AgentSpec},
    aws::Aws,
    cgroup::{Cgroup, CgroupTree, Driver, Kubepods},
    eks_auth::{EksAuth, EksAuthSpec},
    host,
    kubelet::KubeletRoot,
    netns::Netns,
    pod::{Pod, PodSpec},
    tls::TlsFront,
    token::Issuer,
};

/// How a node is to be laid out. The default is a node of EKS: the systemd driver, kubepods at the top.
#[derive(Clone, Debug, Default)]
pub struct NodeSpec {
    /// Who names the cgroups.
    pub driver: Driver,
    /// Cgroups between the top and kubepods: `["kubelet"]` in kind.
    pub parents: Vec<&'static str>,
    /// How EKS Auth is to be; by itself, unless there is an AWS.
    pub eks_auth: EksAuthSpec,
    /// Whether it has an AWS, which then gives out the credentials and knows the associations.
    pub aws: bool,
}

/// What pods and agents need of their node for as long as they live.
#[derive(Debug)]
pub(crate) struct Ground {
    // Fields are dropped in this order: processes first, then what they used.
    cgroups: CgroupTree,
    pub(crate) kubepods: Kubepods,
    pub(crate) netns: Netns,
    pub(crate) kubelet: KubeletRoot,
    pub(crate) dir: RunDir,
    name: String,
    subnets: AtomicU8,
}

/// A node's files.
#[derive(Debug)]
pub(crate) struct RunDir(pub(crate) PathBuf);

impl Drop for RunDir {
    fn drop(&mut self) {
        host::remove_run_dir(&self.0);
    }
}

/// A node.
#[derive(Debug)]
pub struct Node {
    eks_auth: EksAuth,
    aws: Option<Aws>,
    ground: Arc<Ground>,
}

impl Node {
    /// A node of EKS, without an agent yet.
    pub fn new() -> Result<Self> {
        Self::with(NodeSpec::default())
    }

    /// A node laid out so, without an agent yet.
    pub fn with(spec: NodeSpec) -> Result<Self> {
        host::require_root()?;
        let name = host::unique_name();
        let dir = RunDir(host::run_dir(&name)?);
        let netns = Netns::create(&name)?;
        let cgroups = CgroupTree::create(&name)?;
        let kubepods = Kubepods::create(cgroups.cgroup(), spec.driver, &spec.parents)?;
        let kubelet = KubeletRoot::create(dir.0.join("kubelet"))?;
        // A node forwards between its pods.
        netns.sysctl("ipv4/ip_forward", "1")?;
        netns.sysctl("ipv6/conf/all/forwarding", "1")?;
        let ground = Arc::new(Ground { cgroups, kubepods, netns, kubelet, dir, name, subnets: AtomicU8::new(1) });
        let aws = if spec.aws { Some(Aws::start(Arc::clone(&ground))?) } else { None };
        let eks_auth_spec = aws.as_ref().map_or(spec.eks_auth, Aws::for_eks_auth);
        let issuer = Issuer::of_this_process()?;
        let mut eks_auth = EksAuth::start(&ground.netns, &ground.dir.0, issuer, &eks_auth_spec)?;
        eks_auth.wait_until_it_serves()?;
        Ok(Self { eks_auth, aws, ground })
    }

    /// Starts an agent, and waits until it is ready.
    pub fn agent(&self) -> Result<Agent> {
        self.agent_with(&AgentSpec::default())
    }

    /// Starts an agent with these flags and variables, and waits until it is ready.
    pub fn agent_with(&self, spec: &AgentSpec) -> Result<Agent> {
        let mut agent = self.start_agent(spec)?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts an agent, which may fail.
    pub fn start_agent(&self, spec: &AgentSpec) -> Result<Agent> {
        Agent::start(Arc::clone(&self.ground), &self.eks_auth, spec)
    }

    /// Makes a pod of the service account `name` in the namespace `default`, with an association.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.eks_auth.associate("default", name, name)?;
        self.pod_with(PodSpec::named(name))
    }

    /// Makes a pod.
    pub fn pod_with(&self, spec: PodSpec) -> Result<Pod> {
        Pod::create(Arc::clone(&self.ground), spec)
    }

    /// Its EKS Auth.
    #[must_use]
    pub fn eks_auth(&self) -> &EksAuth {
        &self.eks_auth
    }

    /// Puts TLS before its EKS Auth, with a certificate for this name.
    pub fn tls(&self, name: &str) -> Result<TlsFront> {
        TlsFront::start(&self.ground, name)
    }

    /// Its AWS.
    pub fn aws(&self) -> Result<&Aws> {
        self.aws.as_ref().context("this node was made without an AWS")
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.ground.netns
    }

    /// The cgroup that stands for the hierarchy's root: what is in it, but not below kubepods, is the host's.
    #[must_use]
    pub fn top_cgroup(&self) -> &Cgroup {
        self.ground.cgroups.cgroup()
    }

    /// The cgroups of its pods.
    #[must_use]
    pub fn kubepods(&self) -> &Kubepods {
        &self.ground.kubepods
    }

    /// The kubelet's directory.
    #[must_use]
    pub fn kubelet(&self) -> &KubeletRoot {
        &self.ground.kubelet
    }

    /// Directory for its files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.ground.dir.0
    }
}

impl Ground {
    /// A name on this machine for something of this node.
    pub(crate) fn name(&self, what: &str) -> String {
        format!("{}-{what}", self.name)
    }

    /// A number that no other pod of this node has.
    pub(crate) fn next_subnet(&self) -> u8 {
        self.subnets.fetch_add(1, Ordering::Relaxed)
    }
}
