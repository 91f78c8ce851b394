//! What the tests of this tier run in: a cluster with an AWS, and the chart.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    cgroup::Driver,
    cluster::{AGENT, AWS_CLI, Cluster, Outcome},
    eks_auth::{CLUSTER, REGION},
    node::{Node, NodeSpec},
    process::must,
};
use serde_json::{Value, json};

/// Namespace and name of the release.
pub(crate) const SYSTEM: &str = "kube-system";
pub(crate) const RELEASE: &str = "pod-identity-agent";

/// Where applications are.
pub(crate) const SHOP: &str = "shop";

/// Two service accounts, each with a role of its name that may list a bucket of its name, and no other bucket.
pub(crate) const READER: &str = "reader";
pub(crate) const AUDITOR: &str = "auditor";

/// The least that the chart says it needs, and this Kubernetes has not: a surge of `DaemonSets`. What is installed is a
/// copy of the chart that asks for less, with a strategy that this Kubernetes knows.
const NEEDS: &str = "kubeVersion: \">=1.25.0-0\"";
const HAS: &str = "kubeVersion: \">=1.20.0-0\"";

/// A cluster, and a node in it with an AWS.
pub(crate) struct World {
    // The cluster ends before the node it is on.
    pub(crate) cluster: Cluster,
    pub(crate) node: Node,
    chart: PathBuf,
    values: PathBuf,
}

impl World {
    /// Without the chart yet.
    pub(crate) fn new() -> Result<Self> {
        // The systemd driver needs a systemd.
        let node = Node::with(NodeSpec { driver: Driver::Cgroupfs, aws: true, ..NodeSpec::default() })?;
        let cluster = Cluster::start(&node)?;
        let aws = node.aws()?;
        cluster.namespace(SHOP)?;
        for name in [READER, AUDITOR] {
            aws.bucket(name, &format!("of-{name}.txt"))?;
            cluster.associate(&node, SHOP, name, &aws.role(name, name)?)?;
        }
        let chart = copy_of_the_chart(node.dir())?;
        let values = node.dir().join("values.json");
        fs::write(&values, values_for(&node).to_string())?;
        Ok(Self { cluster, node, chart, values })
    }

    /// With the chart installed, and its agent ready.
    pub(crate) fn with_agent() -> Result<Self> {
        let world = Self::new()?;
        world.helm("install", &[])?;
        Ok(world)
    }

    /// Runs `helm install` or `helm upgrade` with these arguments besides, and waits until what it has made is ready.
    pub(crate) fn helm(&self, verb: &str, more: &[&str]) -> Result<String> {
        let (chart, values) = (text(&self.chart)?, text(&self.values)?);
        // Applied by the client: on the server's side this API server refuses fields that it does not know.
        let fixed = ["--namespace", SYSTEM, "--values", values, "--server-side=false", "--wait", "--timeout=2m"];
        let done = self.cluster.helm(&[&[verb, RELEASE, chart][..], &fixed, more].concat())?;
        done.must().with_context(|| format!("helm {verb}: {}", self.state()))
    }

    /// Runs a command of the agent in its container, as its operator does.
    pub(crate) fn agent(&self, args: &[&str]) -> Result<Outcome> {
        let daemonset = format!("daemonset/{RELEASE}");
        let fixed = ["--namespace", SYSTEM, "exec", &daemonset, "--", "/pod-identity-agent"];
        self.cluster.try_kubectl(&[&fixed[..], args].concat())
    }

    /// The release's pods, as the API server has them.
    pub(crate) fn pods_of_the_release(&self) -> Result<Vec<Value>> {
        let label = format!("app.kubernetes.io/instance={RELEASE}");
        let answer =
            self.cluster.kubectl(&["--namespace", SYSTEM, "get", "pods", "--selector", &label, "--output=json"])?;
        let list: Value = serde_json::from_str(&answer)?;
        Ok(list["items"].as_array().context("a list")?.clone())
    }

    /// What is known of the release's pods, for who looks at a failure.
    fn state(&self) -> String {
        let ask = |args: &[&str]| self.cluster.try_kubectl(args).map_or_else(|e| e.to_string(), |done| done.text);
        let pods = ask(&["--namespace", SYSTEM, "describe", "pods"]);
        let label = format!("app.kubernetes.io/instance={RELEASE}");
        format!("{pods}\n{}", ask(&["--namespace", SYSTEM, "logs", "--selector", &label, "--tail=50"]))
    }
}

pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// The chart as it is.
pub(crate) fn original_chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart")
}

fn copy_of_the_chart(dir: &Path) -> Result<PathBuf> {
    let copy = dir.join("chart");
    must(Command::new("cp").arg("--recursive").arg(original_chart()).arg(&copy))?;
    let file = copy.join("Chart.yaml");
    let description = fs::read_to_string(&file)?;
    ensure!(description.contains(NEEDS), "the chart needs something else now: {description}");
    fs::write(&file, description.replace(NEEDS, HAS))?;
    Ok(copy)
}

/// What an operator of this cluster would set.
fn values_for(node: &Node) -> Value {
    let key = node.eks_auth().node_key();
    json!({
        "clusterName": CLUSTER,
        "env": {"AWS_REGION": REGION, "AWS_ACCESS_KEY_ID": key.id, "AWS_SECRET_ACCESS_KEY": key.secret},
        "image": {"override": AGENT, "pullPolicy": "Never"},
        "agent": {"additionalArgs": {"--endpoint": node.eks_auth().url(), "--log-format": "json"}},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
        "test": {"image": AWS_CLI},
    })
}
