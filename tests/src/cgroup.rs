//! Cgroups as the kubelet and the runtimes lay them out, below a cgroup of the test's own.
use std::{
    fmt::Write as _,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::process::eventually;

/// For killed processes to leave their cgroup.
const EMPTIES: Duration = Duration::from_secs(10);

/// Who names the cgroups: `--cgroup-driver` of the kubelet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_.slice/cri-containerd-C.scope`.
    #[default]
    Systemd,
    /// `kubepods/burstable/podU/C`.
    Cgroupfs,
}

/// Quality of service, which is a level of the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Qos {
    /// No level of its own.
    Guaranteed,
    /// `burstable`.
    #[default]
    Burstable,
    /// `besteffort`.
    BestEffort,
}

/// A cgroup's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup(PathBuf);

/// A cgroup of the test's own directly below the hierarchy's root; everything in it ends with this value.
#[derive(Debug)]
pub struct CgroupTree(Cgroup);

/// The cgroup that holds all pods of a node.
#[derive(Clone, Debug)]
pub struct Kubepods {
    dir: PathBuf,
    driver: Driver,
    /// What the names of slices start with: all parents, and `kubepods`.
    base: String,
}

/// Where cgroup2 is mounted: its own place on hybrid hosts.
pub fn mount_point() -> Result<&'static Path> {
    static MOUNT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = MOUNT.get_or_init(|| {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        line.split(' ').nth(4).map(PathBuf::from)
    });
    found.as_deref().context("no cgroup2 mount on this machine: the tests need one (hybrid or pure)")
}

/// Kills what is in a cgroup and below, and removes it.
pub(crate) fn remove_tree(dir: &Path) -> Result<()> {
    let cgroup = Cgroup(dir.to_owned());
    if !cgroup.exists() {
        return Ok(());
    }
    cgroup.kill()?;
    remove_below(dir)
}

/// Removes a tree of cgroups without processes.
pub(crate) fn remove_below(dir: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_below(&entry.path())?;
    }
    Cgroup(dir.to_owned()).remove()
}

impl CgroupTree {
    /// Makes one.
    pub fn create(name: &str) -> Result<Self> {
        Cgroup::create(mount_point()?.join(name)).map(Self)
    }

    /// The cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.0
    }
}

impl Drop for CgroupTree {
    fn drop(&mut self) {
        let _ = remove_tree(&self.0.0);
        if let Some(name) = self.0.0.file_name() {
            for mount in v1_mounts() {
                let _ = remove_below(&mount.join(name));
            }
        }
    }
}

/// Where hierarchies of cgroup v1 are mounted, if the machine is a hybrid: a runtime makes the same cgroups there.
#[must_use]
pub fn v1_mounts() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let lines = mounts.lines().filter(|line| line.contains(" - cgroup "));
    lines.filter_map(|line| line.split(' ').nth(4).map(PathBuf::from)).collect()
}

impl Cgroup {
    /// Makes a cgroup, and those above it that are missing.
    pub fn create(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("cannot make the cgroup {}", dir.display()))?;
        Ok(Self(dir))
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// Makes one below it.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::create(self.0.join(name))
    }

    /// The kernel's id of it.
    pub fn id(&self) -> Result<u64> {
        Ok(fs::metadata(&self.0)?.ino())
    }

    /// Whether it is there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.0.exists()
    }

    /// Processes directly in it.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let text = fs::read_to_string(self.0.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Moves a process into it.
    pub fn join(&self, pid: u32) -> Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("cannot move process {pid} into {}", self.0.display()))
    }

    /// Kills every process in it and below, and waits until they have left.
    pub fn kill(&self) -> Result<()> {
        fs::write(self.0.join("cgroup.kill"), "1").with_context(|| format!("cannot kill {}", self.0.display()))?;
        eventually(&format!("{} to be empty", self.0.display()), EMPTIES, || {
            let events = fs::read_to_string(self.0.join("cgroup.events"))?;
            Ok(events.lines().any(|line| line == "populated 0").then_some(()))
        })
    }

    /// Removes it; nothing may be in it, nor below.
    pub fn remove(&self) -> Result<()> {
        eventually(&format!("{} to be removable", self.0.display()), EMPTIES, || {
            match fs::remove_dir(&self.0) {
                // A killed process counts until it is reaped.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(())),
                done => done.map(Some).map_err(|error| anyhow!("{}: {error}", self.0.display())),
            }
        })
    }
}

impl Kubepods {
    /// Makes it below `parent`, through `parents` (`--cgroup-root` of the kubelet; kind has `kubelet`).
    pub fn create(parent: &Cgroup, driver: Driver, parents: &[&str]) -> Result<Self> {
        let (mut dir, mut base) = (parent.0.clone(), String::new());
        for name in parents.iter().copied().chain(["kubepods"]) {
            let separator = if base.is_empty() { "" } else { "-" };
            write!(base, "{separator}{name}")?;
            match driver {
                Driver::Systemd => dir.push(format!("{base}.slice")),
                Driver::Cgroupfs => dir.push(name),
            }
        }
        Cgroup::create(dir.clone())?;
        Ok(Self { dir, driver, base })
    }

    /// The cgroup itself.
    #[must_use]
    pub fn cgroup(&self) -> Cgroup {
        Cgroup(self.dir.clone())
    }

    /// Who names the cgroups.
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// The cgroup of a pod, which need not exist.
    #[must_use]
    pub fn pod(&self, qos: Qos, uid: &str) -> Cgroup {
        let level = match qos {
            Qos::Guaranteed => None,
            Qos::Burstable => Some("burstable"),
            Qos::BestEffort => Some("besteffort"),
        };
        let mut dir = self.dir.clone();
        match self.driver {
            Driver::Systemd => {
                let mut base = self.base.clone();
                if let Some(level) = level {
                    base = format!("{base}-{level}");
                    dir.push(format!("{base}.slice"));
                }
                // A dash in a slice's name is a level of the tree.
                dir.push(format!("{base}-pod{}.slice", uid.replace('-', "_")));
            }
            Driver::Cgroupfs => {
                dir.extend(level);
                dir.push(format!("pod{uid}"));
            }
        }
        Cgroup(dir)
    }

    /// What containerd calls a container's cgroup.
    #[must_use]
    pub fn container_name(&self, id: &str) -> String {
        match self.driver {
            Driver::Systemd => format!("cri-containerd-{id}.scope"),
            Driver::Cgroupfs => id.to_owned(),
        }
    }
}

/// Joins the calling process to a cgroup.
pub fn join_self(dir: &Path) -> Result<()> {
    let procs = dir.join("cgroup.procs");
    ensure!(procs.exists(), "{} is not a cgroup", dir.display());
    fs::write(&procs, "0").with_context(|| format!("cannot join {}", dir.display()))
}
