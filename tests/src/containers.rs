//! Real containers: a containerd of the test's own with runc, driven over the CRI as the kubelet drives it.
//!
//! It runs in the node's network namespace, in a PID and a mount namespace of its own. All its shims and containers are
//! in that PID namespace, whose first process it is, or a systemd that has started it: when that is killed the kernel
//! ends them all, and with the mount namespace go its root file systems and whatever it wrote to places that nobody can
//! configure (`/run/containerd`, `/var/lib/cni`), over which it has a tmpfs.
use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    cgroup::Driver,
    node::Node,
    pod::PodSpec,
    process::{Process, binary, eventually, run},
};

mod agent;
mod cri;
pub(crate) mod image;
mod messages;
mod pod;
mod systemd;

pub use agent::AgentPod;
pub use pod::{Container, CriPod, access_key_of};
pub use systemd::driver;

use image::Image;

/// For it to serve.
const STARTS: Duration = Duration::from_secs(40);

/// For an image of some hundred megabytes to be unpacked.
const IMPORTS: Duration = Duration::from_mins(1);

/// What keeps a sandbox.
const PAUSE: &str = "localhost/pause:test";

/// What applications run in: busybox, certificates, and the libraries of the clients.
pub(crate) const APP: &str = "localhost/app:test";

/// A shell and its tools in one program.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// The SDK for Rust does not start without certificates, though it needs none here.
const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What both images run unless they are told otherwise: nothing.
const SLEEP: [&str; 3] = [BUSYBOX, "sleep", "2147483647"];

/// What it sees instead of the machine's: sockets of shims and of the init system, and state of networks.
const OF_ITS_OWN: &str =
    "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && exec containerd --config \"$0\"";

/// A containerd.
#[derive(Debug)]
pub struct Containerd {
    process: Process,
    socket: PathBuf,
    dir: PathBuf,
}

impl Containerd {
    /// Starts one on a node, with an image for applications. Where the systemd driver lays the cgroups out, a systemd of
    /// the node's own starts it.
    pub fn start(node: &Node) -> Result<Self> {
        let dir = node.dir().join("containerd");
        fs::create_dir_all(dir.join("net.d"))?;
        let (socket, config, log) = (dir.join("cri.sock"), dir.join("config.toml"), dir.join("log"));
        let driver = node.kubepods().driver();
        fs::write(&config, configuration(&dir, &socket, driver))?;
        fs::write(dir.join("net.d/10-node.conf"), network())?;
        let mut command = Command::new(binary("pod-exec")?);
        command.arg("--from").arg(node.netns().path());
        if driver == Driver::Systemd {
            systemd::start(&mut command, node, &config, &log)?;
        } else {
            // In a cgroup of the node's: what is in there ends with the node, whatever else goes wrong.
            command.arg("--cgroup").arg(node.top_cgroup().child("containerd")?.dir());
            command.args(["--", "unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child"]);
            command.args(["--mount-proc", "--", "sh", "-c", OF_ITS_OWN]).arg(&config);
        }
        let mut process = Process::start("containerd", &mut command, &log)?;
        let served = eventually("containerd to serve", STARTS, || {
            if let Some(status) = process.ended()? {
                bail!("it ended with {status}");
            }
            let serves = UnixStream::connect(&socket).is_ok()
                && cri::call::<messages::Nothing>(&socket, "RuntimeService/Version", &messages::Nothing {}).is_ok();
            Ok(serves.then_some(()))
        });
        served.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        let runtime = Self { process, socket, dir };
        let busybox = Path::new(BUSYBOX);
        ensure!(busybox.is_file(), "{BUSYBOX} is not there: cargo xtask setup installs it");
        let sleeping = || Image::default().file(BUSYBOX, busybox).libraries_of(busybox);
        runtime.import(PAUSE, &sleeping()?)?;
        let app = sleeping()?.file(CA_BUNDLE, Path::new(CA_BUNDLE));
        let app = app.libraries_of(&binary("pod-client")?)?.libraries_of(&binary("sdk-client")?)?;
        runtime.import(APP, &app)?;
        Ok(runtime)
    }

    /// Makes a pod of the service account `name` in the namespace `default`, with an association and a container `app`.
    pub fn pod(&self, node: &Node, name: &str) -> Result<CriPod<'_>> {
        node.eks_auth().associate("default", name, name)?;
        self.pod_with(node, PodSpec::named(name))
    }

    /// The same in the host network.
    pub fn host_network_pod(&self, node: &Node, name: &str) -> Result<CriPod<'_>> {
        node.eks_auth().associate("default", name, name)?;
        self.pod_with(node, PodSpec::named(name).host_network())
    }

    fn pod_with(&self, node: &Node, spec: PodSpec) -> Result<CriPod<'_>> {
        let mut pod = self.begin_pod(node, spec)?;
        pod.mount_and_write_token()?;
        pod.run_sandbox()?;
        pod.start_idle("app")?;
        Ok(pod)
    }

    /// Begins a pod as the kubelet does: its cgroup, and the directory of its token volume.
    pub fn begin_pod(&self, node: &Node, spec: PodSpec) -> Result<CriPod<'_>> {
        CriPod::begin(self, node, spec)
    }

    /// Gives it an image.
    pub(crate) fn import(&self, name: &str, image: &Image) -> Result<()> {
        let archive = self.dir.join("image.tar");
        image.save(name, &SLEEP, &archive)?;
        self.import_archive(name, &archive)?;
        Ok(fs::remove_file(archive)?)
    }

    /// Gives it the image in an archive, which says that this is its name.
    pub(crate) fn import_archive(&self, name: &str, archive: &Path) -> Result<()> {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(&self.socket).args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
        let output = run(&mut ctr, IMPORTS)?;
        ensure!(output.status.success(), "{}: {}", archive.display(), String::from_utf8_lossy(&output.stderr));
        // Its CRI learns of the image by an event of its own.
        eventually(&format!("image {name} to be known"), STARTS, || {
            let asked = messages::Image { image: Some(messages::ImageSpec { image: name.to_owned() }) };
            let answer: messages::Image = cri::call(&self.socket, "ImageService/ImageStatus", &asked)?;
            Ok(answer.image.map(|_| ()))
        })
    }

    /// Where it serves the CRI.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The first process of its PID namespace: itself, as the machine knows it.
    pub fn init(&self) -> Result<u32> {
        let starter = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{starter}/task/{starter}/children"))?;
        children.trim().parse().context("containerd is not there")
    }

    /// All that it has logged.
    #[must_use]
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

/// What a node of EKS has, but for: no score of the OOM killer and no `AppArmor` profile, which a test may lack the
/// right to set; nothing in directories of the machine.
fn configuration(dir: &Path, socket: &Path, driver: Driver) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{dir}/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = {systemd}
"#,
        systemd = driver == Driver::Systemd,
        socket = socket.display(),
        dir = dir.display(),
    )
}

/// A veth pair for each pod, as on EKS; the node has no way out.
fn network() -> &'static str {
    r#"{"cniVersion": "0.4.0", "name": "node", "type": "ptp", "ipMasq": false,
"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.86.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}"#
}
