//! The kubelet, where containerd is: in its mount and PID namespace, the node's network namespace and below the node's
//! cgroup.
use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{
    NODE,
    keys::Keys,
    parts::{Part, program},
};
use crate::{
    aws,
    cgroup::{self, mount_point},
    containers::Containerd,
    node::Node,
};

/// What the kubelet would set on the machine, where it finds other values. It finds these.
const KERNEL: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Before the kubelet starts: containers see token volumes that are mounted later (as on a node, where init shares all
/// mounts), the machine's logs are out of sight, and so are its settings.
const PREPARE: &str = r#"set -e
mount --make-shared /var/lib
mount -t tmpfs tmpfs /var/log
cd "$0"
for file in *; do mount --bind "$file" "/proc/sys/$(echo "$file" | tr : /)"; done
cd /
exec "$@""#;

/// A kubelet.
#[derive(Debug)]
pub(super) struct Kubelet(Part);

impl Kubelet {
    /// Starts it.
    pub(super) fn start(node: &Node, runtime: &Containerd, keys: &Keys) -> Result<Self> {
        let name = node.top_cgroup().dir().strip_prefix(mount_point()?)?.to_str().context("a cgroup has a name")?;
        for hierarchy in cgroup::v1_mounts() {
            fs::create_dir_all(hierarchy.join(name))?;
        }
        let configuration = keys.dir.join("kubelet.json");
        fs::write(&configuration, self::configuration(name).to_string())?;
        let kernel = keys.dir.join("kernel");
        fs::create_dir(&kernel)?;
        for (file, value) in KERNEL {
            fs::write(kernel.join(file.replace('/', ":")), value)?;
        }
        let mut command = Command::new("nsenter");
        command.args([format!("--target={}", runtime.init()?).as_str(), "--mount", "--pid", "--net", "--"]);
        command.args(["sh", "-c", PREPARE]).arg(&kernel).arg(program("kubelet")?);
        command.arg("--config").arg(&configuration).arg("--kubeconfig").arg(&keys.kubelet);
        command.args(["--container-runtime=remote", "--volume-plugin-dir=/var/lib/kubelet/volume-plugins"]);
        command.arg(format!("--container-runtime-endpoint=unix://{}", runtime.socket().display()));
        command.arg(format!("--hostname-override={NODE}")).arg(format!("--node-ip={}", aws::ADDRESS));
        Part::start_command(node, "kubelet", &command).map(Self)
    }

    pub(super) fn runs(&mut self) -> Result<()> {
        self.0.runs()
    }

    pub(super) fn log_text(&self) -> String {
        self.0.log_text()
    }
}

fn configuration(cgroup_root: &str) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup_root}"),
        // In a namespace without an uplink.
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "failSwapOn": false,
        // To set it takes a right that a test may lack.
        "oomScoreAdj": 0,
        "makeIPTablesUtilChains": false,
        "resolvConf": "",
        "nodeStatusUpdateFrequency": "1s",
        // What the machine has left is none of a test's business.
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0.1%", "imagefs.available": "0.1%"},
        "imageGCHighThresholdPercent": 100,
    })
}
