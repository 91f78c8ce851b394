//! What pods' own doings lead to: connections that found no listener, listeners that were killed. Each leads to a look, and
//! looks are as rare as it takes for one pod not to keep discovery busy.
use std::time::Duration;

use agent_ebpf::Miss;
use tokio::time::Instant;

use super::{
    Discovery,
    processes::{NetnsId, open_netns},
};
use crate::cgroup::{CgroupId, path::Placement};

/// A pod can make namespaces, connect in each and kill listeners faster than its processes can be counted. What it does
/// leads to a look at it once in this time, and to rests of this many times what the look took.
const SHORTEST_REST: Duration = Duration::from_millis(100);
const LOOK_RESTS: u32 = 20;

impl Discovery {
    /// A connection found no listener: its thread tells the namespace, whatever cgroup it sits in below its pod.
    pub(super) async fn missed(&mut self, miss: Miss) {
        let located = self.kubepods.locate(CgroupId(miss.cgroup_id));
        let Ok(Some((path, Placement::Pod(placed)))) = located else { return };
        let pod = placed.pod_path(&path).to_owned();
        tracing::debug!(pod, netns_cookie = miss.netns_cookie, "a connection found no listener");
        if !self.known.contains_key(&pod) {
            self.pod_appeared(&pod, placed.owner).await;
        }
        if !self.may_look(&pod) {
            return;
        }
        if let Ok(netns) = open_netns(miss.tid).and_then(|file| NetnsId::of(&file)) {
            if self.namespaces.is_host(netns) {
                self.serve_host_again().await;
            }
            self.serve(&pod, netns, miss.tid).await;
        }
        self.look(&pod).await;
    }

    /// Whether a pod's own doings (connections, killed listeners) may lead to a look at it now.
    fn may_look(&self, pod: &str) -> bool {
        let rest = self.known.get(pod).and_then(|known| known.rest_until);
        rest.is_none_or(|until| Instant::now() >= until)
    }

    /// Looks at a pod, then lets it rest in proportion to what that took.
    async fn look(&mut self, pod: &str) {
        let started = Instant::now();
        self.reconcile(pod).await;
        let rest = (started.elapsed() * LOOK_RESTS).max(SHORTEST_REST);
        if let Some(known) = self.known.get_mut(pod) {
            known.rest_until = Some(Instant::now() + rest);
        }
    }

    /// A listener died under the agent. Whoever may kill sockets in a namespace can do so again and again, so it is
    /// opened anew no more often than its pods may be looked at; else the next miss or the rescan does it.
    pub(super) async fn reopen(&mut self, serial: u64) {
        let Some((netns, users)) = self.namespaces.lost(serial) else { return };
        if self.namespaces.is_host(netns) {
            self.failed("the host netns", &"a listener was closed under the agent");
            return self.serve_host_again().await;
        }
        for pod in users {
            if let Some(known) = self.known.get_mut(&pod) {
                known.namespaces.remove(&netns);
            }
            self.failed(&pod, &"a listener was closed under the agent");
            if self.may_look(&pod) {
                self.look(&pod).await;
            }
        }
    }

    /// The host netns is nobody's own, so it has a rest of its own.
    async fn serve_host_again(&mut self) {
        if self.host_rests_until.is_none_or(|until| Instant::now() >= until) {
            self.host_rests_until = Some(Instant::now() + SHORTEST_REST);
            self.serve_host().await;
        }
    }

    pub(super) async fn serve_host(&mut self) {
        if !self.namespaces.serves_host()
            && let Err(error) = self.namespaces.serve_host().await
        {
            self.failed("the host netns", &error);
        }
    }
}
