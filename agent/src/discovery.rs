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

use tokio::time::{Instant, Interval, interval_at};

use crate::{
    cgroup::{
        kubepods::Kubepods,
        mount::cgroup_id,
        path::{Owner, Placement},
    },
    health::Pulse,
    metrics::Metrics,
    netns::OpenError,
    pods::Pods,
    slow_clock::Ticks,
    telemetry::{RateLimiter, Verdict},
};

mod handle;
mod looks;
pub mod namespaces;
mod processes;
mod retries;
mod survey;
mod watches;

use handle::Command;
pub use handle::{Commands, DiscoveryHandle, Stopped};
use namespaces::{Namespaces, ServeError};
use processes::{Census, NetnsId};
use retries::Retries;
pub use survey::{Listener, Place, Survey};
use watches::{Change, Watches};

/// Everything is looked at again with every so many ticks of the slow clock, for what no event told.
pub const RESCAN_TICKS: u64 = 2;

/// How often when the node lets nothing be watched.
const BLIND_RESCAN: Duration = Duration::from_secs(1);

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
    /// Until when the pod's own doings lead to no further look at it.
    rest_until: Option<Instant>,
    /// Why one of its namespaces could not be served at the last try.
    failure: Option<String>,
}

/// A look at a pod.
struct Look {
    census: Census,
    /// Whether it is the first: containers that are only coming are looked for again.
    first: bool,
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
    /// Until when misses and lost listeners do not lead to another try to serve the host netns.
    host_rests_until: Option<Instant>,
}

impl Discovery {
    /// Serves the host netns. Runs in a tokio runtime.
    pub async fn start(
        kubepods: Arc<Kubepods>,
        pods: Arc<Pods>,
        metrics: Arc<Metrics>,
        namespaces: Namespaces,
    ) -> Result<Self, DiscoveryError> {
        let mut discovery = Self {
            kubepods,
            pods,
            metrics,
            namespaces,
            watches: Watches::new(),
            known: HashMap::new(),
            retries: Retries::default(),
            failures: RateLimiter::new(3, Duration::from_mins(1), 1024),
            worker_gone: false,
            host_rests_until: None,
        };
        match discovery.namespaces.serve_host().await {
            // What the kernel lacks for one namespace it lacks for all.
            Err(error @ (ServeError::Steer(_) | ServeError::Identify(_))) => return Err(DiscoveryError::Host(error)),
            // A pod of the host network may have taken every port: that must not cost the other pods theirs.
            Err(error) => discovery.failed("the host netns", &error),
            Ok(()) => {}
        }
        Ok(discovery)
    }

    /// Looks at everything below the kubepods root once.
    pub async fn scan(&mut self) -> Result<(), DiscoveryError> {
        let root = self.directory("");
        // A root of the same name that was made anew is not the one that the programs are attached to.
        if cgroup_id(&root).ok() != Some(self.kubepods.id()) {
            return Err(DiscoveryError::RootRemoved(root));
        }
        self.watch_level("")?;
        let mut found = HashSet::new();
        let mut looks = Vec::new();
        let mut complete = true;
        for level in self.levels(&mut complete) {
            for name in self.children(&level, &mut complete) {
                let path = join(&level, &name);
                if let Placement::Pod(pod) = self.kubepods.driver().place(&path) {
                    if let Some(look) = self.meet(&path, pod.owner) {
                        self.begin(&look);
                        looks.push((path.clone(), look));
                    }
                    found.insert(path);
                }
            }
        }
        for (path, look) in looks {
            self.compare(&path, look).await;
        }
        self.namespaces.drop_begun();
        if !complete {
            // What could not be read is no proof that a pod has ended.
            return Ok(());
        }
        let gone: Vec<String> = self.known.keys().filter(|path| !found.contains(*path)).cloned().collect();
        for path in gone {
            self.pod_ended(&path);
        }
        Ok(())
    }

    /// Follows what happens until the kubepods cgroup is removed.
    pub async fn run(mut self, mut commands: Commands, mut due: Ticks, pulse: Pulse) -> Result<(), DiscoveryError> {
        let mut often = self.watches.is_blind().then(|| interval_at(Instant::now() + BLIND_RESCAN, BLIND_RESCAN));
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
                () = rescan_due(&mut often, &mut due) => {
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
                    Placement::Above => self.watches.forget(&path),
                    Placement::Foreign => {}
                }
            }
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
            Command::ListenerFailed { serial } => self.reopen(serial).await,
            // Whoever asked may have gone.
            Command::Survey { answer } => drop(answer.send(self.survey())),
        }
    }

    /// A quality-of-service cgroup, which the kubelet makes when it starts and systemd when it is first needed.
    async fn level_appeared(&mut self, path: &str) -> Result<(), DiscoveryError> {
        self.watch_level(path)?;
        for name in self.children(path, &mut true) {
            let pod = join(path, &name);
            if let Placement::Pod(placed) = self.kubepods.driver().place(&pod) {
                self.pod_appeared(&pod, placed.owner).await;
            }
        }
        Ok(())
    }

    async fn pod_appeared(&mut self, path: &str, owner: Owner) {
        if let Some(look) = self.meet(path, owner) {
            self.compare(path, look).await;
        }
    }

    /// Looks at a pod, and knows it from now on; `None` when it has ended already.
    fn meet(&mut self, path: &str, owner: Owner) -> Option<Look> {
        let first = !self.known.contains_key(path);
        if first {
            // Watched before it is looked at, so that no container can come in between; and it must still be there after,
            // or its end has been told already.
            let watched = self.watches.add(path, &self.directory(path));
            if let Err(error) = watched {
                if error.kind() == io::ErrorKind::NotFound {
                    return None;
                }
                // The rescan finds its namespaces, and its end.
                tracing::error!(pod = path, %error, "cannot watch a pod's cgroup: fs.inotify.max_user_watches may be too low");
            }
            if let Owner::Pod(uid) = owner {
                self.pods.add(uid);
            }
            self.known.insert(
                path.to_owned(),
                KnownPod { owner, namespaces: HashSet::new(), rest_until: None, failure: None },
            );
        }
        Some(Look { census: Census::take(&self.directory(path), NAMESPACES_PER_POD), first })
    }

    /// Has sockets opened in the namespaces that are new, while other pods are looked at.
    fn begin(&mut self, Look { census, .. }: &Look) {
        for (netns, task) in &census.namespaces {
            self.namespaces.begin(*netns, *task);
        }
    }

    fn pod_ended(&mut self, path: &str) {
        self.watches.forget(path);
        let Some(known) = self.known.remove(path) else { return };
        let elsewhere = self.known.values().any(|other| other.owner == known.owner);
        if let Owner::Pod(uid) = known.owner
            && !elsewhere
        {
            tracing::debug!(pod_uid = %uid, "pod ended");
            self.pods.end(uid);
        }
        for netns in known.namespaces {
            self.namespaces.leave(netns, path);
        }
    }

    async fn reconcile(&mut self, pod: &str) {
        let census = Census::take(&self.directory(pod), NAMESPACES_PER_POD);
        self.compare(pod, Look { census, first: false }).await;
    }

    /// Compares the namespaces a pod has with those that are served for it.
    async fn compare(&mut self, pod: &str, Look { census, first }: Look) {
        let mut served = true;
        for (netns, task) in &census.namespaces {
            served &= self.serve(pod, *netns, *task).await;
        }
        if census.hidden > 0 && census.processes == 0 {
            self.failed(pod, &"its processes are in a PID namespace the agent cannot see: run it with hostPID: true");
        }
        if first {
            for container in &census.below {
                if !served || !self.is_settled(&container.namespaces) {
                    self.retries.schedule(join(pod, &container.name), 1);
                }
            }
        }
        if census.truncated {
            return;
        }
        let Some(known) = self.known.get_mut(pod) else { return };
        let left: Vec<NetnsId> = known.namespaces.iter().filter(|netns| !census.has(**netns)).copied().collect();
        for netns in left {
            known.namespaces.remove(&netns);
            self.namespaces.leave(netns, pod);
        }
    }

    /// Whether a container with processes in these namespaces has all that it will have. In the host netns it may only be on
    /// its way to its own.
    fn is_settled(&self, namespaces: &[NetnsId]) -> bool {
        !namespaces.is_empty() && namespaces.iter().all(|netns| !self.namespaces.is_host(*netns))
    }

    /// A container appeared: its first process may come later, and enters its namespace later still.
    async fn look_for_processes(&mut self, container: String, attempt: usize) {
        let Placement::Pod(placed) = self.kubepods.driver().place(&container) else { return };
        let pod = placed.pod_path(&container).to_owned();
        let directory = self.directory(&container);
        if !self.known.contains_key(&pod) || !directory.is_dir() {
            return;
        }
        let census = Census::take(&directory, NAMESPACES_PER_POD);
        let mut served = true;
        for (netns, task) in &census.namespaces {
            served &= self.serve(&pod, *netns, *task).await;
        }
        let namespaces: Vec<NetnsId> = census.namespaces.iter().map(|(netns, _)| *netns).collect();
        if !served || !self.is_settled(&namespaces) {
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
        match self.namespaces.join(netns, task, pod).await {
            // The process is gone, and with it, unless others say so, the namespace.
            Ok(None) => false,
            Ok(Some(netns)) if self.namespaces.is_host(netns) => true,
            Ok(Some(netns)) => self.known.get_mut(pod).is_some_and(|known| {
                known.namespaces.insert(netns);
                known.failure = None;
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
        if let Some(known) = self.known.get_mut(pod) {
            known.failure = Some(why.to_string());
        }
        if let Verdict::Log { suppressed } = self.failures.admit(pod.to_owned(), Instant::now().into_std()) {
            let owner = self.known.get(pod).map(|known| known.owner);
            tracing::error!(cgroup = pod, ?owner, suppressed, "cannot serve a pod's network namespace: {why}");
        }
    }

    async fn rescan(&mut self) -> Result<(), DiscoveryError> {
        self.serve_host().await;
        let before = self.summary();
        self.scan().await?;
        if self.summary() != before {
            self.metrics.reconciliations.inc();
            tracing::info!("a rescan found what no event had told");
        }
        Ok(())
    }

    /// The root and the quality-of-service cgroups below it, all watched.
    fn levels(&mut self, complete: &mut bool) -> Vec<String> {
        let mut levels = vec![String::new()];
        for name in self.children("", complete) {
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

    /// Names of the directories below one of ours; none when it is gone. `complete` becomes false when they could not all
    /// be read.
    fn children(&self, path: &str, complete: &mut bool) -> Vec<String> {
        let directory = self.directory(path);
        let read = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    names.extend(entry.file_name().into_string().ok());
                }
            }
            Ok(names)
        };
        match read() {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::error!(directory = %directory.display(), %error, "cannot list cgroups");
                *complete = false;
                Vec::new()
            }
        }
    }
}

async fn rescan_due(often: &mut Option<Interval>, due: &mut Ticks) {
    match often {
        Some(often) => drop(often.tick().await),
        None => due.next().await,
    }
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}
