//! What a comparison says: medians of rounds, and ratios of turns of the same round.
use pod_identity_tests::{load::Histogram, usage::Memory};
use serde::Serialize;

use crate::{
    ServeArgs,
    contestant::{Case, Turn},
    machine::{Machine, Watch},
    spread::Spread,
};

/// The contestant that all others are compared with: the second one.
const FLOOR: usize = 1;

/// All turns of one case, by contestant.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) case: Case,
    pub(crate) turns: Vec<Vec<Turn>>,
}

/// A whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    pub(crate) turn_ms: u64,
    /// Part of a processor that others used meanwhile.
    pub(crate) others_used: f64,
    pub(crate) warning: Option<String>,
    pub(crate) memory: Vec<Kept>,
    pub(crate) cases: Vec<Compared>,
    pub(crate) targets: Vec<Target>,
}

/// What a contestant had in memory.
#[derive(Debug, Serialize)]
pub(crate) struct Kept {
    pub(crate) name: String,
    pub(crate) idle: Memory,
    pub(crate) after_load: Memory,
}

/// One case.
#[derive(Debug, Serialize)]
pub(crate) struct Compared {
    pub(crate) case: String,
    pub(crate) kept: bool,
    pub(crate) clients: usize,
    pub(crate) contestants: Vec<Line>,
}

/// One contestant in one case.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) requests_per_second: Spread,
    pub(crate) p50_us: Spread,
    pub(crate) p99_us: Spread,
    pub(crate) p999_us: Spread,
    pub(crate) cpu_seconds_per_100k: Spread,
    pub(crate) switches_per_request: Spread,
    /// Against the floor in the same round.
    pub(crate) p50_ratio: Spread,
    pub(crate) cpu_ratio: Spread,
    /// Of all rounds.
    pub(crate) latencies_ns: Histogram,
}

/// What was to be reached.
#[derive(Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) at_most: f64,
    pub(crate) measured: Spread,
    pub(crate) met: bool,
}

/// Kind of connection, clients, and how many times the floor's p50 and processor time are allowed.
const TARGETS: [(bool, usize, Option<f64>, f64); 4] =
    [(false, 1, Some(1.15), 1.35), (true, 1, Some(1.25), 1.5), (false, 16, None, 1.35), (true, 16, None, 1.65)];

impl Comparison {
    pub(crate) fn new(
        machine: Machine,
        args: &ServeArgs,
        names: Vec<String>,
        measured: &[Measured],
        (idle, loaded): (&[Memory], &[Memory]),
        watch: &Watch,
    ) -> Self {
        let cases: Vec<_> = measured.iter().map(|measured| compare(measured, &names)).collect();
        let memory = names
            .into_iter()
            .zip(idle.iter().zip(loaded))
            .map(|(name, (idle, after_load))| Kept { name, idle: *idle, after_load: *after_load })
            .collect();
        Self {
            machine,
            rounds: args.rounds,
            turn_ms: args.turn_ms,
            others_used: watch.others(),
            warning: watch.warning(),
            memory,
            targets: targets(&cases),
            cases,
        }
    }
}

fn compare(measured: &Measured, names: &[String]) -> Compared {
    let floor = measured.turns.get(FLOOR).map(Vec::as_slice).unwrap_or_default();
    let contestants = names.iter().zip(&measured.turns).map(|(name, turns)| line(name, turns, floor)).collect();
    let Case { kept, clients } = measured.case;
    Compared { case: measured.case.name(), kept, clients, contestants }
}

fn line(name: &str, turns: &[Turn], floor: &[Turn]) -> Line {
    let each = |value: &dyn Fn(&Turn) -> f64| Spread::of(turns.iter().map(value));
    let ratio = |value: &dyn Fn(&Turn) -> f64| {
        Spread::of(turns.iter().zip(floor).map(|(turn, floor)| value(turn) / value(floor)))
    };
    let mut latencies = Histogram::default();
    for turn in turns {
        latencies.merge(&turn.report.latencies);
    }
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    let switches = |turn: &Turn| turn.used.switches as f64 / turn.requests();
    Line {
        name: name.to_owned(),
        requests_per_second: each(&|turn| turn.requests() / turn.report.seconds),
        p50_us: each(&|turn| turn.microseconds(0.5)),
        p99_us: each(&|turn| turn.microseconds(0.99)),
        p999_us: each(&|turn| turn.microseconds(0.999)),
        cpu_seconds_per_100k: each(&Turn::cpu_per_100k),
        switches_per_request: each(&switches),
        p50_ratio: ratio(&|turn| turn.microseconds(0.5)),
        cpu_ratio: ratio(&Turn::cpu_per_100k),
        latencies_ns: latencies,
    }
}

fn targets(cases: &[Compared]) -> Vec<Target> {
    let mut targets = Vec::new();
    for (kept, clients, p50, cpu) in TARGETS {
        let Some(case) = cases.iter().find(|case| (case.kept, case.clients) == (kept, clients)) else { continue };
        let Some(ours) = case.contestants.first() else { continue };
        let mut add = |what: &str, at_most: f64, measured: Spread| {
            let what = format!("{}: {what} against the floor's", case.case);
            targets.push(Target { what, at_most, measured, met: measured.median <= at_most });
        };
        if let Some(p50) = p50 {
            add("p50", p50, ours.p50_ratio);
        }
        add("processor time", cpu, ours.cpu_ratio);
    }
    targets
}
