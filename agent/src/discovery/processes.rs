//! Which network namespaces the processes of a cgroup live in.
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read as _},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::Path,
    str,
};

use rustix::{
    fs::{CWD, Dir, FileType, Mode, OFlags, fstat, openat, readlink},
    io::Errno,
};

/// Processes looked at in one pod: 4 µs each, and nothing else is discovered meanwhile. A pod beyond it keeps the
/// namespaces that were found.
const MAX_PROCESSES: usize = 1024;
/// Cgroups looked at in one pod.
const MAX_CGROUPS: usize = 256;

const CGROUP: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A network namespace, as the inode of its file names it: all are of one file system (nsfs). Unambiguous as long as
/// somebody holds the namespace open, as the agent's own sockets do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NetnsId(u64);

impl NetnsId {
    /// The namespace an open file refers to.
    pub(super) fn of(netns: &File) -> io::Result<Self> {
        netns.metadata().map(|metadata| Self(metadata.ino()))
    }

    /// What `ls -i /proc/PID/ns/net` shows.
    pub(super) fn inode(self) -> u64 {
        self.0
    }

    /// The namespace of a process or thread. The link's text says it, and takes half of what following it takes: for that
    /// the kernel makes an inode where nobody has the namespace open.
    fn of_task(id: u32) -> io::Result<Self> {
        let link = readlink(netns_path(id), Vec::with_capacity(32))?;
        let inode = link.to_str().ok().and_then(|text| text.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok());
        inode.map(Self).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// What a walk through a cgroup and everything below it found.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// Namespaces, each with a process in it; those of processes high up in the tree, and of old ones, come first.
    pub(super) namespaces: Vec<(NetnsId, u32)>,
    /// The cgroups right below: a pod's containers.
    pub(super) below: Vec<Below>,
    /// Processes seen.
    pub(super) processes: usize,
    /// Processes of another PID namespace, of which only the number can be seen.
    pub(super) hidden: usize,
    /// Whether not everything was seen: absence proves nothing then.
    pub(super) truncated: bool,
}

/// A cgroup right below the one that was looked at, with all that is below it.
#[derive(Debug)]
pub(super) struct Below {
    pub(super) name: String,
    /// Namespaces of the processes that were seen; none where there was no process.
    pub(super) namespaces: Vec<NetnsId>,
}

/// A cgroup to look at, and which of those right below the top it belongs to. Each is opened from the one above it: to walk
/// down to it from the root takes longer than all that is asked of it.
struct Pending {
    cgroup: OwnedFd,
    within: Option<usize>,
}

impl Census {
    /// Walks a cgroup until more than `most` namespaces were found. What vanishes meanwhile is left out.
    pub(super) fn take(cgroup: &Path, most: usize) -> Self {
        let mut census = Self::default();
        let mut pending = VecDeque::new();
        match unless_gone(openat(CWD, cgroup, CGROUP, Mode::empty())) {
            Ok(top) => pending.extend(top.map(|cgroup| Pending { cgroup, within: None })),
            Err(errno) => census.failed(cgroup, errno),
        }
        let mut seen = 0;
        while let Some(next) = pending.pop_front() {
            seen += 1;
            if census.processes >= MAX_PROCESSES || census.namespaces.len() > most {
                census.truncated = true;
                break;
            }
            if let Err(errno) = unless_gone(census.visit(next, &mut pending, MAX_CGROUPS.saturating_sub(seen))) {
                census.failed(cgroup, errno);
            }
        }
        census
    }

    fn failed(&mut self, cgroup: &Path, errno: Errno) {
        tracing::warn!(cgroup = %cgroup.display(), %errno, "cannot look at the processes of a cgroup, or of one below it");
        self.truncated = true;
    }

    /// Whether a process lives there.
    pub(super) fn has(&self, netns: NetnsId) -> bool {
        self.namespaces.iter().any(|(found, _)| *found == netns)
    }

    /// `room` is for how many cgroups may wait.
    fn visit(&mut self, next: Pending, pending: &mut VecDeque<Pending>, room: usize) -> Result<(), Errno> {
        let Pending { cgroup, within } = next;
        // A threaded cgroup does not say its processes; its threads say the same namespaces.
        let tasks = match tasks(&cgroup, "cgroup.procs") {
            Err(Errno::OPNOTSUPP) => tasks(&cgroup, "cgroup.threads")?,
            other => other?,
        };
        for id in tasks {
            // Stands for a process outside this PID namespace.
            if id == 0 {
                self.hidden += 1;
                continue;
            }
            if self.processes >= MAX_PROCESSES {
                self.truncated = true;
                break;
            }
            self.processes += 1;
            if let Ok(netns) = NetnsId::of_task(id) {
                self.found(netns, id, within);
            }
        }
        // Its own name and the one in it are a directory's links, and one from each below. To read a cgroup's directory is
        // the dearest part of a look at it, and most have none below.
        if fstat(&cgroup)?.st_nlink == 2 {
            return Ok(());
        }
        for entry in Dir::read_from(&cgroup)? {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type() != FileType::Directory || [c".", c".."].contains(&name) {
                continue;
            }
            if pending.len() >= room {
                self.truncated = true;
                break;
            }
            let Some(below) = unless_gone(openat(&cgroup, name, CGROUP, Mode::empty()))? else { continue };
            let mut within = within;
            if within.is_none()
                && let Ok(name) = name.to_str()
            {
                within = Some(self.below.len());
                self.below.push(Below { name: name.to_owned(), namespaces: Vec::new() });
            }
            pending.push_back(Pending { cgroup: below, within });
        }
        Ok(())
    }

    fn found(&mut self, netns: NetnsId, task: u32, within: Option<usize>) {
        if !self.has(netns) {
            self.namespaces.push((netns, task));
        }
        if let Some(below) = within.and_then(|at| self.below.get_mut(at))
            && !below.namespaces.contains(&netns)
        {
            below.namespaces.push(netns);
        }
    }
}

/// `None` when the cgroup was removed while it was looked at.
fn unless_gone<T>(looked: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match looked {
        Err(Errno::NOENT | Errno::NODEV) => Ok(None),
        looked => looked.map(Some),
    }
}

/// Opens the namespace of a process or thread. It may have changed since it was looked at: what counts is the file.
pub(super) fn open_netns(task: u32) -> io::Result<File> {
    File::open(netns_path(task))
}

fn netns_path(task: u32) -> String {
    format!("/proc/{task}/ns/net")
}

fn tasks(cgroup: &OwnedFd, file: &str) -> Result<Vec<u32>, Errno> {
    let file = openat(cgroup, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::with_capacity(256);
    // The kernel does not tell how long these files are: the limit is none, and nobody asks for the length first.
    let read = File::from(file).take(u64::MAX).read_to_end(&mut text);
    read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let lines = text.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| str::from_utf8(line).ok()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

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
    fn what_lives_below_is_told_by_the_cgroup_right_below_that_it_lives_in() {
        let top = cgroup("");
        for below in ["container", "container/deeper", "empty"] {
            fs::create_dir(top.path().join(below)).unwrap();
            fs::write(top.path().join(below).join("cgroup.procs"), "").unwrap();
        }
        fs::write(top.path().join("container/deeper/cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
        let census = Census::take(top.path(), 16);
        let mut below: Vec<_> = census.below.iter().map(|below| (&*below.name, below.namespaces.len())).collect();
        below.sort_unstable();
        assert_eq!(below, [("container", 1), ("empty", 0)]);
    }

    #[test]
    fn a_pod_with_more_cgroups_than_are_looked_at_proves_nothing_about_the_rest() {
        let top = cgroup("");
        for below in 0..=MAX_CGROUPS {
            fs::create_dir(top.path().join(below.to_string())).unwrap();
        }
        assert!(Census::take(top.path(), 16).truncated);
        fs::remove_dir(top.path().join("0")).unwrap();
        fs::remove_dir(top.path().join("1")).unwrap();
        assert!(!Census::take(top.path(), 16).truncated);
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
