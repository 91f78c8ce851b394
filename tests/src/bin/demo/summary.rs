//! The closing summary: who was attested, by the agent's own log, and how long answers took, by the pod's clock.
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::client::{Answer, Client};
use serde_json::Value;

use crate::{scene::Scene, screen::Screen};

/// For the line about the first grant, which is written off the serving thread.
const LOGGED: Duration = Duration::from_secs(5);

/// Fetches on new connections of which the middle one is shown.
const LATER: usize = 21;

pub(crate) fn show(screen: &Screen, scene: &Scene, first: &Answer) -> Result<()> {
    screen.heading("Summary");
    let pod = &scene.reader;
    let line = scene.agent.wait_for_log(&["\"granted\"", pod.uid()], LOGGED)?;
    let line: Value = serde_json::from_str(&line).context("the agent's log is no JSON")?;
    let cgroup_id = line.get("cgroup_id").and_then(Value::as_u64).context("the grant names no cgroup")?;
    let container = pod.container("app")?;
    ensure!(cgroup_id == container.cgroup().id()?, "attested as cgroup {cgroup_id}, but the client was in another");
    let cgroup = container.cgroup().dir().strip_prefix(scene.node.top_cgroup().dir())?;

    let mut later = Vec::new();
    for _ in 0..LATER {
        let answer = pod.ask_once(&Client::with_token(pod.token()))?;
        ensure!(answer.status == Some(200), "the pod got no credentials: {answer:?}");
        later.push(answer.connect_us + answer.latency_us);
    }
    later.sort_unstable();
    let middle = later.get(LATER / 2).context("there were some")?;

    screen.value("pod attested", &format!("{}/{}", pod.subject().namespace, pod.subject().pod_name));
    screen.value("pod UID", pod.uid());
    screen.value("container", container.id());
    screen.value("cgroup id", &format!("{cgroup_id}  {}", cgroup.display()));
    screen.value("EKS Auth calls", &scene.node.eks_auth().calls_for(pod.uid())?.to_string());
    let cached = line.get("cached").and_then(Value::as_bool).context("the grant does not say whether it was cached")?;
    let from = if cached { "from the cache" } else { "EKS Auth was asked" };
    screen.value("first fetch", &format!("{}  ({from})", milliseconds(first.connect_us + first.latency_us)));
    screen.value(
        "a later fetch",
        &format!("{}  (from the cache; the middle of {LATER}, each on a new connection)", milliseconds(*middle)),
    );
    Ok(())
}

fn milliseconds(us: u64) -> String {
    let tenths = us / 100 + u64::from(us % 100 >= 50);
    format!("{}.{} ms", tenths / 10, tenths % 10)
}
