//! Mounts of the cgroup2 hierarchy, and the way from a cgroup id to a path.
use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use procfs::process::Process;
use rustix::io::Errno;

use super::CgroupId;
use crate::sys;

/// `CGROUP2_SUPER_MAGIC` of include/uapi/linux/magic.h.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// What the kernel appends to the path of a removed directory that is still open.
const DELETED: &str = " (deleted)";

/// A cgroup2 mount, held open.
#[derive(Debug)]
pub struct CgroupMount {
    dir: File,
    /// Where it is mounted, as this process sees it.
    mount_point: PathBuf,
    /// Which cgroup its top is, relative to this process's cgroup namespace (`/../..` lies above the namespace).
    root: String,
}

/// Why a cgroup id has no path.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// There is no such cgroup any more.
    #[error("the cgroup is gone")]
    Gone,
    /// The kernel refused to look.
    #[error("cannot resolve a cgroup id: {0} (it needs CAP_DAC_READ_SEARCH)")]
    Failed(#[source] io::Error),
}

/// Why the cgroup mounts could not be listed or opened.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// /proc could not be read.
    #[error("cannot read /proc/self: {0}")]
    Proc(#[from] procfs::ProcError),
    /// The hierarchy is not there at all.
    #[error(
        "no cgroup2 mount found: the node must run cgroup v2 (or hybrid), and its /sys/fs/cgroup must be mounted into \
         this container"
    )]
    Missing,
    /// This process's own cgroup is not visible through any mount.
    #[error("this process's own cgroup {0} is not below any cgroup2 mount: mount the node's /sys/fs/cgroup")]
    OwnCgroup(String),
}

impl CgroupMount {
    /// Every cgroup2 mount of this mount namespace that can be opened (`/proc/self/mountinfo`), oldest first.
    pub fn all() -> Result<Vec<Self>, MountError> {
        let mut mounts = Vec::new();
        for info in Process::myself()?.mountinfo()?.0 {
            if info.fs_type != "cgroup2" {
                continue;
            }
            let dir = match File::open(&info.mount_point) {
                Ok(dir) => dir,
                Err(error) => {
                    tracing::debug!(mount_point = %info.mount_point.display(), %error, "cannot open a cgroup2 mount");
                    continue;
                }
            };
            // Something may be mounted over it: what counts is what the path leads to.
            if is_cgroup2(&dir) {
                mounts.push(Self { dir, mount_point: info.mount_point, root: info.root });
            }
        }
        if mounts.is_empty() { Err(MountError::Missing) } else { Ok(mounts) }
    }

    /// The path of a cgroup below this mount, starting with `/`; `/` alone is the mount's own top.
    ///
    /// A cgroup outside the mounted subtree reads back as `/` too: the caller must know that the mount is wide enough.
    pub fn path_of(&self, id: CgroupId) -> Result<String, ResolveError> {
        let dir = sys::open_cgroup_by_id(&self.dir, id.0).map_err(|error| {
            match Errno::from_io_error(&error) {
                // ENOENT is what a node that is being removed answers.
                Some(Errno::STALE | Errno::NOENT) => ResolveError::Gone,
                _ => ResolveError::Failed(error),
            }
        })?;
        let link = rustix::fs::readlink(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()), Vec::new())
            .map_err(|errno| ResolveError::Failed(errno.into()))?;
        let path = PathBuf::from(OsString::from_vec(link.into_bytes()));
        // Cgroup names may be any bytes; one that is not UTF-8 was made by a pod, never by the kubelet or a runtime,
        // and only the part above it says who the pod is.
        let path = path.strip_prefix(&self.mount_point).unwrap_or(&path).to_string_lossy().into_owned();
        if path.ends_with(DELETED) {
            return Err(ResolveError::Gone);
        }
        Ok(format!("/{path}"))
    }

    /// Where a cgroup path of this mount lies in the file system.
    #[must_use]
    pub fn directory(&self, cgroup_path: &str) -> PathBuf {
        self.mount_point.join(cgroup_path.trim_start_matches('/'))
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The directory of the cgroup that /proc calls `path`, if this mount reaches it.
    fn directory_of_proc_path(&self, path: &str) -> Option<PathBuf> {
        let below = if self.root == "/" { path } else { path.strip_prefix(&self.root)? };
        (below.is_empty() || below.starts_with('/')).then(|| self.directory(below))
    }
}

/// The id of this process's own cgroup.
///
/// In a container with a cgroup namespace of its own, /proc calls the cgroup `/` and the container's own mount has it
/// as its top; elsewhere /proc says the path from the hierarchy's root. Both are the same rule: the path below the
/// first mount that reaches it.
pub fn own_cgroup_id(mounts: &[CgroupMount]) -> Result<CgroupId, MountError> {
    let own = Process::myself()?
        .cgroups()?
        .into_iter()
        .find(|c| c.hierarchy == 0)
        .map(|c| c.pathname)
        .ok_or(MountError::Missing)?;
    mounts
        .iter()
        .filter_map(|mount| mount.directory_of_proc_path(&own))
        .find_map(|dir| cgroup_id(&dir).ok())
        .ok_or(MountError::OwnCgroup(own))
}

/// The id of the cgroup whose directory this is.
pub fn cgroup_id(dir: &Path) -> io::Result<CgroupId> {
    std::fs::metadata(dir).map(|metadata| CgroupId(metadata.ino()))
}

/// Whether the directory lies on a cgroup2 hierarchy.
pub(super) fn is_cgroup2(dir: &File) -> bool {
    rustix::fs::fstatfs(dir).is_ok_and(|fs| fs.f_type == CGROUP2_MAGIC)
}
