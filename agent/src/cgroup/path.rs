//! Reads a pod out of a cgroup path.
//!
//! Paths are read from the kubepods root downwards and only the first segments count: a pod can make directories of
//! any name below its own cgroup, never above it.
use std::fmt;

use crate::pod_uid::PodUid;

/// Which names the kubelet gives to cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Plain directories: `burstable/pod<uid>`.
    Cgroupfs,
    /// systemd slices that repeat their ancestors: `kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice`.
    /// Holds the root's name without `.slice`.
    Systemd(String),
}

/// Where a path below the kubepods root stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The root or one of the two quality-of-service cgroups.
    Above,
    /// In or at the cgroup of a pod.
    Pod(PodCgroup),
    /// Nothing that the kubelet makes.
    Foreign,
}

/// A pod's cgroup, or one below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    /// Whose it is.
    pub owner: Owner,
    /// How many leading segments of the path name the pod (1 or 2).
    pub depth: usize,
    /// The container, when the path goes that deep and its name is a runtime's.
    pub container: Option<ContainerId>,
}

impl PodCgroup {
    /// The leading part of `path` (the path this was read from) that is the pod's own cgroup.
    #[must_use]
    pub fn pod_path<'a>(&self, path: &'a str) -> &'a str {
        let path = path.trim_start_matches('/');
        match path.match_indices('/').nth(self.depth.saturating_sub(1)) {
            Some((end, _)) => path.split_at(end).0,
            None => path,
        }
    }
}

/// Who owns a pod's cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A pod of the API server.
    Pod(PodUid),
    /// A static pod: the kubelet names it by a hash of its manifest (32 hex digits). It has no service account.
    Static,
}

/// A container's id as the runtime gave it: 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContainerId([u8; 64]);

impl ContainerId {
    /// Reads the last dash-separated part of a cgroup name: `<id>`, `crio-<id>`, `cri-containerd-<id>.scope`, …
    fn from_cgroup_name(name: &str) -> Option<Self> {
        let name = name.strip_suffix(".scope").unwrap_or(name);
        let id = name.rsplit('-').next()?;
        let bytes: [u8; 64] = id.as_bytes().try_into().ok()?;
        bytes.iter().all(u8::is_ascii_hexdigit).then_some(Self(bytes))
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only hexadecimal digits get in.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Driver {
    /// Tells the driver by the name of the kubepods root: `kubepods`, `kubepods.slice`, `<parents>-kubepods.slice`.
    #[must_use]
    pub fn of_root(name: &str) -> Option<Self> {
        match name.strip_suffix(".slice") {
            Some(base) if base == "kubepods" || base.ends_with("-kubepods") => Some(Self::Systemd(base.to_owned())),
            None if name == "kubepods" => Some(Self::Cgroupfs),
            _ => None,
        }
    }

    /// Says what stands at `path`, which is relative to the kubepods root.
    #[must_use]
    pub fn place(&self, path: &str) -> Placement {
        let mut segments = path.trim_matches('/').split('/');
        let first = segments.next().unwrap_or_default();
        if first.is_empty() {
            return Placement::Above;
        }
        let (pod, depth) = match self.quality_of_service(first) {
            None => (self.owner(first, None), 1),
            Some(qos) => match segments.next() {
                None => return Placement::Above,
                Some(second) => (self.owner(second, Some(qos)), 2),
            },
        };
        match pod {
            None => Placement::Foreign,
            Some(owner) => Placement::Pod(PodCgroup {
                owner,
                depth,
                container: segments.next().and_then(ContainerId::from_cgroup_name),
            }),
        }
    }

    /// The quality-of-service class that a directory below the root stands for; guaranteed pods have none.
    fn quality_of_service(&self, segment: &str) -> Option<&'static str> {
        let class = match self {
            Self::Cgroupfs => segment,
            Self::Systemd(base) => slice_below(segment, base)?,
        };
        ["burstable", "besteffort"].into_iter().find(|qos| *qos == class)
    }

    fn owner(&self, segment: &str, qos: Option<&str>) -> Option<Owner> {
        let name = match self {
            Self::Cgroupfs => segment,
            Self::Systemd(base) => {
                let below_root = slice_below(segment, base)?;
                match qos {
                    None => below_root,
                    Some(qos) => below_root.strip_prefix(qos)?.strip_prefix('-')?,
                }
            }
        };
        let id = name.strip_prefix("pod")?;
        if id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Some(Owner::Static);
        }
        let uid = match self {
            Self::Cgroupfs => id.parse(),
            Self::Systemd(_) => PodUid::from_systemd(id),
        };
        uid.ok().map(Owner::Pod)
    }
}

/// What a slice adds to the name of its parent: `kubepods-burstable.slice` below `kubepods` adds `burstable`.
fn slice_below<'a>(segment: &'a str, base: &str) -> Option<&'a str> {
    segment.strip_prefix(base)?.strip_prefix('-')?.strip_suffix(".slice")
}

#[cfg(test)]
mod tests;
