//! Becomes a process of a pod: joins its cgroup and namespaces, then turns into the command.
//!
//! A process of its own, because a thread that has entered a namespace must never be used for anything else, and
//! because a socket carries the cgroup of the process that made it.
use std::{
    fs::{self, File},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow};
use clap::Parser;
use nix::sched::{CloneFlags, unshare};
use pod_identity_tests::{aws::application::TOKEN_FILE, cgroup};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change},
    process::{Signal, set_parent_process_death_signal},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// Runs a command as a process of a pod
#[derive(Debug, Parser)]
struct Args {
    /// File of the network namespace to come from: the node's, in which runtimes start processes
    #[arg(long)]
    from: Option<PathBuf>,
    /// Directory of the cgroup to join
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// File of the network namespace to enter
    #[arg(long)]
    netns: Option<PathBuf>,
    /// File of the user namespace to enter
    #[arg(long)]
    userns: Option<PathBuf>,
    /// Take a mount namespace of its own, in which mounts of this one appear (`HostToContainer`)
    #[arg(long)]
    own_mounts: bool,
    /// Take a user and a network namespace of its own, as a pod with `hostUsers: false` has
    #[arg(long)]
    own_user_and_net: bool,
    /// Take a mount namespace of its own in which this token volume lies where EKS mounts it into pods
    #[arg(long)]
    token_volume: Option<PathBuf>,
    /// What to run
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let open = |path: &PathBuf| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let enter_net = |netns: &File| move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network));
    let from = args.from.as_ref().map(open).transpose()?;
    let (userns, netns) = (args.userns.as_ref().map(open).transpose()?, args.netns.as_ref().map(open).transpose()?);
    // Before the cgroup is joined: from then on an agent looks at this process, and must not see a namespace that is
    // neither the node's nor the pod's.
    if let Some(from) = from {
        enter_net(&from).context("cannot enter the node's netns")?;
    }
    if let Some(dir) = &args.cgroup {
        cgroup::join_self(dir)?;
    }
    if let Some(userns) = userns {
        move_into_link_name_space(userns.as_fd(), Some(LinkNameSpaceType::User)).context("cannot enter the userns")?;
    }
    if let Some(netns) = netns {
        enter_net(&netns).context("cannot enter the netns")?;
    }
    if let Some(volume) = &args.token_volume {
        mount_token_volume(volume).context("cannot mount the token volume as EKS does")?;
    }
    // Last: the kernel forgets it when credentials change. It outlives the exec.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut words = Vec::new();
    if args.own_mounts {
        words.extend(["unshare", "--mount", "--propagation", "slave", "--"].map(str::to_owned));
    }
    if args.own_user_and_net {
        words.extend(["unshare", "--user", "--map-root-user", "--net", "--"].map(str::to_owned));
    }
    words.extend(args.command);
    let (program, rest) = words.split_first().context("no command")?;
    Err(anyhow!(Command::new(program).args(rest).exec()).context(format!("cannot run {program}")))
}

/// Mounts a token volume at its place in pods. A tmpfs of this process's own over /run makes room for it, so nothing of
/// it is ever on the machine.
fn mount_token_volume(volume: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Opened before the node's /run is out of sight, but here: only mounts of one's own namespace can be bound.
    let volume = File::open(volume)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // /var/run is a link to /run on every system of this decade; should it be none, it gets the tmpfs.
    mount("tmpfs", fs::canonicalize("/var/run")?, "tmpfs", MountFlags::empty(), None)?;
    let place = Path::new(TOKEN_FILE).parent().context("the token's file lies nowhere")?;
    fs::create_dir_all(place)?;
    Ok(mount_bind(format!("/proc/self/fd/{}", volume.as_raw_fd()), place)?)
}
