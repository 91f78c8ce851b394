//! Keys and files by which the cluster's parts know each other.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use serde_json::json;

use crate::{process::must, tls::Issued, token::random_hex};

use super::NODE;

/// Where the API server serves, in the node's namespace.
pub(super) const API_SERVER: &str = "127.0.0.1:6443";

/// The files of one cluster.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// The directory of all the cluster's files.
    pub(super) dir: PathBuf,
    /// What the API server and the webhook speak TLS with.
    pub(super) serving: Issued,
    /// Signs service account tokens.
    pub(super) service_accounts: PathBuf,
    /// Who may call the API server.
    pub(super) callers: PathBuf,
    /// For the control plane, kubectl and helm.
    pub(super) administrator: PathBuf,
    /// For the kubelet.
    pub(super) kubelet: PathBuf,
}

impl Keys {
    /// Makes all of them in a new directory.
    pub(super) fn make(dir: &Path) -> Result<Self> {
        fs::create_dir(dir)?;
        let serving = Issued::make(dir, &["127.0.0.1"])?;
        let service_accounts = dir.join("service-accounts.pem");
        must(Command::new("openssl").args(["genrsa", "-out"]).arg(&service_accounts).arg("2048"))?;
        let (administrator, kubelet) = (random_hex(16), random_hex(16));
        let callers = dir.join("callers.csv");
        let lines = [
            format!("{administrator},administrator,administrator,system:masters"),
            format!("{kubelet},system:node:{NODE},kubelet,system:nodes"),
        ];
        fs::write(&callers, lines.join("\n"))?;
        let configuration = |name: &str, token: &str| {
            let text = json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "test",
                "clusters": [{"name": "test", "cluster": {
                    "server": format!("https://{API_SERVER}"), "certificate-authority": serving.authority,
                }}],
                "users": [{"name": "test", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            });
            let path = dir.join(name);
            fs::write(&path, text.to_string()).map(|()| path)
        };
        Ok(Self {
            administrator: configuration("administrator.kubeconfig", &administrator)?,
            kubelet: configuration("kubelet.kubeconfig", &kubelet)?,
            dir: dir.to_owned(),
            service_accounts,
            callers,
            serving,
        })
    }
}
