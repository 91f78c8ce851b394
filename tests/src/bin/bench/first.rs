//! The first answer that a pod gets, whose credentials were fetched before it asked, beside later ones.
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    load::Report,
    pod::Pod,
    process::{binary, must},
};

use crate::spread::Spread;

/// Pods that ask, out of all.
const PODS: usize = 21;
/// Later answers for each; the middle one counts.
const LATER: usize = 3;

/// How many times as long a pod's first answer takes. Each is asked for by a process of its own, over a connection of its
/// own: what a client takes to begin is in all of them.
pub(crate) fn ratio(pods: &[Pod]) -> Result<Spread> {
    let every = (pods.len() / PODS).max(1);
    let ratios = pods.iter().step_by(every).take(PODS).map(|pod| {
        let first = ask(pod)?;
        let mut later = (0..LATER).map(|_| ask(pod)).collect::<Result<Vec<_>>>()?;
        later.sort_unstable();
        let later = later.get(LATER / 2).context("there are some")?;
        Ok(first.as_secs_f64() / later.as_secs_f64())
    });
    Ok(Spread::of(ratios.collect::<Result<Vec<_>>>()?))
}

fn ask(pod: &Pod) -> Result<Duration> {
    let mut command = pod.container("app")?.command(&binary("load")?.display().to_string())?;
    command.args(["--connections", "new", "--requests", "1", "--token", pod.token()]);
    let report: Report = serde_json::from_str(&must(&mut command)?)?;
    ensure!(report.granted() == 1, "{:?} {:?}", report.statuses, report.failures);
    Ok(report.latencies.longest())
}
