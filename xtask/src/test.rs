//! `test`: the tiers, in the order of their price; each is a claim of its own kind (tests/README.md).

use std::{path::Path, time::Duration};

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::{bench, check, fuzz, image, kit::Kit, memcheck, process, setup, systemd_node};

/// Tells the tests whether to take their full size: more pods, longer runs.
const SIZE: &str = "POD_IDENTITY_TEST_SIZE";

/// For each fuzz target, in full size.
const A_MINUTE: Duration = Duration::from_mins(1);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this tier.
    tier: Option<Tier>,
    /// The tests in their full size, as before a release.
    #[arg(long)]
    full: bool,
    /// Only tests whose name contains this; with a tier that runs tests.
    #[arg(long, requires = "tier")]
    filter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// Format, lints, documentation.
    Check,
    /// Unit tests, without root.
    Unit,
    /// Made-up inputs for everything that reads what others wrote, 5 s each; a minute, with AddressSanitizer, in full size.
    Fuzz,
    /// What is installed in a cluster: the Helm chart, the manifest, the alerts, the dashboard.
    Deploy,
    /// The agent on a node of network namespaces and cgroups, with the EKS Auth stand-in. Needs root.
    Node,
    /// Attacks on the agent and what comes of them, as a table. Needs root.
    Attacks,
    /// Containers that containerd and runc make, driven over the CRI; the agent in one of them. Needs root.
    Containers,
    /// Pods at their worst, and what the others notice of it; one test at a time. Needs root.
    Abuse,
    /// Instructions of a cached answer and of the programs against a budget, with the agent as it is released. Needs root.
    Budget,
    /// Real AWS SDKs and command line against the agent, moto and ministack. Needs root.
    Sdk,
    /// The container image, and its program on the node tier's nodes and in containers. Takes minutes to build: without a name only with
    /// --full. Needs root.
    Image,
}

impl Tier {
    const fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Unit => "unit",
            Self::Fuzz => "fuzz",
            Self::Deploy => "deploy",
            Self::Node => "node",
            Self::Attacks => "attacks",
            Self::Containers => "containers",
            Self::Abuse => "abuse",
            Self::Budget => "budget",
            Self::Sdk => "sdk",
            Self::Image => "image",
        }
    }

    const fn needs_root(self) -> bool {
        matches!(
            self,
            Self::Node | Self::Attacks | Self::Containers | Self::Abuse | Self::Budget | Self::Sdk | Self::Image
        )
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let usual = || Tier::value_variants().iter().copied().filter(|tier| options.full || *tier != Tier::Image).collect();
    let tiers = options.tier.map_or_else(usual, |tier| vec![tier]);
    if let Some(tier) = tiers.iter().find(|tier| tier.needs_root()) {
        ensure!(
            process::is_root(),
            "tier {} makes network namespaces, cgroups and attaches programs, which needs root; \
             `cargo xtask test unit` does not",
            tier.name()
        );
    }
    setup::ensure()?;

    let mut ran: Vec<(Tier, bool, Duration)> = Vec::new();
    for tier in &tiers {
        let (result, duration) = process::timed(&format!("tier {}", tier.name()), || run_tier(*tier, options));
        ran.push((*tier, result.is_ok(), duration));
        if let Err(error) = result {
            eprintln!("{error:#}");
            break;
        }
    }
    summary(&tiers, &ran)
}

fn run_tier(tier: Tier, options: &Options) -> Result<()> {
    match tier {
        Tier::Check => check::run(),
        Tier::Unit => {
            run_tests(&["--workspace", "--lib", "--bins"], &[], None, options)?;
            if options.full { memcheck::run() } else { Ok(()) }
        }
        Tier::Fuzz => fuzz::all(if options.full { fuzz::Size::Long(A_MINUTE) } else { fuzz::Size::Smoke }, None),
        Tier::Deploy => run_tests(&["--workspace", "--test", tier.name()], &[], None, options),
        Tier::Node | Tier::Attacks | Tier::Containers | Tier::Abuse | Tier::Budget | Tier::Sdk => {
            // The tests start the agent's binary, which cargo builds only for the agent's own tests. All targets of the
            // workspace, as in every other step: another selection has other features, and builds everything anew.
            process::run(&mut process::cargo(&["build", "--locked", "--workspace", "--all-targets"]))?;
            // What measures has the machine for itself and the agent as it is released, and shows what it measured.
            let measures = matches!(tier, Tier::Abuse | Tier::Budget);
            let alone: &[&str] = match tier {
                Tier::Abuse | Tier::Budget => &["--test-threads=1", "--nocapture"],
                // 500 pods at once are a busy machine to whatever runs beside them.
                Tier::Node if options.full => &["--test-threads=1"],
                _ => &[],
            };
            let agent = measures.then(bench::release_agent).transpose()?;
            let selection = ["--workspace", "--test", tier.name()];
            run_tests(&selection, alone, agent.as_deref(), options)?;
            if tier == Tier::Containers && options.full {
                println!("The same on a node as EKS has them: systemd, and cgroup v2 alone.");
                let root = systemd_node::root()?;
                run_tests_with(Some((systemd_node::VARIABLE, &root)), &selection, alone, options)?;
            }
            Ok(())
        }
        Tier::Image => {
            let program = image::program()?;
            process::run(&mut process::cargo(&["build", "--locked", "--workspace", "--all-targets"]))?;
            let tests = ["--workspace", "--test", Tier::Node.name(), "--test", Tier::Containers.name()];
            run_tests(&tests, &[], Some(&program), options)
        }
    }
}

/// With this agent, or the one that lies beside the tests.
fn run_tests(selection: &[&str], harness: &[&str], agent: Option<&Path>, options: &Options) -> Result<()> {
    run_tests_with(agent.map(|agent| (bench::AGENT, agent)), selection, harness, options)
}

/// With this variable.
fn run_tests_with(
    variable: Option<(&str, &Path)>,
    selection: &[&str],
    harness: &[&str],
    options: &Options,
) -> Result<()> {
    let mut cargo = process::cargo(&["test", "--locked"]);
    cargo.envs(variable);
    cargo.args(selection);
    for kit in Kit::all()? {
        let (variable, directory) = kit.variable();
        cargo.env(variable, directory);
    }
    if options.full {
        cargo.env(SIZE, "full");
    }
    cargo.arg("--").args(harness).args(&options.filter);
    process::run(&mut cargo)
}

fn summary(tiers: &[Tier], ran: &[(Tier, bool, Duration)]) -> Result<()> {
    println!("tiers:");
    for tier in tiers {
        let name = tier.name();
        match ran.iter().find(|(done, ..)| done == tier) {
            Some((_, passed, duration)) => {
                println!(
                    "  {name:<10} {} {:>7.1} s",
                    if *passed { "passed" } else { "FAILED" },
                    duration.as_secs_f64()
                );
            }
            None => println!("  {name:<10} not run"),
        }
    }
    if let Some((tier, ..)) = ran.iter().find(|(_, passed, _)| !passed) {
        bail!("tier {} failed", tier.name());
    }
    Ok(())
}
