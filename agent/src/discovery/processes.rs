//! Which network namespaces the processes of a cgroup live in.
use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

/// Processes looked at in one pod. A pod beyond it keeps the namespaces that were found.
const MAX_PROCESSES: usize = 8192;
/// Cgroups looked at in one pod.
const MAX_CGROUPS: usize = 1024;

/// A network namespace, as its file's device and inode name it. Unambiguous as long as somebody holds the namespace
/// open, as the agent's own sockets do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NetnsId {
    device: u64,
    inode: u64,
}

impl NetnsId {
    /// The namespace an open file refers to.
    pub(super) fn of(netns: &File) -> io::Result<Self> {
        netns.metadata().map(|metadata| Self { device: metadata.dev(), inode: metadata.ino() })
    }

    /// The namespace of a process or thread.
    fn of_task(id: u32) -> io::Result<Self> {
        fs::metadata(netns_path(id)).map(|metadata| Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// What a walk through a cgroup and everything below it found.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// A process for each namespace.
    pub(super) namespaces: HashMap<NetnsId, u32>,
    /// Processes seen.
    pub(super) processes: usize,
    /// Whether there was more than the walk may look at: absence proves nothing then.
    pub(super) truncated: bool,
}

impl Census {
    /// Walks a cgroup. What vanishes meanwhile is left out.
    #[must_use]
    pub(super) fn take(cgroup: &Path) -> Self {
        let mut census = Self::default();
        let mut pending = vec![cgroup.to_owned()];
        let mut seen = 0;
        while let Some(directory) = pending.pop() {
            seen += 1;
            if seen > MAX_CGROUPS {
                census.truncated = true;
                break;
            }
            census.count(&directory);
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            pending.extend(entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        }
        census
    }

    fn count(&mut self, cgroup: &Path) {
        // A threaded cgroup does not say its processes; its threads say the same namespaces.
        let Ok(tasks) = tasks(&cgroup.join("cgroup.procs")).or_else(|_| tasks(&cgroup.join("cgroup.threads"))) else {
            return;
        };
        for id in tasks {
            if self.processes >= MAX_PROCESSES {
                self.truncated = true;
                return;
            }
            self.processes += 1;
            if let Ok(netns) = NetnsId::of_task(id) {
                self.namespaces.entry(netns).or_insert(id);
            }
        }
    }
}

/// Opens the namespace of a process or thread. It may have changed since it was looked at: what counts is the file.
pub(super) fn open_netns(task: u32) -> io::Result<File> {
    File::open(netns_path(task))
}

fn netns_path(task: u32) -> String {
    format!("/proc/{task}/ns/net")
}

fn tasks(file: &Path) -> io::Result<HashSet<u32>> {
    let mut ids = HashSet::new();
    for line in BufReader::new(File::open(file)?).lines() {
        // 0 stands for a process outside this PID namespace: without hostPID there is no way to it.
        if let Some(id) = line?.parse().ok().filter(|&id| id != 0) {
            ids.insert(id);
        }
    }
    Ok(ids)
}
