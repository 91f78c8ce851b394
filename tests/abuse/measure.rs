//! What polite pods see while one pod floods the agent, and while the same pod burns as much processor time elsewhere.
use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use pod_identity_tests::{
    agent::Agent,
    host,
    load::{FloodReport, Report},
    node::Node,
    pod::{Pod, PodSpec},
    process::{binary, eventually},
    usage::{Priority, thread_time},
};

/// From the flood's start to the measurement: by then it is at its height.
const SETTLES: Duration = Duration::from_millis(500);
/// For programs to start and end on a machine that is busy.
const MARGIN: Duration = Duration::from_millis(700);

/// After a flood has ended, for what it left behind to be gone.
const IS_OVER: Duration = Duration::from_secs(10);

/// The agent's serving thread.
const SERVING: &str = "serve";

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) polite: usize,
    pub(crate) rounds: usize,
    pub(crate) measured: Duration,
    /// Requests per second of one polite pod.
    pub(crate) rate: f64,
}

impl Size {
    /// Small, unless the full size was asked for.
    pub(crate) fn wanted() -> Self {
        if host::full_size() {
            Self { polite: 50, rounds: 7, measured: Duration::from_secs(4), rate: 5.0 }
        } else {
            Self { polite: 10, rounds: 3, measured: Duration::from_millis(1200), rate: 20.0 }
        }
    }
}

/// A node with polite pods and one that is not.
pub(crate) struct Scene {
    pub(crate) polite: Vec<Pod>,
    pub(crate) rude: Pod,
    pub(crate) agent: Agent,
    _node: Node,
    _priority: Priority,
}

/// What one phase showed.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    /// Of the polite pods together.
    pub(crate) report: Report,
    /// Share of one processor that the agent's serving thread used.
    pub(crate) serving: f64,
    pub(crate) flood: FloodReport,
}

impl Scene {
    /// Pods of this kind, each with credentials: what is measured are answers from the cache.
    pub(crate) fn new(size: Size, pod: impl Fn(&str) -> PodSpec) -> Result<Self> {
        let priority = Priority::raise();
        let node = Node::new()?;
        let agent = node.agent()?;
        let pod = |name: &str| -> Result<Pod> {
            node.eks_auth().associate("default", name, name)?;
            let pod = node.pod_with(pod(name))?;
            pod.must_get_credentials()?;
            Ok(pod)
        };
        let polite = (0..size.polite).map(|_| pod("polite")).collect::<Result<Vec<_>>>()?;
        let rude = pod("rude")?;
        Ok(Self { polite, rude, agent, _node: node, _priority: priority })
    }

    /// Fails unless every polite pod is served.
    pub(crate) fn polite_must_be_served(&self) -> Result<()> {
        self.polite.iter().try_for_each(|pod| pod.must_get_credentials().map(|_| ()))
    }

    /// Fails unless the rude pod is served as everybody else soon after its floods.
    pub(crate) fn is_over(&self) -> Result<()> {
        eventually("the rude pod to be served", IS_OVER, || {
            Ok((self.rude.credentials()?.status == Some(200)).then_some(()))
        })?;
        ensure!(!self.agent.log_text().contains("panicked"), "{}", self.agent.log_text());
        Ok(())
    }

    /// Runs a flood (arguments of `flood`) in the rude pod, and the polite ones beside it.
    pub(crate) fn phase(&self, flood: &[&str], size: Size) -> Result<Phase> {
        let lasts = SETTLES + size.measured + MARGIN;
        let mut command = self.rude.container("app")?.command(path("flood")?.as_str())?;
        command.args(flood).args(["--for-ms", &lasts.as_millis().to_string(), "--token", self.rude.token()]);
        let flooding = command.stdout(Stdio::piped()).spawn()?;
        thread::sleep(SETTLES);
        let (before, started) = (thread_time(self.agent.pid(), SERVING)?, Instant::now());
        let report = self.ask_politely(size)?;
        let used = thread_time(self.agent.pid(), SERVING)?.saturating_sub(before);
        let serving = used.as_secs_f64() / started.elapsed().as_secs_f64();
        let output = flooding.wait_with_output()?;
        ensure!(output.status.success(), "flood: {}", output.status);
        let flood = serde_json::from_slice(&output.stdout).context("what flood printed")?;
        // The agent works off what a flood has left behind, slowly as it was served: the next phase must not pay for it.
        eventually("the flood's connections to be gone", IS_OVER, || {
            Ok((self.agent.metric("pod_identity_connections")? < 0.5).then_some(()))
        })?;
        Ok(Phase { report, serving, flood })
    }

    fn ask_politely(&self, size: Size) -> Result<Report> {
        let load = path("load")?;
        thread::scope(|scope| {
            let mut asking = Vec::new();
            for pod in &self.polite {
                let mut command = pod.container("app")?.command(&load)?;
                command.args(["--rate", &size.rate.to_string(), "--for-ms", &size.measured.as_millis().to_string()]);
                command.args(["--token", pod.token()]);
                // It ends by itself. To wait for it costs nothing, unlike to look again and again whether it has ended.
                asking.push(scope.spawn(move || command.output()));
            }
            let mut all = Report::default();
            for one in asking {
                let output = one.join().map_err(|_| anyhow!("a thread panicked"))??;
                ensure!(output.status.success(), "load: {}", String::from_utf8_lossy(&output.stderr));
                all.merge(&serde_json::from_slice(&output.stdout).context("what load printed")?);
            }
            Ok(all)
        })
    }
}

fn path(program: &str) -> Result<String> {
    Ok(binary(program)?.display().to_string())
}

/// The middle one.
pub(crate) fn median(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}
