//! Credentials are there before the pod asks: also when it is started at the kubelet's pace, one pod after the other or
//! while the node starts others. Pods that come faster than the rate of prefetches are fetched for when they ask.
use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use pod_identity_tests::{
    agent::{Agent, AgentSpec},
    host,
    node::Node,
    pod::{Pod, PodSpec},
    process::eventually,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::common::{Served, ask_at_once, median, must_be_granted, pods, served_with, slowest, took};

fn prefetching() -> Result<Served> {
    served_with(&AgentSpec::flags(&["--prefetch=true"]))
}

/// Waits until EKS Auth was called once for the pod.
fn fetched(node: &Node, pod: &Pod) -> Result<()> {
    eventually("the credentials to be fetched", Duration::from_secs(5), || {
        Ok((node.eks_auth().calls_for(pod.uid())? == 1).then_some(()))
    })
}

#[test]
fn the_first_request_of_a_pod_is_a_cache_hit() -> Result<()> {
    let served = prefetching()?;
    fetched(&served.node, &served.pod)?;
    // EKS Auth has answered; what it said is there a moment later.
    thread::sleep(Duration::from_millis(100));
    served.node.eks_auth().fail(500, "InternalServerException", "down")?;
    served.pod.must_get_credentials()?;
    ensure!((served.agent.metric("pod_identity_cache_state{state=\"hit\"}")? - 1.0).abs() < 0.1);
    ensure!(served.agent.metric("pod_identity_cache_state{state=\"miss\"}")? < 0.1);
    ensure!(served.node.eks_auth().calls_for(served.pod.uid())? == 1);
    Ok(())
}

#[test]
fn pods_that_were_there_before_the_agent_are_fetched_for_too() -> Result<()> {
    let node = Node::new()?;
    let pods = (0..5).map(|_| node.pod("app")).collect::<Result<Vec<_>>>()?;
    let _agent = node.agent_with(&AgentSpec::flags(&["--prefetch=true"]))?;
    pods.iter().try_for_each(|pod| fetched(&node, pod))
}

#[test]
fn a_pod_without_the_volume_is_never_asked_about() -> Result<()> {
    let served = prefetching()?;
    let bare = served.node.pod_with(PodSpec::named("app").no_token())?;
    fetched(&served.node, &served.pod)?;
    thread::sleep(Duration::from_millis(500));
    ensure!(served.node.eks_auth().calls_for(bare.uid())? == 0);
    ensure!(served.node.eks_auth().counters()?.calls == 1, "somebody else was asked about");
    Ok(())
}

/// From the token's file to the application's first instruction a real kubelet took 307 ms at least.
const TOKEN_TO_APPLICATION: Duration = Duration::from_millis(300);

/// What EKS Auth takes in these tests.
const UPSTREAM: Duration = Duration::from_millis(100);

/// Starts a pod in the kubelet's order and at its pace.
fn start_as_the_kubelet(node: &Node) -> Result<Pod> {
    let mut pod = node.begin_pod(PodSpec::named("app"))?;
    pod.mount_volume()?;
    pod.write_token()?;
    let written = Instant::now();
    pod.start_sandbox()?;
    thread::sleep(TOKEN_TO_APPLICATION.saturating_sub(written.elapsed()));
    pod.start_container("app")?;
    Ok(pod)
}

/// A node that prefetches, with an EKS Auth that takes its time.
fn paced() -> Result<(Node, Agent)> {
    let node = Node::new()?;
    let agent = node.agent_with(&AgentSpec::flags(&["--prefetch=true"]))?;
    node.eks_auth().associate("default", "app", "app")?;
    node.eks_auth().delay(UPSTREAM)?;
    Ok((node, agent))
}

/// Starts pods, one after the other, and counts those whose first request was a cache hit; none may cost a second call.
fn count_hits(node: &Node, agent: &Agent, pods: usize) -> Result<usize> {
    let (mut times, mut hit) = (Vec::new(), 0);
    for number in 1..=pods {
        let pod = start_as_the_kubelet(node)?;
        let [hits, misses] = cache_state(agent)?;
        let answer = pod.must_get_credentials()?;
        let now = cache_state(agent)?;
        ensure!(now.iter().sum::<u64>() == hits + misses + 1, "pod {number}: {now:?} after {:?}", [hits, misses]);
        ensure!(node.eks_auth().calls_for(pod.uid())? == 1, "pod {number}");
        hit += usize::from(now == [hits + 1, misses]);
        times.push(took(&answer));
        pod.remove()?;
    }
    let most = times.iter().max().copied().unwrap_or_default();
    println!("{hit} of {pods} hits: median {:?}, at most {most:?}; EKS Auth takes {UPSTREAM:?}", median(times));
    Ok(hit)
}

/// Hits and misses so far.
fn cache_state(agent: &Agent) -> Result<[u64; 2]> {
    let metrics = agent.metrics()?;
    let count = |state| -> Result<u64> {
        let value = metrics.get(&format!("pod_identity_cache_state{{state=\"{state}\"}}")).context("no such state")?;
        Ok(value.to_string().parse()?)
    };
    Ok([count("hit")?, count("miss")?])
}

#[test]
fn the_first_request_of_each_pod_that_the_kubelet_starts_is_a_cache_hit() -> Result<()> {
    let (node, agent) = paced()?;
    let pods = if host::full_size() { 200 } else { 20 };
    let hits = count_hits(&node, &agent, pods)?;
    ensure!(hits == pods, "{hits} of {pods} first requests");
    Ok(())
}

#[test]
fn it_is_one_while_the_node_starts_other_pods_too() -> Result<()> {
    const STARTERS: usize = 3;
    let (node, agent) = paced()?;
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        let starters: Vec<_> = (0..STARTERS)
            .map(|_| {
                scope.spawn(|| -> Result<usize> {
                    let mut started = 0;
                    while !enough.load(Ordering::Relaxed) {
                        start_another(&node)?;
                        started += 1;
                    }
                    Ok(started)
                })
            })
            .collect();
        let pods = if host::full_size() { 100 } else { 10 };
        let hits = count_hits(&node, &agent, pods);
        enough.store(true, Ordering::Relaxed);
        let mut others = 0;
        for starter in starters {
            others += starter.join().map_err(|_| anyhow!("a starter panicked"))??;
        }
        println!("{others} other pods were started and ended meanwhile");
        ensure!(others >= STARTERS, "the node was not busy");
        // The machine is small, and as busy as it gets: one in ten may have been started before EKS Auth had answered.
        let hits = hits?;
        ensure!(hits * 10 >= pods * 9, "{hits} of {pods} first requests");
        Ok(())
    })
}

/// A pod without an association, with the mounts of some secrets, comes and goes: for the agent, a storm of events about
/// cgroups and mounts.
fn start_another(node: &Node) -> Result<()> {
    let pod = node.pod_with(PodSpec::named("other").no_token())?;
    let volumes = node.kubelet().pod_dir(pod.uid()).join("volumes/kubernetes.io~secret");
    let secrets: Vec<_> = (0..10).map(|number| volumes.join(format!("secret-{number}"))).collect();
    for secret in &secrets {
        fs::create_dir_all(secret)?;
        mount("tmpfs", secret, "tmpfs", MountFlags::empty(), Some(c"size=64k"))?;
    }
    for secret in &secrets {
        unmount(secret, UnmountFlags::DETACH)?;
    }
    pod.remove()
}

#[test]
fn pods_that_outrun_the_rate_of_prefetches_do_not_wait_for_it() -> Result<()> {
    const PODS: usize = 20;
    let (node, agent) = paced()?;
    // Three at once, then three a second: the last would come after 5 s.
    let pods = pods(&node, "app", PODS)?;
    let answers = ask_at_once(&node, &pods, |client| client)?;
    answers.iter().try_for_each(must_be_granted)?;
    let [hits, misses] = cache_state(&agent)?;
    println!("{PODS} pods at once: {hits} hits, {misses} misses, slowest {:?}", slowest(&answers));
    ensure!(misses > 0, "none of them outran the rate");
    ensure!(slowest(&answers) < UPSTREAM * 5, "{:?} with an EKS Auth that takes {UPSTREAM:?}", slowest(&answers));
    let calls = node.eks_auth().counters()?.by_pod_uid;
    ensure!(calls.len() == PODS && calls.values().all(|calls| *calls == 1), "{calls:?}");
    Ok(())
}
