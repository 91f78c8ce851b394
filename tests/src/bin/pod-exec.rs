//! Becomes a process of a pod: joins its cgroup and namespaces, then turns into the command.
//!
//! A process of its own, because a thread that has entered a namespace must never be used for anything else, and
//! because a socket carries the cgroup of the process that made it.
use std::{
    ffi::CString,
    fs::{self, File},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
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
    thread::{
        CapabilitySet, LinkNameSpaceType, capability_is_in_bounding_set, clear_ambient_capability_set,
        move_into_link_name_space, remove_capability_from_bounding_set,
    },
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
    /// In the mount namespace of its own, let nothing be written to but these directories (and what is mounted later)
    #[arg(long, requires = "own_mounts")]
    writable: Vec<PathBuf>,
    /// Have these capabilities and no other, as a container runtime gives them (`SYS_ADMIN,NET_BIND_SERVICE`)
    #[arg(long, value_delimiter = ',')]
    capabilities: Option<Vec<String>>,
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
    if args.own_mounts {
        unshare(CloneFlags::CLONE_NEWNS).context("cannot take a mount namespace")?;
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    }
    if !args.writable.is_empty() {
        make_read_only_except(&args.writable).context("cannot make the file system read-only")?;
    }
    if let Some(names) = &args.capabilities {
        bound_to(names).context("cannot give capabilities up")?;
    }
    // Last: the kernel forgets it when credentials change. It outlives the exec.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut words = Vec::new();
    if args.own_user_and_net {
        words.extend(["unshare", "--user", "--map-root-user", "--net", "--"].map(str::to_owned));
    }
    words.extend(args.command);
    let (program, rest) = words.split_first().context("no command")?;
    Err(anyhow!(Command::new(program).args(rest).exec()).context(format!("cannot run {program}")))
}

/// Makes every mount of this namespace read-only but these, as `readOnlyRootFilesystem` and read-only volumes do. Who can
/// still write writes through a descriptor that it was given: the log.
fn make_read_only_except(writable: &[PathBuf]) -> Result<()> {
    for place in writable {
        mount_bind(place, place)?;
    }
    set_read_only(Path::new("/"), true)?;
    writable.iter().try_for_each(|place| set_read_only(place, false))
}

/// Sets it for a mount, and with `true` for all below: in one step, as mounts of other tests come and go meanwhile.
#[expect(unsafe_code, reason = "no safe crate has mount_setattr")]
fn set_read_only(place: &Path, read_only: bool) -> Result<()> {
    let place = CString::new(place.as_os_str().as_bytes())?;
    let (attr_set, attr_clr) = if read_only { (libc::MOUNT_ATTR_RDONLY, 0) } else { (0, libc::MOUNT_ATTR_RDONLY) };
    let attributes = libc::mount_attr { attr_set, attr_clr, propagation: 0, userns_fd: 0 };
    let flags = if read_only { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path ends with 0, the attributes have the size that is given; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            place.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

/// Takes all other capabilities out of the bounding set: what root executes next has what is left.
fn bound_to(names: &[String]) -> Result<()> {
    let mut keep = CapabilitySet::empty();
    for name in names {
        keep |= CapabilitySet::from_name(name).with_context(|| format!("there is no capability {name}"))?;
    }
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        // The kernel knows no such one, nor a higher one.
        let Ok(bound) = capability_is_in_bounding_set(capability) else { break };
        if bound && !keep.contains(capability) {
            remove_capability_from_bounding_set(capability)?;
        }
    }
    Ok(clear_ambient_capability_set()?)
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
