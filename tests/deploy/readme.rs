//! The tables of deploy/README.md are whole: no flag and no metric is missing, or there that is none.
use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use pod_identity_agent::config::{self, Stop};

use crate::{
    dashboard::base,
    metrics,
    tools::{deploy, text},
};

/// What is in backquotes in the first column of a section's tables.
fn told(section: &str) -> Result<BTreeSet<String>> {
    let readme = text(&deploy("README.md"))?;
    let heading = format!("\n## {section}\n");
    let section = readme.split(&heading).nth(1).and_then(|rest| rest.split("\n## ").next()).context(heading)?;
    let names = section.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    Ok(names.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned)).collect())
}

fn must_be_told(section: &str, known: &BTreeSet<String>) -> Result<()> {
    let told = told(section)?;
    ensure!(told == *known, "{section} differs in {:?}", told.symmetric_difference(known).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn every_metric_is_in_its_table() -> Result<()> {
    let known = metrics::known(&metrics::served());
    let bare = |name: &String| base(name).trim_start_matches("pod_identity_").to_owned();
    must_be_told("Metrics", &known.iter().map(bare).collect())
}

#[test]
fn every_flag_is_in_its_table() -> Result<()> {
    let Err(Stop::Shown(help)) = config::read(["pod-identity-agent", "server", "--help"].map(Into::into)) else {
        bail!("there is no help")
    };
    let words = help.lines().map(str::trim).filter(|line| line.starts_with('-')).flat_map(str::split_whitespace);
    let flags = words.filter(|word| word.starts_with("--")).map(|flag| flag.split('[').next().unwrap_or_default());
    let mut flags: BTreeSet<_> = flags.map(str::to_owned).collect();
    flags.remove("--help");
    // The one that people write short.
    flags.insert("-v".to_owned());
    ensure!(flags.len() > 20, "{flags:?}");
    must_be_told("Flags", &flags)
}
