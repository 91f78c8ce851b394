//! Cgroups, from the kernel's 64-bit id to the pod: [`mount`] finds the hierarchy and resolves ids, [`kubepods`] finds
//! the cgroup that holds all pods, [`path`] reads pods out of the paths below it, [`resolver`] does so for another thread.
pub mod kubepods;
pub mod mount;
pub mod path;
pub mod resolver;

use std::fmt;

/// The kernel's id of a cgroup (the inode number of its directory): 64 bits, never used twice while the system runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CgroupId(pub u64);

impl fmt::Display for CgroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
