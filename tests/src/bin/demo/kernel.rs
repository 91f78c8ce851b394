//! What bpftool, which knows nothing of the project, says about the programs and maps.
use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::process::must;
use serde_json::Value;

use crate::{scene::Scene, screen::Screen};

/// The map that is dumped.
const COUNTERS: &str = "COUNTERS";

/// Shows programs, links and maps, and the counters by name.
pub(crate) fn show(screen: &Screen, scene: &Scene) -> Result<()> {
    screen.heading("In the kernel: what bpftool sees");
    let kubepods = scene.node.kubepods().cgroup();
    let directory = kubepods.dir().display().to_string();
    bpftool(screen, &["cgroup", "show", &directory])?;
    let programs = attached(kubepods.dir())?;
    ensure!(programs.len() == 4, "four programs are attached, not {programs:?}");

    let id = kubepods.id()?;
    let links = ids(&["link", "show"], |link| link.get("cgroup_id").and_then(Value::as_u64) == Some(id))?;
    ensure!(links.len() == 4, "each program has a link: {links:?}");
    all_of(screen, "link", &links)?;
    let all = maps(&programs)?;
    all_of(screen, "map", &all)?;
    let counters = ids(&["map", "show"], |map| {
        let is_ours = map.get("id").and_then(Value::as_u64).is_some_and(|id| all.contains(&id));
        is_ours && map.get("name").and_then(Value::as_str) == Some(COUNTERS)
    })?;
    let counters = counters.first().context("no program uses a map COUNTERS")?;
    let dump = bpftool(screen, &["map", "dump", "id", &counters.to_string()])?;
    screen.check(dump.contains("\"connect4_steered\":"), "the counters have names: the programs carry BTF")
}

/// Ids of the programs that are attached to a cgroup.
pub(crate) fn attached(cgroup: &Path) -> Result<Vec<u64>> {
    let text = must(Command::new("bpftool").args(["--json", "cgroup", "show"]).arg(cgroup))?;
    // It prints nothing when there is nothing.
    let programs: Vec<Value> = if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text)? };
    Ok(programs.iter().filter_map(|program| program.get("id")?.as_u64()).collect())
}

/// Ids of the maps that these programs use.
fn maps(programs: &[u64]) -> Result<Vec<u64>> {
    let mut maps = Vec::new();
    for program in programs {
        let text = must(Command::new("bpftool").args(["--json", "prog", "show", "id", &program.to_string()]))?;
        let program: Value = serde_json::from_str(&text)?;
        let used = program.get("map_ids").and_then(Value::as_array).context("a program without maps")?;
        maps.extend(used.iter().filter_map(Value::as_u64));
    }
    maps.sort_unstable();
    maps.dedup();
    Ok(maps)
}

/// Ids of the objects in a list of bpftool's for which this holds.
fn ids(list: &[&str], holds: impl Fn(&Value) -> bool) -> Result<Vec<u64>> {
    let all: Vec<Value> = serde_json::from_str(&must(Command::new("bpftool").arg("--json").args(list))?)?;
    Ok(all.iter().filter(|object| holds(object)).filter_map(|object| object.get("id")?.as_u64()).collect())
}

/// Shows several objects of a kind; bpftool takes one id at a time.
fn all_of(screen: &Screen, kind: &str, ids: &[u64]) -> Result<()> {
    let ids = ids.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    let line = format!("for id in {ids}; do bpftool {kind} show id $id; done");
    let output = screen.command(&line, Command::new("sh").args(["-e", "-c", &line]))?;
    ensure!(output.status.success(), "bpftool failed: {}", output.status);
    Ok(())
}

fn bpftool(screen: &Screen, args: &[&str]) -> Result<String> {
    let output = screen.command(&format!("bpftool {}", args.join(" ")), Command::new("bpftool").args(args))?;
    ensure!(output.status.success(), "bpftool failed: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}
