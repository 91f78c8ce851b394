//! A node as EKS has them: systemd is its first process, sees cgroup v2 and nothing of v1, and makes the cgroups
//! (`kubepods.slice/…/cri-containerd-….scope`).
//!
//! It has a Debian of its own for a root, below a tmpfs that takes what is written, and of this machine what a node and
//! a runtime have to be given: devices, the node's files, and this workspace's programs.
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{cgroup::Driver, node::Node, process::binary};

/// Names the root; `cargo xtask test containers --full` makes one and sets it.
const VARIABLE: &str = "POD_IDENTITY_SYSTEMD_ROOT";

/// Which driver the nodes of this run have.
#[must_use]
pub fn driver() -> Driver {
    if env::var_os(VARIABLE).is_some() { Driver::Systemd } else { Driver::Cgroupfs }
}

/// Makes the file system and becomes systemd. What there is of units is what a runtime needs: none that would touch this
/// machine's devices, modules or settings, which cannot be written to besides. Where the machine has bound its
/// controllers to hierarchies of v1, none is left for v2, and runc is not told the CPU shares that it could not set.
const BECOME_SYSTEMD: &str = r#"set -e
root=$1 node=$2 programs=$3 config=$4 log=$5
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/new
mount -t overlay overlay -o "lowerdir=$root,upperdir=/mnt/upper,workdir=/mnt/work" /mnt/new
cd /mnt/new
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir -p "./$node" "./$programs" var/lib/containerd old
mount -t tmpfs tmpfs var/lib/containerd
mount --rbind "$node" "./$node"
mount --bind -o ro "$programs" "./$programs"
cat > etc/systemd/system/node.target <<END
[Unit]
DefaultDependencies=no
Wants=node-containerd.service
END
cat > etc/systemd/system/node-containerd.service <<END
[Unit]
DefaultDependencies=no
[Service]
ExecStart=/usr/bin/containerd --config $config
Delegate=yes
KillMode=process
StandardOutput=append:$log
StandardError=append:$log
END
cat > usr/local/sbin/runc <<'END'
#!/bin/sh
grep -qw cpu /sys/fs/cgroup/cgroup.controllers || for word; do
  [ "$before" != --bundle ] || sed -i 's/"cpu":{[^}]*}/"cpu":{}/' "$word/config.json"
  before=$word
done
exec /usr/sbin/runc "$@"
END
chmod +x usr/local/sbin/runc
pivot_root . old
umount -l /old
exec env -i container=test PATH=/usr/sbin:/usr/bin /usr/lib/systemd/systemd --unit=node.target --log-target=console"#;

/// Adds to a command what starts it in the node's top cgroup, which is the root of what it sees.
pub(super) fn start(command: &mut Command, node: &Node, config: &Path, log: &Path) -> Result<()> {
    let root: PathBuf = env::var_os(VARIABLE)
        .with_context(|| format!("the systemd driver needs a systemd: {VARIABLE} names no root of one"))?
        .into();
    ensure!(root.join("usr/lib/systemd/systemd").is_file(), "{} has no systemd", root.display());
    command.arg("--cgroup").arg(node.top_cgroup().dir());
    command.args(["--", "unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child"]);
    command.args(["--uts", "--ipc", "--cgroup", "--", "sh", "-c", BECOME_SYSTEMD, "sh"]).arg(root).arg(node.dir());
    let program = binary("pod-client")?;
    command.arg(program.parent().context("a program lies in a directory")?).arg(config).arg(log);
    Ok(())
}
