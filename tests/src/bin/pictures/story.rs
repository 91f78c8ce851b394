//! Four minutes in the life of a node, in which everything happens that a panel is for.
use std::{
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use pod_identity_tests::{
    agent::Agent,
    client::Client,
    foreign::{self, Foreign, IN_FRONT, PREORDER},
    node::Node,
    pod::Pod,
    process::{Process, binary, eventually},
    signals::Signals,
    standin::control::Effect,
};

use crate::{
    Tools,
    drawing::{Drawing, Event},
    go_on,
    prometheus::Prometheus,
    shop,
};

/// Where the agent serves its metrics, in the node's namespace.
const METRICS: &str = "127.0.0.1:2705";
/// Before anything happens: counters are zero, and Prometheus has seen them so.
const CALM: u64 = 10;
const END: u64 = 240;

/// Said above the panels.
const CAPTION: &str = "One node, four minutes, 14 pods that ask all the time. Credentials are renewed each minute here, not \
                       every three hours, and a pod's share is 1 %. What happens besides:";

/// What happens when; pods ask all the time.
const JOB: Event = Event { from: 38, to: 60, what: "a job of 24 pods" };
const THROTTLED: Event = Event { from: 72, to: 98, what: "EKS Auth throttles" };
const DOWN: Event = Event { from: 124, to: 156, what: "EKS Auth is down" };
const WRONG: Event = Event { from: 170, to: 180, what: "stolen and missing tokens" };
const GREEDY: Event = Event { from: 186, to: 200, what: "a pod that asks too much" };
const FOREIGN: Event = Event { from: 206, to: 222, what: "a foreign eBPF program" };

/// Lets it happen, and draws the dashboard of it.
pub(crate) fn draw(tools: &Tools, out: &Path, signals: &Signals) -> Result<()> {
    println!("dashboard: {END} s with pods that ask, while Prometheus looks");
    let node = shop::node()?;
    let (_crowded, _ports) = shop::crowded(&node, 900)?;
    let renewals = ["--max-credential-retention-before-renewal", "1m"];
    let flags = [&["--metrics-address", "127.0.0.1", "--max-share-per-pod", "1"], &renewals[..]].concat();
    let agent = shop::agent(&node, &flags)?;
    let prometheus = Prometheus::start(&node, &tools.prometheus, METRICS)?;
    let mut story = Story { node: &node, agent: &agent, begun: Instant::now(), signals, pods: 0, running: Vec::new() };
    let from = SystemTime::now();
    story.tell()?;
    let drawing = Drawing {
        dashboard: &tools.dashboard,
        caption: CAPTION,
        from,
        to: SystemTime::now(),
        events: &[JOB, THROTTLED, DOWN, WRONG, GREEDY, FOREIGN],
    };
    let empty = drawing.draw(&node, &prometheus, &tools.chromium, out)?;
    println!(
        "{}{}",
        out.display(),
        if empty.is_empty() { String::new() } else { format!(" (no data: {})", empty.join(", ")) }
    );
    Ok(())
}

struct Story<'a> {
    node: &'a Node,
    agent: &'a Agent,
    begun: Instant,
    signals: &'a Signals,
    /// So many pods there were.
    pods: usize,
    /// Clients, which end with their pods.
    running: Vec<(Process, Pod)>,
}

impl Story<'_> {
    fn tell(&mut self) -> Result<()> {
        self.wait_until(CALM)?;
        for (account, replicas, rate) in [("web", 5, 8.0), ("orders", 3, 4.0), ("payments", 3, 2.0), ("search", 2, 2.0)]
        {
            for _ in 0..replicas {
                self.pod_that_asks(account, rate)?;
            }
        }
        // Refused, again and again.
        self.pod_that_asks(shop::STRANGER, 0.5)?;
        self.job()?;
        self.eks_auth_fails(
            &THROTTLED,
            Effect::Error { status: 429, code: "ThrottlingException".to_owned(), message: "Rate exceeded".to_owned() },
        )?;
        self.eks_auth_fails(&DOWN, Effect::Drop)?;
        self.wrong_callers()?;
        self.greedy()?;
        self.foreign()?;
        self.wait_until(END)
    }

    /// Until so many seconds after the begin.
    fn wait_until(&self, second: u64) -> Result<()> {
        let due = self.begun + Duration::from_secs(second);
        while let Some(left) = due.checked_duration_since(Instant::now()) {
            go_on(self.signals)?;
            thread::sleep(left.min(Duration::from_millis(100)));
        }
        Ok(())
    }

    fn pod(&mut self, account: &str) -> Result<Pod> {
        self.pods += 1;
        self.node.pod_with(shop::spec(account, &format!("{account}-{}", self.pods), self.pods))
    }

    /// A pod that asks at this rate to the end, each time on a new connection.
    fn pod_that_asks(&mut self, account: &str, rate: f64) -> Result<()> {
        let pod = self.pod(account)?;
        let client = self.load(&pod, &["--rate", &rate.to_string(), "--for-ms", &(END * 1000).to_string()])?;
        self.running.push((client, pod));
        Ok(())
    }

    fn load(&self, pod: &Pod, args: &[&str]) -> Result<Process> {
        let program = binary("load")?;
        let mut command = pod.container("app")?.command(program.to_str().context("a path that is no text")?)?;
        Process::start("a client", command.args(["--token", pod.token()]).args(args), &self.node.dir().join("load.log"))
    }

    /// Many pods at once, which ask at once, and end together.
    fn job(&mut self) -> Result<()> {
        self.wait_until(JOB.from)?;
        let mut job = Vec::new();
        for _ in 0..24 {
            let pod = self.pod("report")?;
            // No event tells of the namespace that this makes, so its first connection finds no listener.
            let client = binary("pod-client")?;
            let shell = format!(
                "ip link set lo up; {} --connect-within-ms=3000 --header='Authorization: {}'",
                client.display(),
                pod.token()
            );
            let mut nested: Command = pod.container("app")?.command("unshare")?;
            nested.args(["--net", "sh", "-c", &shell]);
            let nested = Process::start("a nested client", &mut nested, &self.node.dir().join("nested.log"))?;
            let client = self.load(&pod, &["--rate", "2", "--for-ms", "20000"])?;
            job.push((nested, client, pod));
        }
        self.wait_until(JOB.to)?;
        for (nested, client, pod) in job {
            drop((nested, client));
            pod.remove()?;
        }
        Ok(())
    }

    /// EKS Auth does not do what it should, and pods come meanwhile.
    fn eks_auth_fails(&mut self, event: &Event, effect: Effect) -> Result<()> {
        self.wait_until(event.from)?;
        self.node.eks_auth().always(effect)?;
        for account in ["web", "orders", "search"] {
            self.pod_that_asks(account, 1.0)?;
        }
        self.wait_until(event.to)?;
        self.node.eks_auth().behave()
    }

    /// Tokens of other pods, none, and requests for other paths.
    fn wrong_callers(&mut self) -> Result<()> {
        self.wait_until(WRONG.from)?;
        let (thief, victim) = (self.pod("report")?, self.pod("payments")?);
        for _ in 0..8 {
            thief.ask_once(&Client::with_token(victim.token()))?;
            thief.ask_once(&Client::new())?;
            thief.ask_once(&Client::with_token(thief.token()).path("/latest/meta-data"))?;
            thief.ask_once(&Client::with_token(thief.token()).host("metadata.example"))?;
            thread::sleep(Duration::from_millis(500));
        }
        self.wait_until(WRONG.to)
    }

    /// One pod asks as fast as it is let.
    fn greedy(&mut self) -> Result<()> {
        self.wait_until(GREEDY.from)?;
        let pod = self.pod("search")?;
        let millis = ((GREEDY.to - GREEDY.from) * 1000).to_string();
        let client = self.load(&pod, &["--clients", "16", "--for-ms", &millis])?;
        self.wait_until(GREEDY.to)?;
        self.running.push((client, pod));
        Ok(())
    }

    /// A program that runs before the agent's, then one of the agent's that is taken off its hook.
    fn foreign(&mut self) -> Result<()> {
        self.wait_until(FOREIGN.from)?;
        let kubepods = self.node.kubepods().cgroup().dir().to_owned();
        let link = Foreign::harmless()?.attach(&kubepods, IN_FRONT | PREORDER)?;
        let (_, own) =
            foreign::links(&kubepods)?.into_iter().find(|(name, _)| name == "connect6").context("no connect6")?;
        foreign::detach(own)?;
        eventually("the agent to notice", Duration::from_secs(20), || {
            let counted = self.agent.metrics()?;
            let noticed =
                counted.iter().any(|(name, n)| name.starts_with("pod_identity_interference_total") && *n > 0.0);
            Ok(noticed.then_some(()))
        })?;
        self.wait_until(FOREIGN.to)?;
        drop(link);
        Ok(())
    }
}
