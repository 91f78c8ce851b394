//! What a kubelet leaves out on a machine with controllers of cgroup v1, as this may be one: it makes and removes pods'
//! cgroups in those hierarchies only, while runc makes the same in the hierarchy of cgroup v2 too. There nobody removes
//! a pod's cgroup at its end, as the kubelet does on nodes of EKS, which have cgroup v2 alone.
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;

use crate::{
    cgroup::{mount_point, v1_mounts},
    node::Node,
};

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Removes the cgroups of pods that the kubelet has removed elsewhere, until it is dropped.
#[derive(Debug)]
pub(super) struct PodCgroups {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PodCgroups {
    /// Begins. On a machine without hierarchies of v1 there is nothing to do.
    pub(super) fn follow(node: &Node) -> Result<Self> {
        let kubepods = node.kubepods().cgroup().dir().to_owned();
        let kubelets: Vec<PathBuf> = v1_mounts()
            .iter()
            .map(|mount| Ok(mount.join(kubepods.strip_prefix(mount_point()?)?)))
            .collect::<Result<_>>()?;
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let thread = thread::spawn(move || {
            while !kubelets.is_empty() && !told.load(Ordering::Relaxed) {
                for level in ["", "burstable", "besteffort"] {
                    remove_ended(&kubepods, level, &kubelets);
                }
                thread::sleep(LOOK_AGAIN);
            }
        });
        Ok(Self { ends, thread: Some(thread) })
    }
}

/// A pod's cgroup is there in none of the kubelet's hierarchies: it is made in all of them before any container is.
fn remove_ended(kubepods: &Path, level: &str, kubelets: &[PathBuf]) {
    for pod in fs::read_dir(kubepods.join(level)).into_iter().flatten().flatten() {
        let below = Path::new(level).join(pod.file_name());
        let is_pod = pod.file_name().to_string_lossy().starts_with("pod");
        if is_pod && !kubelets.iter().any(|kubelet| kubelet.join(&below).exists()) {
            // Fails as long as a container of it is there.
            let _ = fs::remove_dir(pod.path());
        }
    }
}

impl Drop for PodCgroups {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
