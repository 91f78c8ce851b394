//! The same days under the engine and under the official agent's rules, side by side:
//! `cargo test -p pod-identity-agent --lib simulation::table -- --nocapture`.
use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::{
    DAY, FIFTY_NINE_MINUTES, HOUR, LATENCY, MINUTE, SECOND, SIX_HOURS,
    calm::mixture,
    eks_auth::{EksAuth, Fault, Spell},
    fleet::{Fleet, PodSpec},
    formula::{Bounds, calls_of_all},
    node::{Agent, Ours, Seen, limits, run},
    official::Official,
    sdks::Sdk,
};

/// More than the official agent's sweeps renew in an hour.
const PLACES: usize = 150;
const LASTS: Duration = DAY;
const RESTART: Duration = Duration::from_hours(15);

/// What happens on the node.
struct Scenario {
    name: &'static str,
    life: Duration,
    spells: Vec<Spell>,
    restarts: bool,
}

struct Row {
    calls: usize,
    seen: Seen,
}

impl Scenario {
    fn calm(name: &'static str, life: Duration) -> Self {
        Self { name, life, spells: Vec::new(), restarts: false }
    }

    fn all() -> Vec<Self> {
        let down = Spell::new(10 * HOUR, 150 * MINUTE, Fault::Down);
        let storm = Spell::new(10 * HOUR, 40 * MINUTE, Fault::Throttles { above: 0 });
        let slow = Spell::new(Duration::ZERO, HOUR, Fault::Slow { latency: 3 * SECOND });
        vec![
            Self::calm("nothing is wrong, 6 h", SIX_HOURS),
            Self::calm("nothing is wrong, 59 min", FIFTY_NINE_MINUTES),
            Self { spells: vec![slow], ..Self::calm("it takes 3 s in the first hour, 6 h", SIX_HOURS) },
            Self { spells: vec![down], ..Self::calm("it is down for 2.5 h, 6 h", SIX_HOURS) },
            Self { spells: vec![storm], ..Self::calm("it throttles for 40 min, 59 min", FIFTY_NINE_MINUTES) },
            Self { restarts: true, ..Self::calm("the agent restarts, 6 h", SIX_HOURS) },
        ]
    }

    fn fleet(&self) -> Arc<Fleet> {
        let pods = mixture(PLACES, LASTS, HOUR, 7).into_iter().map(|pod| pod.life(self.life));
        Fleet::with(pods, &self.spells)
    }

    async fn ours(&self) -> Row {
        let fleet = self.fleet();
        let eks_auth = EksAuth::new(&fleet, LATENCY);
        let ours = Ours::new(&eks_auth, limits(1));
        let again = Arc::clone(&ours);
        self.row(&fleet, &eks_auth, &ours, move || again.restart(2)).await
    }

    async fn official(&self) -> Row {
        let fleet = self.fleet();
        let eks_auth = EksAuth::new(&fleet, LATENCY);
        let official = Official::new(eks_auth.clone(), &fleet.clock);
        let again = Arc::clone(&official);
        self.row(&fleet, &eks_auth, &official, move || again.restart()).await
    }

    async fn row(&self, fleet: &Arc<Fleet>, eks_auth: &EksAuth, agent: &Arc<impl Agent>, restart: impl Fn()) -> Row {
        let restarts = async {
            if self.restarts {
                fleet.until(RESTART).await;
                restart();
            }
        };
        let (seen, ()) = tokio::join!(run(agent, fleet), restarts);
        Row { calls: eks_auth.total(), seen: Seen::of_all(seen.values()) }
    }

    /// What the formula says: a number where nothing is wrong, else bounds.
    fn formula(&self) -> (usize, usize) {
        let (fleet, limits) = (self.fleet(), limits(1));
        if self.spells.is_empty() && !self.restarts {
            let calls = calls_of_all(fleet.pods.values(), &limits, LATENCY).values().map(Vec::len).sum();
            return (calls, calls);
        }
        fleet.pods.values().fold((0, 0), |(least, most), pod| {
            let bounds = Bounds::of(pod, &limits, LATENCY, fleet.longest_queue(), &self.spells);
            // Never asked for: two calls, if it lives for so long.
            let fewest = if pod.first_ask().is_some() { bounds.least } else { bounds.least.min(2) };
            let again = usize::from(self.restarts && (pod.born..pod.ends).contains(&RESTART));
            (least + fewest, most + bounds.most + again)
        })
    }
}

fn print(name: &str, who: &str, formula: &str, row: &Row) {
    let Row { calls, seen } = row;
    let wait = seen.longest_wait.as_secs_f64();
    println!(
        "| {name:<36} | {who:<8} | {calls:>6} | {formula:<13} | {:>6} | {:>6} | {:>6} | {wait:>9.1} s |",
        seen.short, seen.multiplied, seen.failed
    );
}

#[tokio::test(start_paused = true)]
async fn the_same_days_under_both_rules() {
    println!("{PLACES} places for pods (a tenth replaced every few hours), {} hours", LASTS.as_secs() / HOUR.as_secs());
    println!(
        "| {:<36} | {:<8} | {:<6} | {:<13} | {:<6} | {:<6} | {:<6} | {:<11} |",
        "scenario", "rules", "calls", "formula", "short", "again", "failed", "longest wait"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for scenario in Scenario::all() {
        let (ours, official, (least, most)) = (scenario.ours().await, scenario.official().await, scenario.formula());
        let formula = if least == most { most.to_string() } else { format!("{least}–{most}") };
        print(scenario.name, "ours", &formula, &ours);
        print("", "official", "none", &official);
        assert!(least <= ours.calls && ours.calls <= most, "{}: {} calls, {formula}", scenario.name, ours.calls);
        assert!(ours.seen.expired + ours.seen.short == 0, "{}: {:?}", scenario.name, ours.seen);
        if scenario.spells.is_empty() {
            assert!(ours.seen.failed + ours.seen.multiplied == 0, "{}: {:?}", scenario.name, ours.seen);
        }
    }
    let (ours, official) = (a_hundred_at_once(true).await, a_hundred_at_once(false).await);
    print("100 clients of a pod, it takes 1.9 s", "ours", "1", &ours);
    print("", "official", "none", &official);
    assert!(ours.calls == 1 && official.calls == 100, "{} and {} calls", ours.calls, official.calls);
}

/// Clients of a pod that come together, each as patient as an SDK.
async fn a_hundred_at_once(with_ours: bool) -> Row {
    let pod = PodSpec::new(0, MINUTE).asks(Sdk::CommandLine { every: HOUR }, SECOND);
    let fleet = Fleet::new([pod]);
    let eks_auth = EksAuth::new(&fleet, 1900 * SECOND / 1000);
    let seen = if with_ours {
        let limits = crate::credentials::engine::Limits { prefetch: false, ..limits(1) };
        crowd(&Ours::new(&eks_auth, limits), &fleet).await
    } else {
        crowd(&Official::new(eks_auth.clone(), &fleet.clock), &fleet).await
    };
    Row { calls: eks_auth.total(), seen }
}

async fn crowd(agent: &Arc<impl Agent>, fleet: &Arc<Fleet>) -> Seen {
    let pod = *fleet.pods.values().next().unwrap();
    agent.appeared(pod.uid());
    let mut clients = JoinSet::new();
    for _ in 0..100 {
        clients.spawn(super::node::client(Arc::clone(agent), Arc::clone(fleet), pod));
    }
    Seen::of_all(&clients.join_all().await)
}
