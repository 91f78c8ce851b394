//! What a pod can hold or use up: it is its own, bounded, and given back.
use std::{process::Stdio, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    client::Client,
    load::FloodReport,
    pod::PodSpec,
    process::{binary, eventually},
};

use crate::measure::{Scene, Size};

/// A connection on which no head comes is closed after ten seconds.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

#[test]
fn slow_heads_cost_their_own_pods_connections_and_those_are_given_back() -> Result<()> {
    let scene = Scene::new(Size { polite: 1, ..Size::wanted() }, PodSpec::named)?;
    let (agent, rude) = (&scene.agent, &scene.rude);
    let mut command = rude.container("app")?.command(&binary("flood")?.display().to_string())?;
    let lasts = FIRST_REQUEST + Duration::from_secs(4);
    command.args(["slow", "--threads", "1", "--connections", "520", "--for-ms", &lasts.as_millis().to_string()]);
    let flood = command.stdout(Stdio::null()).spawn()?;
    agent.wait_for_metric("pod_identity_connections", 512.0, Duration::from_secs(8))?;
    let held = agent.metric("pod_identity_connections")?;
    ensure!((held - 512.0).abs() < 1.5, "{held} connections of one pod are served");
    // It is told so, or reset; another pod does not notice.
    let refused = rude.credentials()?;
    ensure!(refused.status.is_none_or(|status| status == 503), "{refused:?}");
    ensure!(agent.refusals("pod_limit")? > 0.5, "the refusal was not counted");
    scene.polite_must_be_served()?;
    // The agent ends them, and the pod makes new ones: as many again are accepted as there were.
    let accepted = agent.metric("pod_identity_connections_total")?;
    agent.wait_for_metric(
        "pod_identity_connections_total",
        accepted + 500.0,
        FIRST_REQUEST + Duration::from_secs(6),
    )?;
    let ended = flood.wait_with_output()?;
    ensure!(ended.status.success());
    eventually("the rude pod to be served again", Duration::from_secs(5), || {
        Ok((rude.credentials()?.status == Some(200)).then_some(()))
    })
}

#[test]
fn in_the_host_network_each_container_has_its_pace_whichever_way_it_connects() -> Result<()> {
    let scene = Scene::new(Size { polite: 1, ..Size::wanted() }, |name| PodSpec::named(name).host_network())?;
    let (agent, rude) = (&scene.agent, &scene.rude);
    for (to, program) in [("169.254.170.23:80", "connect4"), ("127.0.0.1:706", "connect4"), ("[::1]:706", "connect6")] {
        let counter = format!("pod_identity_steering_paced_total{{program=\"{program}\"}}");
        let (paced, accepted) = (agent.metric(&counter)?, agent.metric("pod_identity_connections_total")?);
        let mut command = rude.container("app")?.command(&binary("flood")?.display().to_string())?;
        let flood = command.args(["connects", "--threads", "1", "--for-ms", "1500", "--to", to]).stdout(Stdio::piped());
        let flood = flood.spawn()?;
        thread::sleep(Duration::from_secs(1));
        // The control: another container is not refused, at the first try.
        let polite = scene.polite.first().context("there is one")?;
        let answer = polite.ask_once(&Client::with_token(polite.token()).connect_once())?;
        ensure!(answer.status == Some(200), "{to}: {answer:?}");
        let output = flood.wait_with_output()?;
        let FloodReport { attempts, .. } = serde_json::from_slice(&output.stdout)?;
        ensure!(attempts > 5_000, "{attempts} connections in 1.5 s are no flood");
        // A burst of 512, 200 a second, and the ones of the polite pod.
        let accepted = agent.metric("pod_identity_connections_total")? - accepted;
        ensure!(accepted < 512.0 + 1.5 * 200.0 + 100.0, "{to}: {accepted} connections of {attempts} came through");
        let paced = agent.metric(&counter)? - paced;
        ensure!(paced > 1_000.0, "{to}: {paced} of {attempts} were counted");
    }
    Ok(())
}
