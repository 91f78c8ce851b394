//! etcd, API server, controllers and scheduler.
use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    commands::Commands,
    keys::{API_SERVER, Keys},
    parts::Part,
};
use crate::{aws, node::Node, process::eventually, token::ISSUER_URL};

/// For the API server to serve, with what it makes at its first start.
const STARTS: Duration = Duration::from_mins(1);

const ETCD: &str = "http://127.0.0.1:2379";

/// What runs the cluster.
#[derive(Debug)]
pub(super) struct ControlPlane {
    // The API server ends before etcd.
    parts: [Part; 4],
}

impl ControlPlane {
    /// Starts all of it. Who comes up before the API server tries again.
    pub(super) fn start(node: &Node, keys: &Keys) -> Result<Self> {
        let etcd = Part::start(node, "etcd", &etcd(&keys.dir))?;
        let api_server = Part::start(node, "kube-apiserver", &api_server(keys))?;
        let controllers = Part::start(node, "kube-controller-manager", &controllers(keys))?;
        let scheduler = Part::start(node, "kube-scheduler", &scheduler(keys))?;
        Ok(Self { parts: [controllers, scheduler, api_server, etcd] })
    }

    pub(super) fn wait_until_it_serves(&mut self, commands: &Commands) -> Result<()> {
        let served = eventually("the API server to serve", STARTS, || {
            self.all_run()?;
            Ok(commands.try_kubectl(&["get", "--raw", "/readyz"])?.succeeded.then_some(()))
        });
        served.with_context(|| self.parts.each_ref().map(Part::log_text).join("\n"))
    }

    pub(super) fn all_run(&mut self) -> Result<()> {
        self.parts.iter_mut().try_for_each(Part::runs)
    }
}

fn flags(flags: &[(&str, &str)]) -> Vec<String> {
    flags.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

fn text(path: &Path) -> &str {
    // Paths of a test are made of its own names.
    path.to_str().unwrap_or_default()
}

fn etcd(dir: &Path) -> Vec<String> {
    flags(&[
        ("data-dir", text(&dir.join("etcd"))),
        ("listen-client-urls", ETCD),
        ("advertise-client-urls", ETCD),
        ("listen-peer-urls", "http://127.0.0.1:2380"),
    ])
}

fn api_server(keys: &Keys) -> Vec<String> {
    let (address, port) = API_SERVER.rsplit_once(':').unwrap_or_default();
    flags(&[
        ("etcd-servers", ETCD),
        ("bind-address", address),
        ("secure-port", port),
        ("advertise-address", aws::ADDRESS),
        ("tls-cert-file", text(&keys.serving.files.certificate)),
        ("tls-private-key-file", text(&keys.serving.files.key)),
        ("token-auth-file", text(&keys.callers)),
        ("authorization-mode", "Node,RBAC"),
        ("enable-admission-plugins", "NodeRestriction"),
        ("service-account-issuer", ISSUER_URL),
        ("service-account-signing-key-file", text(&keys.service_accounts)),
        ("service-account-key-file", text(&keys.service_accounts)),
        ("api-audiences", "kubernetes"),
        ("service-cluster-ip-range", "10.96.0.0/24"),
        ("allow-privileged", "true"),
        ("kubelet-preferred-address-types", "InternalIP"),
        ("cert-dir", text(&keys.dir.join("api-server"))),
    ])
}

fn controllers(keys: &Keys) -> Vec<String> {
    flags(&[
        ("kubeconfig", text(&keys.administrator)),
        ("service-account-private-key-file", text(&keys.service_accounts)),
        ("root-ca-file", text(&keys.serving.authority)),
        // By default it makes one on the machine.
        ("flex-volume-plugin-dir", text(&keys.dir.join("volume-plugins"))),
        ("bind-address", "127.0.0.1"),
        ("port", "0"),
        ("leader-elect", "false"),
        ("cert-dir", text(&keys.dir.join("controllers"))),
    ])
}

fn scheduler(keys: &Keys) -> Vec<String> {
    flags(&[
        ("kubeconfig", text(&keys.administrator)),
        ("bind-address", "127.0.0.1"),
        ("port", "0"),
        ("leader-elect", "false"),
        ("cert-dir", text(&keys.dir.join("scheduler"))),
    ])
}
