//! Finds pods and their network namespaces, and keeps a listener in each.
//!
//! Sources, in the order of their speed: inotify on the kubepods cgroups, the programs' miss events, a rescan. None of
//! them is trusted with identity, so all may be sloppy: every one leads to the same question, "which namespaces does
//! this pod have now", and the answer is compared with what is served.
use std::{
    collections::{HashMap, HashSet},
    fmt, fs, io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use agent_ebpf::Miss;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::{
    cgroup::{
        CgroupId,
        kubepods::Kubepods,
        path::{Owner, Placement},
    },
    health::Pulse,
    metrics::Metrics,
    netns::OpenError,
    pods::Pods,
    telemetry::{RateLimiter, Verdict},
};

mod handle;
pub mod namespaces;
mod processes;
mod retries;
mod watches;

use handle::Command;
pub use handle::{Commands, DiscoveryHandle, Stopped};
use namespaces::{Namespaces, ServeError};
use processes::{Census, NetnsId, open_netns};
use retries::Retries;
use watches::{Change, Watches};

/// How often everything is looked at again, for what no event told.
pub const RESCAN: Duration = Duration::from_secs(30);

/// A pod whose connections find no listener is looked at once in this time: it can make namespaces, and connections in
/// each, faster than its processes can be counted.
const MISS_INTERVAL: Duration = Duration::from_millis(100);

/// Namespaces of one pod: its own, and some for containers in containers. Each costs three descriptors here.
const NAMESPACES_PER_POD: usize = 16;

/// Discovery cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The watches do not work.
    #[error(
        "cannot watch the kubepods cgroup {path}: {error} (fs.inotify.max_user_watches and fs.inotify.max_user_instances may be too low)"
    )]
    Watch {
        /// Its directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// The programs are attached to a cgroup that no longer exists.
    #[error("the kubepods cgroup {0} was removed: the agent must start anew to find and attach to the new one")]
    RootRemoved(PathBuf),
    /// No namespace can be entered any more.
    #[error("the thread that enters network namespaces has ended")]
    WorkerGone,
    /// The host netns cannot be served.
    #[error("cannot serve the host netns: {0}")]
    Host(#[source] ServeError),
}

struct KnownPod {
    owner: Owner,
    namespaces: HashSet<NetnsId>,
    last_miss: Option<Instant>,
}

/// The one owner of what is known about pods and namespaces.
pub struct Discovery {
    kubepods: Arc<Kubepods>,
    pods: Arc<Pods>,
    metrics: Arc<Metrics>,
    namespaces: Namespaces,
    watches: Watches,
    /// By the path of their cgroup below the kubepods root.
    known: HashMap<String, KnownPod>,
    retries: Retries,
    failures: RateLimiter<String>,
    worker_gone: bool,
}

impl Discovery {
    /// Serves the host netns. Runs in a tokio runtime.
    pub async fn start(
        kubepods: Arc<Kubepods>,
        pods: Arc<Pods>,
        metrics: Arc<Metrics>,
        mut namespaces: Namespaces,
    ) -> Result<Self, DiscoveryError> {
        namespaces.serve_host().await.map_err(DiscoveryError::Host)?;
        let watches = Watches::new().map_err(|error| DiscoveryError::Watch { path: kubepods.directory(), error })?;
        Ok(Self {
            kubepods,
            pods,
            metrics,
            namespaces,
            watches,
            known: HashMap::new(),
            retries: Retries::default(),
            failures: RateLimiter::new(3, Duration::from_mins(1), 1024),
            worker_gone: false,
        })
    }

    /// Looks at everything below the kubepods root once.
    pub async fn scan(&mut self) -> Result<(), DiscoveryError> {
        self.watch_level("")?;
        let mut found = HashSet::new();
        for level in self.levels() {
            for name in self.children(&level) {
                let path = join(&level, &name);
                if let Placement::Pod(pod) = self.kubepods.driver().place(&path) {
                    self.pod_appeared(&path, pod.owner).await;
                    found.insert(path);
                }
            }
        }
        let gone: Vec<String> = self.known.keys().filter(|path| !found.contains(*path)).cloned().collect();
        for path in gone {
            self.pod_ended(&path);
        }
        Ok(())
    }

    /// Follows what happens until the kubepods cgroup is removed.
    pub async fn run(mut self, mut commands: Commands, pulse: Pulse) -> Result<(), DiscoveryError> {
        let mut rescan = interval_at(Instant::now() + RESCAN, RESCAN);
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changes = self.watches.changes() => {
                    let changes = changes
                        .map_err(|error| DiscoveryError::Watch { path: self.kubepods.directory(), error })?;
                    for change in changes {
                        self.change(change).await?;
                    }
                }
                Some(command) = commands.commands.recv() => self.command(command).await,
                Some(miss) = commands.misses.recv() => self.missed(miss).await,
                (path, attempt) = self.retries.next() => self.look_for_processes(path, attempt).await,
                _ = rescan.tick() => {
                    self.rescan().await?;
                    pulse.beat(std::time::Instant::now());
                }
            }
            if self.worker_gone {
                return Err(DiscoveryError::WorkerGone);
            }
        }
    }

    async fn change(&mut self, change: Change) -> Result<(), DiscoveryError> {
        match change {
            Change::Appeared { parent, name } => {
                let path = join(&parent, &name);
                match self.kubepods.driver().place(&path) {
                    Placement::Above => self.level_appeared(&path).await?,
                    Placement::Pod(pod) if pod.pod_path(&path) == path => self.pod_appeared(&path, pod.owner).await,
                    Placement::Pod(_) => self.look_for_processes(path, 0).await,
                    Placement::Foreign => {}
                }
            }
            Change::Vanished { parent, name } => {
                let path = join(&parent, &name);
                match self.kubepods.driver().place(&path) {
                    Placement::Pod(pod) if pod.pod_path(&path) == path => self.pod_ended(&path),
                    Placement::Pod(pod) => self.reconcile(pod.pod_path(&path)).await,
                    Placement::Above | Placement::Foreign => {}
                }
            }
            Change::Removed { directory } if directory.is_empty() => {
                return Err(DiscoveryError::RootRemoved(self.kubepods.directory()));
            }
            // Its parent tells as well.
            Change::Removed { directory } => self.watches.forget(&directory),
            Change::Overflow => self.rescan().await?,
        }
        Ok(())
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Adopt { path, uid, answer } => {
                if self.directory(&path).is_dir() {
                    self.pod_appeared(&path, Owner::Pod(uid)).await;
                }
                // Gone again, or never there: the caller's pod has ended.
                let _ = answer.send(self.pods.get(uid));
            }
            Command::ListenerFailed { cookie } => self.reopen(cookie).await,
        }
    }

    /// A quality-of-service cgroup, which the kubelet makes when it starts and systemd when it is first needed.
    async fn level_appeared(&mut self, path: &str) -> Result<(), DiscoveryError> {
        self.watch_level(path)?;
        for name in self.children(path) {
            let pod = join(path, &name);
            if let Placement::Pod(placed) = self.kubepods.driver().place(&pod) {
                self.pod_appeared(&pod, placed.owner).await;
            }
        }
        Ok(())
    }

    async fn pod_appeared(&mut self, path: &str, owner: Owner) {
        if !self.known.contains_key(path) {
            // Watched before it is listed, so that no container can come in between; and it must still be there after,
            // or its end has been told already.
            let watched = self.watches.add(path, &self.directory(path));
            if let Err(error) = watched {
                if error.kind() == io::ErrorKind::NotFound {
                    return;
                }
                // The rescan finds its namespaces, and its end.
                tracing::error!(pod = path, %error, "cannot watch a pod's cgroup: fs.inotify.max_user_watches may be too low");
            }
            if let Owner::Pod(uid) = owner {
                self.pods.add(uid);
            }
            self.known.insert(path.to_owned(), KnownPod { owner, namespaces: HashSet::new(), last_miss: None });
            for container in self.children(path) {
                self.retries.schedule(join(path, &container), 0);
            }
        }
        self.reconcile(path).await;
    }

    fn pod_ended(&mut self, path: &str) {
        self.watches.forget(path);
        let Some(known) = self.known.remove(path) else { return };
        if let Owner::Pod(uid) = known.owner {
            tracing::debug!(pod_uid = %uid, "pod ended");
            self.pods.end(uid);
        }
        for netns in known.namespaces {
            self.namespaces.leave(netns, path);
        }
    }

    /// Compares the namespaces a pod has with those that are served for it.
    async fn reconcile(&mut self, pod: &str) {
        let census = Census::take(&self.directory(pod));
        for (netns, task) in &census.namespaces {
            self.serve(pod, *netns, *task).await;
        }
        if census.truncated {
            return;
        }
        let Some(known) = self.known.get_mut(pod) else { return };
        let left: Vec<NetnsId> =
            known.namespaces.iter().filter(|netns| !census.namespaces.contains_key(netns)).copied().collect();
        for netns in left {
            known.namespaces.remove(&netns);
            self.namespaces.leave(netns, pod);
        }
    }

    /// A container appeared: its first process may come later, and enters its namespace later still.
    async fn look_for_processes(&mut self, container: String, attempt: usize) {
        let Placement::Pod(placed) = self.kubepods.driver().place(&container) else { return };
        let pod = placed.pod_path(&container).to_owned();
        let directory = self.directory(&container);
        if !self.known.contains_key(&pod) || !directory.is_dir() {
            return;
        }
        let census = Census::take(&directory);
        let mut served = true;
        for (netns, task) in &census.namespaces {
            served &= self.serve(&pod, *netns, *task).await;
        }
        // In the host netns it may only be on its way to its own.
        let at_home = |netns: &NetnsId| !self.namespaces.is_host(*netns);
        let settled = served && census.processes > 0 && census.namespaces.keys().all(at_home);
        if !settled {
            self.retries.schedule(container, attempt + 1);
        }
    }

    /// Serves one namespace for a pod, and says whether it is served; what fails is that pod's, and is tried again by
    /// the rescan.
    async fn serve(&mut self, pod: &str, netns: NetnsId, task: u32) -> bool {
        let Some(known) = self.known.get(pod) else { return false };
        if self.namespaces.is_host(netns) || known.namespaces.contains(&netns) {
            return true;
        }
        if known.namespaces.len() >= NAMESPACES_PER_POD {
            self.failed(pod, &format_args!("it has more than {NAMESPACES_PER_POD} network namespaces"));
            return false;
        }
        // The process is gone, and with it, unless others say so, the namespace.
        let Ok(file) = open_netns(task) else { return false };
        match self.namespaces.join(file, pod).await {
            Ok(netns) if self.namespaces.is_host(netns) => true,
            Ok(netns) => self.known.get_mut(pod).is_some_and(|known| {
                known.namespaces.insert(netns);
                true
            }),
            Err(error) => {
                self.worker_gone |= matches!(error, ServeError::Open(OpenError::WorkerGone));
                self.failed(pod, &error);
                false
            }
        }
    }

    /// Counts what failed for one pod, and logs it at a limited rate: a pod can make it fail as often as it likes.
    fn failed(&mut self, pod: &str, why: &dyn fmt::Display) {
        self.metrics.namespace_failures.inc();
        if let Verdict::Log { suppressed } = self.failures.admit(pod.to_owned(), Instant::now().into_std()) {
            let owner = self.known.get(pod).map(|known| known.owner);
            tracing::error!(cgroup = pod, ?owner, suppressed, "cannot serve a pod's network namespace: {why}");
        }
    }

    /// A connection found no listener: its thread tells the namespace, whatever cgroup it sits in below its pod.
    async fn missed(&mut self, miss: Miss) {
        let located = self.kubepods.locate(CgroupId(miss.cgroup_id));
        let Ok(Some((path, Placement::Pod(placed)))) = located else { return };
        let pod = placed.pod_path(&path).to_owned();
        tracing::debug!(pod, netns_cookie = miss.netns_cookie, "a connection found no listener");
        if !self.known.contains_key(&pod) {
            self.pod_appeared(&pod, placed.owner).await;
        }
        let Some(known) = self.known.get_mut(&pod) else { return };
        let now = Instant::now();
        if known.last_miss.is_some_and(|last| now.duration_since(last) < MISS_INTERVAL) {
            return;
        }
        known.last_miss = Some(now);
        if let Ok(netns) = open_netns(miss.tid).and_then(|file| NetnsId::of(&file)) {
            self.serve(&pod, netns, miss.tid).await;
        }
        self.reconcile(&pod).await;
    }

    async fn reopen(&mut self, cookie: u64) {
        let Some((netns, users)) = self.namespaces.lost(cookie) else { return };
        tracing::warn!(netns_cookie = cookie, "a listener died: opening it anew");
        if self.namespaces.is_host(netns)
            && let Err(error) = self.namespaces.serve_host().await
        {
            tracing::error!(%error, "cannot serve the host netns");
        }
        for pod in users {
            if let Some(known) = self.known.get_mut(&pod) {
                known.namespaces.remove(&netns);
            }
            self.reconcile(&pod).await;
        }
    }

    async fn rescan(&mut self) -> Result<(), DiscoveryError> {
        let before = self.summary();
        self.scan().await?;
        if self.summary() != before {
            self.metrics.reconciliations.inc();
            tracing::info!("a rescan found what no event had told");
        }
        Ok(())
    }

    fn summary(&self) -> Vec<(String, Vec<NetnsId>)> {
        let mut summary: Vec<(String, Vec<NetnsId>)> = self
            .known
            .iter()
            .map(|(path, pod)| {
                let mut namespaces: Vec<NetnsId> = pod.namespaces.iter().copied().collect();
                namespaces.sort_unstable();
                (path.clone(), namespaces)
            })
            .collect();
        summary.sort_unstable();
        summary
    }

    /// The root and the quality-of-service cgroups below it, all watched.
    fn levels(&mut self) -> Vec<String> {
        let mut levels = vec![String::new()];
        for name in self.children("") {
            if self.kubepods.driver().place(&name) == Placement::Above {
                // Unwatched it is still scanned: its pods must neither be missed nor taken for ended.
                if let Err(error) = self.watch_level(&name) {
                    tracing::error!(%error, "pods are only found by the rescan");
                }
                levels.push(name);
            }
        }
        levels
    }

    fn watch_level(&mut self, path: &str) -> Result<(), DiscoveryError> {
        let directory = self.directory(path);
        match self.watches.add(path, &directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_empty() => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(DiscoveryError::RootRemoved(directory)),
            Err(error) => Err(DiscoveryError::Watch { path: directory, error }),
            Ok(()) => Ok(()),
        }
    }

    fn directory(&self, path: &str) -> PathBuf {
        self.kubepods.directory().join(path)
    }

    /// Names of the directories below one of ours; none when it is gone.
    fn children(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.directory(path)) else { return Vec::new() };
        entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}
