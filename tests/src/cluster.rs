//! A Kubernetes cluster of one node, of real parts: etcd, API server, controllers, scheduler and kubelet in the network
//! namespace and below the cgroup of a test's [`Node`], over a [`Containerd`] of its own. What is EKS's is a stand-in: the
//! webhook that sets pods up, and EKS Auth, which knows the key set that this API server publishes.
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    containers::Containerd,
    node::Node,
    process::{binary, eventually},
};

mod admission;
mod aws_cli;
mod commands;
mod control_plane;
mod hybrid;
mod keys;
mod kubelet;
mod parts;

pub use aws_cli::AWS_CLI;
pub use commands::Outcome;

use admission::Webhook;
use commands::Commands;
use control_plane::ControlPlane;
use hybrid::PodCgroups;
use kubelet::Kubelet;

/// What applications run in: busybox, and the libraries of this workspace's programs.
pub const APP: &str = crate::containers::APP;

/// The name of the agent's image.
pub const AGENT: &str = "docker.io/library/pod-identity-agent:0.1.0";

/// Names an archive with the agent's image as it is released; `cargo xtask cluster-test` sets it.
const AGENT_ARCHIVE: &str = "POD_IDENTITY_IMAGE";

/// The node's name.
pub const NODE: &str = "node-1";

/// From the kubelet's start to its readiness, on a machine that may be busy.
const BECOMES_READY: Duration = Duration::from_mins(2);

/// A cluster.
#[derive(Debug)]
pub struct Cluster {
    // Fields are dropped in this order: what makes containers, containers, then whom they ask.
    kubelet: Kubelet,
    _pod_cgroups: PodCgroups,
    runtime: Containerd,
    webhook: Webhook,
    control_plane: ControlPlane,
    commands: Commands,
}

impl Cluster {
    /// Starts one on a node that has an AWS, and waits until the node is ready for pods.
    pub fn start(node: &Node) -> Result<Self> {
        let dir = node.dir().join("cluster");
        let keys = keys::Keys::make(&dir)?;
        let mut control_plane = ControlPlane::start(node, &keys)?;
        let commands = Commands::new(node, &keys)?;
        // While the API server comes up.
        let runtime = Containerd::start(node)?;
        import_agent(&runtime)?;
        runtime.import(AWS_CLI, &aws_cli::image(node)?)?;
        control_plane.wait_until_it_serves(&commands)?;
        let key_set: Value = serde_json::from_str(&commands.kubectl(&["get", "--raw", "/openid/v1/jwks"])?)?;
        node.eks_auth().replace_issuer_keys(&key_set)?;
        let webhook = Webhook::start(node, &keys)?;
        commands.apply(&webhook.configuration())?;
        let pod_cgroups = PodCgroups::follow(node)?;
        let kubelet = Kubelet::start(node, &runtime, &keys)?;
        let mut cluster = Self { kubelet, _pod_cgroups: pod_cgroups, runtime, webhook, control_plane, commands };
        let ready = eventually("the node to be ready", BECOMES_READY, || {
            cluster.all_run()?;
            cluster.ready()
        });
        ready.with_context(|| cluster.kubelet.log_text())?;
        Ok(cluster)
    }

    /// Fails if a part has ended.
    fn all_run(&mut self) -> Result<()> {
        self.control_plane.all_run()?;
        self.kubelet.runs()
    }

    /// A node that takes pods, and a service account for them to be.
    fn ready(&self) -> Result<Option<()>> {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}{.spec.taints}";
        let node = self.commands.try_kubectl(&["get", "node", NODE, "--output", path])?;
        let account = self.commands.try_kubectl(&["get", "serviceaccount", "default"])?;
        Ok((node.succeeded && node.text == "True" && account.succeeded).then_some(()))
    }

    /// Makes a namespace.
    pub fn namespace(&self, name: &str) -> Result<()> {
        self.commands.kubectl(&["create", "namespace", name]).map(drop)
    }

    /// Makes a service account, and an association with this role at EKS.
    pub fn associate(&self, node: &Node, namespace: &str, name: &str, role_arn: &str) -> Result<()> {
        self.service_account(namespace, name)?;
        self.webhook.associate(namespace, name);
        node.aws()?.associate(namespace, name, role_arn)
    }

    /// Makes a service account.
    pub fn service_account(&self, namespace: &str, name: &str) -> Result<()> {
        self.commands.kubectl(&["--namespace", namespace, "create", "serviceaccount", name]).map(drop)
    }

    /// Makes a pod of a service account that runs nothing, as its user would write it; waits until it runs.
    pub fn idle_pod(&self, namespace: &str, service_account: &str, image: &str) -> Result<()> {
        self.commands.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": service_account, "namespace": namespace},
            "spec": {
                "serviceAccountName": service_account,
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "app", "image": image, "imagePullPolicy": "Never",
                    "volumeMounts": [{"name": "tests", "mountPath": "/tests", "readOnly": true}],
                }],
                "volumes": [{"name": "tests", "hostPath": {"path": programs()?}}],
            },
        }))?;
        let pod = format!("pod/{service_account}");
        let ready =
            self.commands.kubectl(&["--namespace", namespace, "wait", "--for=condition=Ready", "--timeout=60s", &pod]);
        ready.map(drop).with_context(|| {
            let described = self.commands.kubectl(&["--namespace", namespace, "describe", &pod]);
            format!("{}\n{}", described.unwrap_or_default(), self.kubelet.log_text())
        })
    }

    /// Runs a command of a pod's shell; its outcome.
    pub fn shell(&self, namespace: &str, pod: &str, script: &str) -> Result<Outcome> {
        self.try_kubectl(&["--namespace", namespace, "exec", pod, "--", "/bin/busybox", "sh", "-c", script])
    }

    /// Runs kubectl, which must succeed; what it printed.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.commands.kubectl(args)
    }

    /// Runs kubectl; its outcome.
    pub fn try_kubectl(&self, args: &[&str]) -> Result<Outcome> {
        self.commands.try_kubectl(args)
    }

    /// Runs helm; its outcome.
    pub fn helm(&self, args: &[&str]) -> Result<Outcome> {
        self.commands.helm(args)
    }

    /// Its container runtime.
    #[must_use]
    pub fn runtime(&self) -> &Containerd {
        &self.runtime
    }
}

/// The directory of this workspace's programs.
fn programs() -> Result<PathBuf> {
    let program = binary("pod-client")?;
    Ok(program.parent().context("a program lies in a directory")?.to_owned())
}

/// As it is released, or the program that lies beside the tests with the libraries it needs.
fn import_agent(runtime: &Containerd) -> Result<()> {
    if let Some(archive) = std::env::var_os(AGENT_ARCHIVE) {
        return runtime.import_archive(AGENT, Path::new(&archive));
    }
    let program = binary("pod-identity-agent")?;
    let image = crate::containers::image::Image::default().file("/pod-identity-agent", &program);
    runtime.import(AGENT, &image.libraries_of(&program)?)
}
