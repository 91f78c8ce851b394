//! Notices that the programs were detached, replaced or overtaken, and puts them back.
//!
//! Whoever may do that to them has `CAP_SYS_ADMIN` or `CAP_BPF` in the host's namespaces, and can do it again: this is no
//! defence, but it ends accidents within seconds and leaves nothing unsaid. The kernel tells nobody when a program is
//! detached, so a slow timer looks.
use std::{
    collections::HashSet,
    fs::{self, File},
    io, mem,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Steering, SteeringError,
    attachment::{Attachment, Order, Standing},
};
use crate::{
    health::{NotReady, Readiness},
    metrics::{Interference, Metrics},
    slow_clock::Ticks,
    sys::bpf::Program,
};

/// Levels below kubepods that the kubelet and the runtime make: a class, a pod, a container, what that has inside. Deeper
/// ones are a container's own, and concern nobody else.
const LEVELS: usize = 4;

/// Watches over the programs of one cgroup.
pub struct Guard {
    steering: Arc<Steering>,
    kubepods: PathBuf,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    not_ready: Option<NotReady>,
    log: Log,
    /// Ids of programs that stayed in front when one of ours was attached anew.
    immovable: HashSet<u32>,
}

impl Guard {
    /// Watches over what is attached to this directory.
    #[must_use]
    pub fn new(steering: Arc<Steering>, kubepods: PathBuf, metrics: Arc<Metrics>, readiness: Readiness) -> Self {
        let (log, immovable) = (Log::default(), HashSet::new());
        Self { steering, kubepods, metrics, readiness, not_ready: None, log, immovable }
    }

    /// Looks whenever it is due; never ends.
    pub async fn watch(mut self, mut due: Ticks) {
        loop {
            due.next().await;
            self.look().await;
        }
    }

    /// Looks once, puts back what is not where it should be, and returns how many programs of others run before the
    /// agent's afterwards.
    pub async fn look(&mut self) -> usize {
        let steering = Arc::clone(&self.steering);
        let preceding = match steering.with_attachments(|attachments| self.inspect(attachments)) {
            Ok(preceding) => {
                self.not_ready = None;
                preceding
            }
            Err(error) => {
                tracing::error!(%error, "pods may not be served: the eBPF programs cannot be put back");
                let reason = format!("the eBPF programs to be where they belong: {error}");
                self.not_ready.get_or_insert_with(|| self.readiness.wait_for(reason.as_str())).now(reason);
                0
            }
        };
        let preceding = preceding + self.look_below().await;
        self.metrics.preceding_programs.set(i64::try_from(preceding).unwrap_or(i64::MAX));
        self.log.next();
        preceding
    }

    fn inspect(&mut self, attachments: &mut [Attachment]) -> Result<usize, SteeringError> {
        let path = self.kubepods.display().to_string();
        let directory = File::open(&self.kubepods).map_err(|error| SteeringError::Cgroup(path.clone(), error))?;
        let mut preceding = 0;
        for attachment in attachments {
            let program = attachment.name();
            let inspected = |error| SteeringError::Inspect { program, error };
            let renewed = |error| SteeringError::Attach { program, cgroup: path.clone(), error };
            match attachment.standing(&directory).map_err(inspected)? {
                Standing::First => {}
                Standing::Behind(programs) => {
                    let others = self.others(attachment, programs);
                    preceding += others.len();
                    // A new link goes to the end where the kernel has no order.
                    if attachment.order() == Order::First
                        && others.iter().any(|other| !self.immovable.contains(&other.id))
                    {
                        attachment.renew(&directory).map_err(renewed)?;
                        preceding -=
                            self.overtaken(attachment.standing(&directory).map_err(inspected)?, &others, program);
                    }
                }
                Standing::Detached => {
                    tracing::warn!(
                        program,
                        "somebody detached this eBPF program from the kubepods cgroup: it is attached again"
                    );
                    self.metrics.interfered(program, Interference::Detached);
                    attachment.renew(&directory).map_err(renewed)?;
                }
                Standing::Replaced(by) => {
                    tracing::warn!(
                        program,
                        by.id,
                        by.name,
                        "somebody put another eBPF program in the place of this one: it is attached again"
                    );
                    self.metrics.interfered(program, Interference::Replaced);
                    attachment.renew(&directory).map_err(renewed)?;
                }
            }
        }
        Ok(preceding)
    }

    /// Of the programs that run before one of ours those of somebody else; speaks of all.
    fn others(&mut self, attachment: &Attachment, programs: Vec<Program>) -> Vec<Program> {
        let (agents, others): (Vec<_>, Vec<_>) = programs.into_iter().partition(|other| attachment.is_like(other));
        let program = attachment.name();
        for agent in agents {
            if self.log.is_news(&self.kubepods, program, agent.id) {
                tracing::info!(
                    program,
                    before.id = agent.id,
                    "another agent's eBPF program runs before this one's, as during a rollout"
                );
            }
        }
        for other in &others {
            if self.log.is_news(&self.kubepods, program, other.id) {
                self.metrics.interfered(program, Interference::Preceded);
                tracing::warn!(
                    program,
                    before.id = other.id,
                    before.name = other.name,
                    "another eBPF program runs before this agent's: if it changes or refuses what pods connect to, they get no credentials"
                );
            }
        }
        others
    }

    /// How many of those that ran before one of ours do so no more.
    fn overtaken(&mut self, standing: Standing, others: &[Program], program: &str) -> usize {
        let left: HashSet<u32> = match standing {
            Standing::Behind(left) => left.into_iter().map(|other| other.id).collect(),
            _ => HashSet::new(),
        };
        let (stayed, overtaken): (Vec<_>, Vec<_>) =
            others.iter().map(|other| other.id).partition(|id| left.contains(id));
        if stayed.is_empty() {
            tracing::info!(program, "this agent's eBPF program runs first again");
        } else {
            tracing::warn!(program, before.ids = ?stayed, "these eBPF programs still run before this agent's: it cannot overtake them");
        }
        self.immovable.extend(stayed);
        overtaken.len()
    }

    /// Where the kernel has no order, programs of the cgroups below run first: looks for those.
    async fn look_below(&mut self) -> usize {
        let steering = Arc::clone(&self.steering);
        let ordered = steering.with_attachments(|attachments| attachments.iter().all(|a| a.order() == Order::First));
        let (mut found, mut level) = (0, if ordered { Vec::new() } else { children(&self.kubepods) });
        for _ in 0..LEVELS {
            let mut next = Vec::new();
            for cgroup in level {
                found += steering.with_attachments(|attachments| self.attached_to(&cgroup, attachments));
                next.append(&mut children(&cgroup));
                // There may be thousands, and EKS Auth is asked on this thread.
                tokio::task::yield_now().await;
            }
            level = next;
        }
        found
    }

    fn attached_to(&mut self, cgroup: &Path, attachments: &[Attachment]) -> usize {
        // What was removed meanwhile has no programs any more.
        let Ok(directory) = File::open(cgroup) else { return 0 };
        let mut found = 0;
        for attachment in attachments {
            let program = attachment.name();
            for other in attachment.attached_below(&directory).unwrap_or_default() {
                found += 1;
                if self.log.is_news(cgroup, program, other.id) {
                    self.metrics.interfered(program, Interference::Preceded);
                    tracing::warn!(
                        program, before.id = other.id, before.name = other.name, cgroup = %cgroup.display(),
                        "an eBPF program of this cgroup runs before this agent's, and this kernel has no order that could change it: \
                         if it changes or refuses what pods connect to, they get no credentials"
                    );
                }
            }
        }
        found
    }
}

/// What was said of programs that are still there: cgroup, hook, id.
#[derive(Debug, Default)]
struct Log {
    before: HashSet<(PathBuf, &'static str, u32)>,
    now: HashSet<(PathBuf, &'static str, u32)>,
}

impl Log {
    /// Whether this was not there at the last look.
    fn is_news(&mut self, cgroup: &Path, program: &'static str, id: u32) -> bool {
        let key = (cgroup.to_owned(), program, id);
        let news = !self.before.contains(&key);
        self.now.insert(key) && news
    }

    /// Ends a look: what was not there is forgotten, and is news when it comes back.
    fn next(&mut self) {
        self.before = mem::take(&mut self.now);
    }
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().filter_map(io::Result::ok);
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}
