//! The budget tier: what a cached answer takes of a processor, counted in instructions, and what the verifier has to look
//! at. Counts hardly differ from run to run and from machine to machine, whatever else these do, so a few percent more
//! are a change of the code. Needs root, valgrind, and the agent as it is released.
mod callgrind;

use std::{collections::BTreeMap, fmt::Write as _, fs, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use callgrind::{Callgrind, Counts};
use pod_identity_tests::{
    bpf,
    load::Report,
    node::Node,
    pod::Pod,
    process::{binary, eventually, must},
};

/// Name of a count → what it may be. Written anew with `POD_IDENTITY_BUDGET=write`.
type Budget = BTreeMap<String, f64>;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/budget/budget.json");
/// How to say that the file is to be written.
const VARIABLE: &str = "POD_IDENTITY_BUDGET";
/// How much more than the budget is no regression yet. What depends on time (scrubs of the stack, discovery's rescan) makes
/// runs differ by two percent.
const TOLERANCE: f64 = 0.05;
/// A budget that is so much too high hides regressions.
const SLACK: f64 = 0.10;

/// For the first credentials.
const FETCHED: Duration = Duration::from_secs(30);

/// Requests that are counted, and ones before them that fill what is filled once.
const COUNTED: u64 = 1000;
const BEFORE: u64 = 50;

#[test]
fn a_cached_answer_takes_no_more_instructions_and_the_programs_no_more_looks_than_budgeted() -> Result<()> {
    let mut found = Budget::new();
    programs(&mut found)?;
    answers(&mut found)?;
    if std::env::var_os(VARIABLE).is_some() {
        return Ok(fs::write(FILE, format!("{}\n", serde_json::to_string_pretty(&found)?))?);
    }
    let budget: Budget = serde_json::from_str(&fs::read_to_string(FILE)?).context(FILE)?;
    let (table, kept) = compared(&budget, &found);
    println!("{table}");
    ensure!(kept, "over the budget, or far below it:\n{table}\nIf that is meant: {VARIABLE}=write writes {FILE} anew");
    Ok(())
}

/// Each count beside its budget, and whether all are within it.
fn compared(budget: &Budget, found: &Budget) -> (String, bool) {
    let (mut table, mut kept) = (String::new(), budget.len() == found.len());
    for (name, count) in found {
        let may = budget.get(name).copied().unwrap_or_default();
        // Zero may stay zero.
        let change = if may > 0.0 { count / may - 1.0 } else { *count };
        let within = (-SLACK..=TOLERANCE).contains(&change);
        kept &= within;
        let verdict = if within { "" } else { "  <== NOT WITHIN" };
        let _ = writeln!(table, "{name:<44} {count:>8.0} of {may:>8.0}  {:+.1} %{verdict}", change * 100.0);
    }
    (table, kept)
}

fn programs(found: &mut Budget) -> Result<()> {
    let node = Node::new()?;
    let agent = node.agent()?;
    for program in bpf::programs_of(agent.pid())? {
        found.insert(format!("{}: instructions verified", program.name), f64::from(program.verified_instructions));
    }
    Ok(())
}

fn answers(found: &mut Budget) -> Result<()> {
    let node = Node::new()?;
    let callgrind = Callgrind::new(node.dir())?;
    let agent = node.agent_with(&callgrind.agent())?;
    let pod = node.pod("app")?;
    eventually("credentials, from an agent that is slowed down fifty times", FETCHED, || {
        Ok((pod.credentials()?.status == Some(200)).then_some(()))
    })?;
    for (name, connections) in [("kept connection", "kept"), ("new connection", "new")] {
        ask(&pod, connections, BEFORE)?;
        callgrind.begin(&agent)?;
        let asked = ask(&pod, connections, COUNTED)?;
        let counts = callgrind.end(&agent, connections)?;
        add(found, name, &counts, asked);
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn add(found: &mut Budget, name: &str, counts: &Counts, asked: u64) {
    // Whole ones: what discovery does beside it is a part of one.
    let each = |count: u64| (count as f64 / asked as f64).round();
    found.insert(format!("{name}: instructions"), each(counts.instructions));
    found.insert(format!("{name}: allocations"), each(counts.allocations));
}

/// Has the pod ask so often, one request after the other.
fn ask(pod: &Pod, connections: &str, requests: u64) -> Result<u64> {
    let mut command = pod.container("app")?.command(&binary("load")?.display().to_string())?;
    command.args(["--connections", connections, "--requests", &requests.to_string(), "--for-ms", "60000"]);
    let text = must(command.args(["--token", pod.token()]).stderr(Stdio::inherit()))?;
    let report: Report = serde_json::from_str(&text)?;
    ensure!(report.granted() == requests, "{:?} {:?}", report.statuses, report.failures);
    Ok(requests)
}
