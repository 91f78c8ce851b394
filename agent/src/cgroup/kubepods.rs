//! The cgroup below which the kubelet keeps all pods: found through the agent's own cgroup, or given.
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::{
    CgroupId,
    mount::{self, CgroupMount, MountError, ResolveError},
    path::{Driver, Placement},
};

/// The kubepods cgroup, with the mount through which ids are resolved.
#[derive(Debug)]
pub struct Kubepods {
    mount: CgroupMount,
    /// Path below the mount, without a slash at its end.
    path: String,
    driver: Driver,
    id: CgroupId,
}

/// Where a cgroup stands: its path below the kubepods root, and what that says. `None` for one that is not below it.
pub type Located = Result<Option<(String, Placement)>, ResolveError>;

/// Why there is no kubepods cgroup to work with.
#[derive(Debug, thiserror::Error)]
pub enum KubepodsError {
    /// The cgroup mounts are not usable.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The agent is no pod, so it cannot tell which kubepods cgroup is meant.
    #[error(
        "this agent does not run below a kubepods cgroup (its own is {own}), so pods of this node could be missed \
         silently: run it as a pod, with the node's /sys/fs/cgroup mounted, or name the cgroup that holds all pods with \
         --kubepods-cgroup"
    )]
    NotAPod {
        /// The agent's own cgroup, as far as it can be seen.
        own: String,
    },
    /// The agent's own cgroup could not be resolved.
    #[error("cannot tell which cgroup this agent runs in: {0}")]
    Own(#[from] ResolveError),
    /// What was given is not there.
    #[error("--kubepods-cgroup {0}: {1}")]
    Given(PathBuf, #[source] io::Error),
    /// What was given is not on a cgroup2 mount.
    #[error("--kubepods-cgroup {0} is not a directory of a cgroup2 mount")]
    NotCgroup2(PathBuf),
    /// What was found cannot be used.
    #[error("cannot use the kubepods cgroup {0} that this agent runs below: {1}")]
    Found(PathBuf, #[source] io::Error),
    /// What was given is not named as the kubelet names it.
    #[error("--kubepods-cgroup {0}: the name must be kubepods, kubepods.slice or <parents>-kubepods.slice")]
    Name(PathBuf),
}

impl Kubepods {
    /// Finds the root through the agent's own cgroup id.
    ///
    /// A container's own mount resolves every foreign cgroup to `/`, silently; so each mount is asked for the agent's
    /// own id, and the one that shows a kubepods cgroup above it is wide enough.
    pub fn find() -> Result<Self, KubepodsError> {
        let mounts = CgroupMount::all()?;
        let own = mount::own_cgroup_id(&mounts)?;
        let mut seen = String::from("/");
        for mount in mounts {
            let path = match mount.path_of(own) {
                Ok(path) => path,
                Err(ResolveError::Gone) => continue,
                Err(error) => return Err(error.into()),
            };
            if let Some(end) = root_above(&path) {
                let root = path.get(..end).unwrap_or_default();
                return Self::open(mount, root).map_err(|error| match error {
                    KubepodsError::Given(path, error) => KubepodsError::Found(path, error),
                    other => other,
                });
            }
            if path.len() > seen.len() {
                seen = path;
            }
        }
        Err(KubepodsError::NotAPod { own: seen })
    }

    /// Takes the directory that was given: as this process sees it, or as a path below a cgroup2 mount.
    pub fn given(directory: &Path) -> Result<Self, KubepodsError> {
        let mounts = CgroupMount::all()?;
        let found = |dir: PathBuf| dir.canonicalize().ok();
        let relative = directory.strip_prefix("/").unwrap_or(directory);
        let canonical = found(directory.to_owned())
            .filter(|dir| mounts.iter().any(|m| dir.starts_with(m.mount_point())))
            .or_else(|| mounts.iter().find_map(|m| found(m.mount_point().join(relative))))
            .ok_or_else(|| KubepodsError::Given(directory.to_owned(), io::ErrorKind::NotFound.into()))?;
        let mount = mounts
            .into_iter()
            .filter(|m| canonical.starts_with(m.mount_point()))
            .max_by_key(|m| m.mount_point().as_os_str().len())
            .ok_or_else(|| KubepodsError::NotCgroup2(directory.to_owned()))?;
        let path = canonical.strip_prefix(mount.mount_point()).ok().and_then(Path::to_str);
        let path = path.ok_or_else(|| KubepodsError::Name(directory.to_owned()))?.to_owned();
        Self::open(mount, &format!("/{path}"))
    }

    fn open(mount: CgroupMount, path: &str) -> Result<Self, KubepodsError> {
        let directory = mount.directory(path);
        let name = path.rsplit('/').next().unwrap_or_default();
        let driver = Driver::of_root(name).ok_or_else(|| KubepodsError::Name(directory.clone()))?;
        let file = File::open(&directory).map_err(|e| KubepodsError::Given(directory.clone(), e))?;
        if !mount::is_cgroup2(&file) {
            return Err(KubepodsError::NotCgroup2(directory));
        }
        let id = mount::cgroup_id(&directory).map_err(|e| KubepodsError::Given(directory, e))?;
        Ok(Self { mount, path: path.to_owned(), driver, id })
    }

    /// Its directory, for attaching programs and setting watches.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.mount.directory(&self.path)
    }

    /// Its path below the mount.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its cgroup id.
    #[must_use]
    pub fn id(&self) -> CgroupId {
        self.id
    }

    /// How the kubelet names what lies below.
    #[must_use]
    pub fn driver(&self) -> &Driver {
        &self.driver
    }

    /// Where a cgroup stands: `None` when it is not below the root.
    ///
    /// The path alone says so: cgroup2 has no rename, a path that starts with the root's lies below it for as long as
    /// the root itself lives, and the agent ends when that is removed.
    pub fn locate(&self, id: CgroupId) -> Located {
        let path = self.mount.path_of(id)?;
        let Some(below) = path.strip_prefix(&self.path).filter(|p| p.is_empty() || p.starts_with('/')) else {
            return Ok(None);
        };
        let placement = self.driver.place(below);
        Ok(Some((below.to_owned(), placement)))
    }
}

/// Where the path of the kubepods root ends, above this container.
///
/// The lowest match counts: the agent's own container has no cgroups below it that look like a kubelet's, but in a
/// nested cluster there may be another kubelet's above. What follows the root must read as a pod, or it is no root.
fn root_above(path: &str) -> Option<usize> {
    let ends = path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]);
    ends.filter(|&end| {
        let (root, below) = path.split_at(end);
        let name = root.rsplit('/').next().unwrap_or_default();
        Driver::of_root(name).is_some_and(|driver| matches!(driver.place(below), Placement::Pod(_)))
    })
    .last()
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const U: &str = "6a4d7b1e_0c7b_4b43_9f0e_1d6f3b1f2a77";

    #[track_caller]
    fn root(path: &str) -> Option<String> {
        root_above(path).map(|end| path[..end].to_owned())
    }

    #[test]
    fn the_root_is_found_above_the_agents_own_container() {
        for (prefix, base) in [
            ("/kubepods.slice", "kubepods"),
            ("/kubelet.slice/kubelet-kubepods.slice", "kubelet-kubepods"),
            ("/docker/0123/kubelet.slice/kubelet-kubepods.slice", "kubelet-kubepods"),
        ] {
            let path =
                format!("{prefix}/{base}-burstable.slice/{base}-burstable-pod{U}.slice/cri-containerd-{C}.scope");
            assert_eq!(root(&path).as_deref(), Some(prefix));
            let path = format!("{prefix}/{base}-pod{U}.slice/cri-containerd-{C}.scope");
            assert_eq!(root(&path).as_deref(), Some(prefix));
        }
        let uid = U.replace('_', "-");
        assert_eq!(root(&format!("/kubepods/burstable/pod{uid}/{C}")).as_deref(), Some("/kubepods"));
        assert_eq!(root(&format!("/a/b/kubepods/pod{uid}/{C}")).as_deref(), Some("/a/b/kubepods"));
    }

    #[test]
    fn in_a_nested_cluster_the_inner_root_is_the_agents() {
        let outer = format!("/kubepods.slice/kubepods-pod{U}.slice/cri-containerd-{C}.scope");
        let inner = format!("{outer}/kubelet.slice/kubelet-kubepods.slice");
        let own = format!("{inner}/kubelet-kubepods-pod{U}.slice/cri-containerd-{C}.scope");
        assert_eq!(root(&own), Some(inner));
    }

    #[test]
    fn a_process_outside_pods_has_no_root() {
        for path in ["/", "/system.slice/containerd.service", "/kubepods.slice", "/kubepods/burstable", "/kubepods/x/y"]
        {
            assert_eq!(root(path), None, "{path}");
        }
    }
}
