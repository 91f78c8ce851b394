//! The agent beside more and more pods: memory, start, discovery, renewal, idleness.
use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::{Agent, AgentSpec, CAPABILITIES},
    eks_auth::EksAuthSpec,
    node::{Node, NodeSpec},
    pod::{Pod, PodSpec},
    process::{self, binary, eventually},
    usage::{Memory, Usage},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::{
    ScaleArgs, first,
    machine::Machine,
    spread::Spread,
    svg::{self, Chart, Series},
};

/// For an agent that starts beside all pods to have everything.
const ALL_THERE: Duration = Duration::from_mins(15);
const STOPS: Duration = Duration::from_secs(20);
/// Starts of an agent beside the same pods; the middle one counts.
const STARTS: usize = 5;
/// After every pod's credentials were fetched: until connections to EKS Auth have closed and the agent has tidied up.
const SETTLES: Duration = Duration::from_secs(45);

/// What one number of pods showed.
#[derive(Debug, Serialize)]
struct Step {
    pods: usize,
    /// From the start of the container to the agent's readiness, in milliseconds.
    ready_ms: f64,
    /// What of that such a container takes without the agent: its mounts, of which each pod has one, and capabilities.
    container_ms: f64,
    /// From a new pod's sandbox process to a listener in its namespace, in milliseconds, harness and all.
    discovery_ms: f64,
    /// Milliseconds of processor time from the start to the readiness, for each pod.
    start_cpu_ms_per_pod: f64,
    /// With every pod's credentials in it.
    idle: Memory,
    /// Microseconds of processor time for a pod's renewal.
    renewal_cpu_us: f64,
    idle_wakeups_per_second: f64,
    /// Changes of the machine's mount table meanwhile, by others: the kernel tells every agent of each, which wakes it.
    mounts_of_others: u64,
    idle_cpu_us_per_second: f64,
    /// How many times as long as later ones a pod's first answer takes.
    first_answer_ratio: Spread,
}

#[derive(Debug, Serialize)]
struct Scale {
    machine: Machine,
    steps: Vec<Step>,
    targets: Vec<Target>,
}

/// What was to be reached.
#[derive(Debug, Serialize)]
struct Target {
    what: String,
    at_most: f64,
    measured: f64,
    met: bool,
}

/// Value of a step.
type Value<'a> = &'a dyn Fn(&Step) -> f64;

pub(crate) fn run(args: &ScaleArgs, out: &Path) -> Result<()> {
    let node = Node::with(NodeSpec {
        // Renewed at half of it.
        eks_auth: EksAuthSpec { lifetime_seconds: Some(6 * 3600), ..EksAuthSpec::default() },
        ..NodeSpec::default()
    })?;
    node.eks_auth().associate("default", "app", "app")?;
    let mut pods: Vec<Pod> = Vec::new();
    let mut steps = Vec::new();
    let mut numbers = args.pods.clone();
    numbers.sort_unstable();
    print_head();
    for number in numbers {
        while pods.len() < number {
            pods.push(node.pod_with(PodSpec::named("app"))?);
        }
        let step = step(&node, &pods, args)?;
        print(&step);
        steps.push(step);
    }
    let machine = Machine::here()?;
    let targets = targets(&steps, machine.agent_megabytes());
    let scale = Scale { machine, steps, targets };
    println!("\n| target | at most | measured | |\n|---|---|---|---|");
    for Target { what, at_most, measured, met } in &scale.targets {
        println!("| {what} | {at_most} | {measured:.1} | {} |", if *met { "met" } else { "MISSED" });
    }
    fs::write(out.join("scale.json"), serde_json::to_string_pretty(&scale)?)?;
    fs::write(out.join("scale.svg"), svg::picture(&charts(&scale.steps)))?;
    println!("\nwritten: {}", out.join("scale.json").display());
    Ok(())
}

fn step(node: &Node, pods: &[Pod], args: &ScaleArgs) -> Result<Step> {
    let number = pods.len();
    let mut ready = Vec::new();
    let mut start_cpu = Duration::ZERO;
    for _ in 1..STARTS {
        let (mut agent, took) = start(node)?;
        ready.push(took);
        start_cpu = usage(&agent)?.cpu;
        ensure!(agent.terminate(STOPS)?.success(), "the agent failed: {}", agent.log_text());
    }
    let (agent, took) = start(node)?;
    ready.push(took);
    ready.sort_unstable();
    let calls = || -> Result<f64> { agent.metric("pod_identity_eks_auth_seconds_count{outcome=\"ok\"}") };
    #[expect(clippy::cast_precision_loss, reason = "not that many pods")]
    let all = number as f64;
    eventually("every pod's credentials", ALL_THERE, || {
        thread::sleep(Duration::from_millis(200));
        Ok((calls().unwrap_or_default() >= all).then_some(()))
    })?;
    thread::sleep(SETTLES);
    let before = usage(&agent)?;
    let mounts_of_others = mount_changes(Duration::from_secs(args.idle_seconds))?;
    let used = usage(&agent)?.since(before);
    let idle = Memory::of(&[agent.pid()])?;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let (seconds, waits) = (args.idle_seconds as f64, used.waits as f64);
    let first_answer_ratio = first::ratio(pods)?;
    let renewal_cpu_us = renewals(&agent, number, calls)?;
    let discovery_ms = discovery(node, &agent)?;
    Ok(Step {
        pods: number,
        ready_ms: milliseconds(ready.get(STARTS / 2).copied().unwrap_or_default()),
        container_ms: milliseconds(container(&agent)?),
        discovery_ms,
        start_cpu_ms_per_pod: milliseconds(start_cpu) / all,
        idle,
        renewal_cpu_us,
        idle_wakeups_per_second: waits / seconds,
        mounts_of_others,
        idle_cpu_us_per_second: used.cpu.as_secs_f64() * 1e6 / seconds,
        first_answer_ratio,
    })
}

/// A container like the agent's whose program says its version and ends.
fn container(agent: &Agent) -> Result<Duration> {
    let mut took = Vec::new();
    for _ in 0..STARTS {
        let started = Instant::now();
        process::run(&mut agent.beside(&[], CAPABILITIES, &["version"])?, STOPS)?;
        took.push(started.elapsed());
    }
    took.sort_unstable();
    took.get(STARTS / 2).copied().context("there were some")
}

/// Watches the machine's mount table for so long, and counts how often the kernel told of a change.
fn mount_changes(period: Duration) -> Result<u64> {
    let table = fs::File::open("/proc/self/mountinfo")?;
    let until = Instant::now() + period;
    let mut changes = 0;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(changes);
        }
        let told = poll(&mut [PollFd::new(&table, PollFlags::PRI)], Some(&Timespec::try_from(left)?))?;
        changes += u64::try_from(told)?;
    }
}

fn start(node: &Node) -> Result<(Agent, Duration)> {
    let started = Instant::now();
    let spec = AgentSpec::flags(&["--prefetch=true", "--max-service-qps", "100", "--log-format", "text"]);
    let agent = node.agent_with(&spec)?;
    Ok((agent, started.elapsed()))
}

/// Processor time for one pod's call to EKS Auth and what comes of it, as an operator's flush has all of them made.
fn renewals(agent: &Agent, pods: usize, calls: impl Fn() -> Result<f64>) -> Result<f64> {
    let (before, called) = (usage(agent)?, calls()?);
    let mut flush = Command::new(binary("pod-identity-agent")?);
    flush.args(["flush", "--all", "--run-dir"]).arg(agent.run_dir());
    let flushed = process::run(&mut flush, ALL_THERE)?;
    ensure!(flushed.status.success(), "flush: {}", String::from_utf8_lossy(&flushed.stderr));
    #[expect(clippy::cast_precision_loss, reason = "not that many pods")]
    let wanted = called + pods as f64;
    eventually("all pods to be renewed", ALL_THERE, || {
        thread::sleep(Duration::from_millis(50));
        Ok((calls()? >= wanted).then_some(()))
    })?;
    let used = usage(agent)?.since(before);
    Ok(used.cpu.as_secs_f64() * 1e6 / (calls()? - called))
}

/// Three more pods, which end again.
fn discovery(node: &Node, agent: &Agent) -> Result<f64> {
    let mut took = Vec::new();
    for _ in 0..3 {
        let mut pod = node.begin_pod(PodSpec::named("app"))?;
        let namespaces = agent.metric("pod_identity_namespaces")?;
        let started = Instant::now();
        pod.start_sandbox()?;
        agent.wait_for_metric("pod_identity_namespaces", namespaces + 1.0, STOPS)?;
        took.push(started.elapsed());
        pod.stop_sandbox()?;
        pod.remove_cgroup()?;
        eventually("the pod to end", STOPS, || {
            Ok((agent.metric("pod_identity_namespaces")? <= namespaces).then_some(()))
        })?;
    }
    took.sort_unstable();
    Ok(milliseconds(took.get(1).copied().unwrap_or_default()))
}

fn usage(agent: &Agent) -> Result<Usage> {
    Usage::of(&[agent.pid()])
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn print_head() {
    println!(
        "| pods | ready ms | container ms | start CPU ms/pod | discovery ms | PSS MB | anonymous MB | first answer | renewal µs | idle wake-ups/s | mounts of others | idle CPU µs/s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
}

fn print(step: &Step) {
    println!(
        "| {} | {:.1} | {:.1} | {:.2} | {:.1} | {:.1} | {:.1} | {:.2} ({:.2}–{:.2}) | {:.0} | {:.2} | {} | {:.0} |",
        step.pods,
        step.ready_ms,
        step.container_ms,
        step.start_cpu_ms_per_pod,
        step.discovery_ms,
        pss(step),
        anonymous(step),
        step.first_answer_ratio.median,
        step.first_answer_ratio.min,
        step.first_answer_ratio.max,
        step.renewal_cpu_us,
        step.idle_wakeups_per_second,
        step.mounts_of_others,
        step.idle_cpu_us_per_second
    );
}

#[expect(clippy::cast_precision_loss, reason = "kilobytes are far below 2^53")]
fn pss(step: &Step) -> f64 {
    step.idle.pss_kb as f64 / 1024.0
}

#[expect(clippy::cast_precision_loss, reason = "kilobytes are far below 2^53")]
fn anonymous(step: &Step) -> f64 {
    step.idle.anonymous_kb as f64 / 1024.0
}

fn targets(steps: &[Step], agent_megabytes: f64) -> Vec<Target> {
    let wanted: [(usize, &str, Value<'_>, f64); 7] = [
        (10, "PSS, MB", &pss, 12.0),
        (10, "anonymous, MB", &anonymous, 6.0),
        (737, "PSS, MB", &pss, 18.0),
        (737, "anonymous, MB", &anonymous, 11.0),
        (
            250,
            "start to ready, without the container's own start, ms",
            &|step: &Step| step.ready_ms - step.container_ms,
            60.0,
        ),
        (250, "idle wake-ups in 10 s", &|step: &Step| step.idle_wakeups_per_second * 10.0, 1.0),
        (250, "a pod's first answer against later ones", &|step: &Step| step.first_answer_ratio.median, 2.0),
    ];
    let target = |what, measured, at_most| Target { what, at_most, measured, met: measured <= at_most };
    let mut targets = vec![target("binary, MB".to_owned(), agent_megabytes, 12.0)];
    for (pods, what, value, at_most) in wanted {
        if let Some(step) = steps.iter().find(|step| step.pods == pods) {
            targets.push(target(format!("{pods} pods: {what}"), value(step), at_most));
        }
    }
    targets
}

#[expect(clippy::cast_precision_loss, reason = "kilobytes and pods are far below 2^53")]
fn charts(steps: &[Step]) -> Vec<Chart> {
    let chart = |title: &str, up: &str, series: Vec<(&str, Value<'_>)>| Chart {
        title: title.to_owned(),
        across: "pods".to_owned(),
        up: up.to_owned(),
        series: series
            .into_iter()
            .map(|(name, value)| Series {
                name: name.to_owned(),
                points: steps.iter().map(|step| (step.pods as f64, value(step))).collect(),
            })
            .collect(),
    };
    vec![
        chart("Memory", "MB", vec![("PSS", &pss), ("anonymous", &anonymous)]),
        chart(
            "Start to ready",
            "ms",
            vec![("ready", &|step: &Step| step.ready_ms), ("container", &|step: &Step| step.container_ms)],
        ),
        chart("A renewal", "µs of a processor", vec![("renewal", &|step: &Step| step.renewal_cpu_us)]),
        chart("Idle", "wake-ups/s", vec![("wake-ups", &|step: &Step| step.idle_wakeups_per_second)]),
    ]
}
