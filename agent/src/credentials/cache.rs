//! Bounds how many pods have credentials in memory: the pod that asked longest ago makes room.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc;

use super::handle::{LastUse, Message};
use crate::pod_uid::PodUid;

struct Entry {
    last_use: Arc<LastUse>,
    worker: mpsc::Sender<Message>,
}

/// Pods that have credentials. Only living pods are in it: a worker leaves it when its pod ends.
pub(super) struct Cache {
    most: usize,
    pods: Mutex<HashMap<PodUid, Entry>>,
}

impl Cache {
    pub(super) fn new(most: usize) -> Self {
        Self { most, pods: Mutex::default() }
    }

    /// Whether anything may be kept at all.
    pub(super) fn keeps_anything(&self) -> bool {
        self.most > 0
    }

    /// A pod has credentials now. Tells whether another one was made to give its own up.
    pub(super) fn enter(&self, pod: PodUid, last_use: &Arc<LastUse>, worker: &mpsc::Sender<Message>) -> bool {
        let mut pods = self.pods();
        pods.insert(pod, Entry { last_use: Arc::clone(last_use), worker: worker.clone() });
        if pods.len() <= self.most {
            return false;
        }
        // A walk over some thousand numbers, only when there are more pods than an operator allowed for.
        let others = pods.iter().filter(|(uid, _)| **uid != pod);
        let Some(least) = others.min_by_key(|(uid, entry)| (entry.last_use.get(), **uid)).map(|(uid, _)| *uid) else {
            return false;
        };
        let Some(entry) = pods.remove(&least) else { return false };
        // A worker too busy to be told keeps its credentials until it next gets some.
        entry.worker.try_send(Message::Evict).is_ok()
    }

    /// A pod has none any more.
    pub(super) fn leave(&self, pod: PodUid) {
        self.pods().remove(&pod);
    }

    fn pods(&self) -> MutexGuard<'_, HashMap<PodUid, Entry>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
