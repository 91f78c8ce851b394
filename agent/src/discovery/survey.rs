//! What discovery knows, as an operator sees it.
use serde::{Deserialize, Serialize};

use super::{Discovery, processes::NetnsId};
use crate::{
    cgroup::{mount::cgroup_id, path::Owner},
    pod_uid::PodUid,
};

/// A namespace's listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Inode of the namespace's file: what `/proc/PID/ns/net` of each process in it shows.
    pub netns: u64,
    /// The kernel's cookie of the namespace.
    pub cookie: u64,
    /// Port on 127.0.0.1, and on `[::1]` if it listens there.
    pub port: u16,
    /// Whether it listens on `[::1]` too: the namespace has IPv6.
    pub ipv6: bool,
}

/// Where a pod is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its cgroup, as a path below the kubepods root.
    pub cgroup: String,
    /// The cgroup's id; none if it has gone just now.
    pub cgroup_id: Option<u64>,
    /// Listeners in namespaces of its own; none for a pod of the host network.
    pub listeners: Vec<Listener>,
    /// Why one of its namespaces could not be served at the last try.
    #[serde(rename = "listener_failure")]
    pub failure: Option<String>,
}

/// All pods and listeners.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// In the host netns.
    pub host: Option<Listener>,
    /// Pods of the API server.
    pub pods: Vec<(PodUid, Place)>,
}

impl Survey {
    /// Where a pod is.
    #[must_use]
    pub fn place(&self, uid: PodUid) -> Option<&Place> {
        self.pods.iter().find(|(found, _)| *found == uid).map(|(_, place)| place)
    }
}

impl Discovery {
    /// Looks at what is known, not at the node: some microseconds for a pod.
    pub(super) fn survey(&self) -> Survey {
        let pods = self.known.iter().filter_map(|(path, known)| {
            let Owner::Pod(uid) = known.owner else { return None };
            let mut listeners: Vec<_> =
                known.namespaces.iter().filter_map(|netns| self.namespaces.listener(*netns)).collect();
            listeners.sort_unstable_by_key(|listener| listener.netns);
            let cgroup_id = cgroup_id(&self.directory(path)).ok().map(|id| id.0);
            Some((uid, Place { cgroup: path.clone(), cgroup_id, listeners, failure: known.failure.clone() }))
        });
        Survey { host: self.namespaces.host_listener(), pods: pods.collect() }
    }

    /// The same in a form that can be compared.
    pub(super) fn summary(&self) -> Vec<(String, Vec<NetnsId>)> {
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
}
