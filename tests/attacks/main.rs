//! The attack suite: real attackers in real namespaces against the running agent, each with a control beside it that
//! shows the attack to work where the defence is off. Prints a table; fails unless every row ends as it says.
//!
//! A binary of its own making instead of the standard harness: its output is what a security engineer reads.
mod attack;
mod callers;
mod cgroups;
mod churn;
mod listeners;
mod netlink;
mod raw;
mod reach;
mod scene;
mod sniffing;
mod sockets;
mod squatting;
mod table;
mod tokens;
mod translation;
mod tuples;

use std::{panic::AssertUnwindSafe, process::ExitCode, time::Instant};

use anyhow::{Result, anyhow};
use clap::Parser;
use pod_identity_tests::host;

use attack::{Attack, Outcome};

/// Attacks the agent in every way of the list and prints what came of it
#[derive(Debug, Parser)]
struct Args {
    /// Only attacks whose name contains this
    filter: Option<String>,
    /// Print the names
    #[arg(long)]
    list: bool,
}

/// All attacks, in the order of SECURITY.md.
fn attacks() -> Vec<&'static Attack> {
    let groups: [&'static [Attack]; 12] = [
        &callers::ATTACKS,
        &tokens::ATTACKS,
        &cgroups::ATTACKS,
        &sockets::ATTACKS,
        &translation::ATTACKS,
        &tuples::ATTACKS,
        &netlink::ATTACKS,
        &listeners::ATTACKS,
        &sniffing::ATTACKS,
        &squatting::ATTACKS,
        &churn::ATTACKS,
        &reach::ATTACKS,
    ];
    groups.into_iter().flatten().collect()
}

fn main() -> ExitCode {
    let args = Args::parse();
    let wanted = |attack: &&Attack| args.filter.as_deref().is_none_or(|part| attack.name.contains(part));
    let chosen: Vec<&Attack> = attacks().into_iter().filter(wanted).collect();
    if args.list {
        for attack in chosen {
            println!("{}", attack.name);
        }
        return ExitCode::SUCCESS;
    }
    if let Err(error) = host::require_root() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let started = Instant::now();
    table::head();
    let mut failed = 0;
    for attack in &chosen {
        let began = Instant::now();
        let outcome = carry_out(attack).and_then(|outcome| attack.judge(&outcome).map(|()| outcome));
        table::row(attack, &outcome, began.elapsed());
        failed += usize::from(outcome.is_err());
    }
    table::foot(chosen.len(), failed, started.elapsed());
    // A filter that matches nothing proves nothing.
    if failed == 0 && !chosen.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A panic is that row's failure; what the row had made is removed all the same.
fn carry_out(attack: &Attack) -> Result<Outcome> {
    std::panic::catch_unwind(AssertUnwindSafe(|| (attack.run)(attack))).map_err(|_| anyhow!("it panicked"))?
}
