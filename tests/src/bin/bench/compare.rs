//! Cached answers: ours, the floor's, and other agents', in turns.
use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    ServeArgs,
    contestant::{Case, Contestant, Turn},
    machine::{Machine, Watch},
    report::{Comparison, Measured},
    scene::{Floor, Ours, Rival},
    svg, table,
};

/// Keeps out of the numbers what happens once: pages that are touched first, memory that is asked for first.
const WARM_UP_MS: u64 = 100;

pub(crate) fn run(args: &ServeArgs, out: &Path) -> Result<()> {
    let machine = Machine::here()?;
    let ours = Ours::start("ours", &[])?;
    let floor = Floor::start(&ours)?;
    let variants = args.variant.iter().map(|flags| variant(flags)).collect::<Result<Vec<_>>>()?;
    let rivals = args.rival.iter().map(|command| Rival::start(command)).collect::<Result<Vec<_>>>()?;
    let mut contestants = vec![ours.contestant()?, floor.steered()?, floor.direct()];
    contestants.extend(variants.iter().map(Ours::contestant).collect::<Result<Vec<_>>>()?);
    contestants.extend(rivals.iter().map(Rival::contestant).collect::<Result<Vec<_>>>()?);

    let (serving, asking) = machine.processors();
    let idle = contestants.iter().map(Contestant::memory).collect::<Result<Vec<_>>>()?;
    for contestant in &contestants {
        contestant.pin(serving)?;
    }
    let mut watch = Watch::new();
    let mut measured = Vec::new();
    for case in cases(&args.clients) {
        let turns = rounds(args, &contestants, case, asking, &mut watch)?;
        measured.push(Measured { case, turns });
        eprintln!("measured: {}", case.name());
    }
    let loaded = contestants.iter().map(Contestant::memory).collect::<Result<Vec<_>>>()?;
    let names = contestants.iter().map(|contestant| contestant.name.clone()).collect();
    let comparison = Comparison::new(machine, args, names, &measured, (&idle, &loaded), &watch);
    table::print(&comparison);
    fs::write(out.join("serve.json"), serde_json::to_string_pretty(&comparison)?)?;
    fs::write(out.join("serve.svg"), svg::latencies(&comparison))?;
    println!("\nwritten: {}", out.join("serve.json").display());
    println!("written: {}", out.join("serve.svg").display());
    if let Some(warning) = watch.warning() {
        println!("\n{warning}");
    }
    Ok(())
}

fn variant(flags: &str) -> Result<Ours> {
    Ours::start(&format!("ours {flags}"), &flags.split_whitespace().collect::<Vec<_>>())
}

fn cases(clients: &[usize]) -> Vec<Case> {
    [false, true].iter().flat_map(|&kept| clients.iter().map(move |&clients| Case { kept, clients })).collect()
}

/// A turn of everybody in each round, beginning with another one each time. By contestant, then by round.
fn rounds(
    args: &ServeArgs,
    contestants: &[Contestant<'_>],
    case: Case,
    processor: usize,
    watch: &mut Watch,
) -> Result<Vec<Vec<Turn>>> {
    for contestant in contestants {
        contestant.turn(case, WARM_UP_MS, processor, &mut Watch::new())?;
    }
    let milliseconds = u64::try_from(args.turn().as_millis())?;
    let mut turns = vec![Vec::new(); contestants.len()];
    for round in 0..args.rounds {
        for place in 0..contestants.len() {
            let next = (place + round) % contestants.len();
            let contestant = contestants.get(next).context("there is one")?;
            let turn = contestant.turn(case, milliseconds, processor, watch)?;
            turns.get_mut(next).context("there is one")?.push(turn);
        }
    }
    Ok(turns)
}
