//! Which network namespaces the processes of a cgroup live in.
use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::io::Errno;

/// Processes looked at in one pod: 8 µs each, and nothing else is discovered meanwhile. A pod beyond it keeps the
/// namespaces that were found.
const MAX_PROCESSES: usize = 1024;
/// Cgroups looked at in one pod.
const MAX_CGROUPS: usize = 256;

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

    /// What `ls -i /proc/PID/ns/net` shows.
    pub(super) fn inode(self) -> u64 {
        self.inode
    }

    /// The namespace of a process or thread.
    fn of_task(id: u32) -> io::Result<Self> {
        fs::metadata(netns_path(id)).map(|metadata| Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// What a walk through a cgroup and everything below it found.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// Namespaces, each with a process in it; those of processes high up in the tree, and of old ones, come first.
    pub(super) namespaces: Vec<(NetnsId, u32)>,
    /// Processes seen.
    pub(super) processes: usize,
    /// Processes of another PID namespace, of which only the number can be seen.
    pub(super) hidden: usize,
    /// Whether not everything was seen: absence proves nothing then.
    pub(super) truncated: bool,
}

impl Census {
    /// Walks a cgroup until more than `most` namespaces were found. What vanishes meanwhile is left out.
    pub(super) fn take(cgroup: &Path, most: usize) -> Self {
        let mut census = Self::default();
        let mut pending = VecDeque::from([cgroup.to_owned()]);
        let mut seen = 0;
        while let Some(directory) = pending.pop_front() {
            seen += 1;
            if seen > MAX_CGROUPS || census.processes >= MAX_PROCESSES || census.namespaces.len() > most {
                census.truncated = true;
                break;
            }
            if let Err(error) = census.visit(&directory, &mut pending)
                && !is_gone(&error)
            {
                tracing::warn!(cgroup = %directory.display(), %error, "cannot look at the processes of a cgroup");
                census.truncated = true;
            }
        }
        census
    }

    /// Whether a process lives there.
    pub(super) fn has(&self, netns: NetnsId) -> bool {
        self.namespaces.iter().any(|(found, _)| *found == netns)
    }

    fn visit(&mut self, cgroup: &Path, pending: &mut VecDeque<PathBuf>) -> io::Result<()> {
        // A threaded cgroup does not say its processes; its threads say the same namespaces.
        let tasks = match tasks(&cgroup.join("cgroup.procs")) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => tasks(&cgroup.join("cgroup.threads"))?,
            other => other?,
        };
        for id in tasks {
            if id == 0 {
                self.hidden += 1;
                continue;
            }
            if self.processes >= MAX_PROCESSES {
                self.truncated = true;
                break;
            }
            self.processes += 1;
            if let Ok(netns) = NetnsId::of_task(id)
                && !self.has(netns)
            {
                self.namespaces.push((netns, id));
            }
        }
        for entry in fs::read_dir(cgroup)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push_back(entry.path());
            }
        }
        Ok(())
    }
}

/// Whether a cgroup was removed while it was looked at.
fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NODEV))
}

/// Opens the namespace of a process or thread. It may have changed since it was looked at: what counts is the file.
pub(super) fn open_netns(task: u32) -> io::Result<File> {
    File::open(netns_path(task))
}

fn netns_path(task: u32) -> String {
    format!("/proc/{task}/ns/net")
}

fn tasks(file: &Path) -> io::Result<Vec<u32>> {
    let mut ids = Vec::new();
    for line in BufReader::new(File::open(file)?).lines() {
        // 0 stands for a process outside this PID namespace.
        ids.extend(line?.parse::<u32>().ok());
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory laid out as a cgroup with these tasks.
    fn cgroup(tasks: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("cgroup.procs"), tasks).unwrap();
        directory
    }

    #[test]
    fn processes_below_count_and_each_namespace_is_named_once() {
        let top = cgroup(&format!("{}\n", std::process::id()));
        fs::create_dir(top.path().join("below")).unwrap();
        fs::write(top.path().join("below/cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
        let census = Census::take(top.path(), 16);
        assert_eq!((census.processes, census.namespaces.len(), census.truncated), (2, 1, false));
        let own = NetnsId::of(&File::open("/proc/self/ns/net").unwrap()).unwrap();
        assert!(census.has(own));
    }

    #[test]
    fn processes_of_other_pid_namespaces_are_counted_apart() {
        let census = Census::take(cgroup("0\n0\n").path(), 16);
        assert_eq!((census.processes, census.hidden), (0, 2));
    }

    #[test]
    fn a_cgroup_that_is_gone_is_empty_and_one_that_cannot_be_read_proves_nothing() {
        let gone = Census::take(Path::new("/nonexistent/cgroup"), 16);
        assert_eq!((gone.processes, gone.truncated), (0, false));
        let odd = tempfile::tempdir().unwrap();
        fs::create_dir(odd.path().join("cgroup.procs")).unwrap();
        assert!(Census::take(odd.path(), 16).truncated);
    }

    #[test]
    fn a_pod_with_more_processes_than_are_looked_at_proves_nothing_about_the_rest() {
        let many = "1\n".repeat(MAX_PROCESSES + 1);
        let census = Census::take(cgroup(&many).path(), 16);
        assert_eq!((census.processes, census.truncated), (MAX_PROCESSES, true));
    }
}
