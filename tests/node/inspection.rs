//! What an operator sees of the programs: names, source lines, counters, and their own log when it is asked for.
use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{agent::AgentSpec, process::must};
use serde_json::Value;

use crate::common::{Served, ask_from_new_namespaces, served, served_with};

/// A program attached to the node's kubepods cgroup, as bpftool describes it.
fn program(served: &Served, name: &str) -> Result<Value> {
    let cgroup = served.node.kubepods().cgroup();
    let attached: Value = bpftool(&["cgroup", "show", &cgroup.dir().to_string_lossy()])?;
    let programs = attached.as_array().context("programs are attached")?;
    let found = programs.iter().find(|program| program["name"] == name).context(name.to_owned())?;
    bpftool(&["prog", "show", "id", &found["id"].to_string()])
}

fn bpftool(args: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&must(Command::new("bpftool").arg("-j").args(args))?)?)
}

/// A connection that finds no listener, because nobody announced its namespace.
fn miss(served: &Served) -> Result<()> {
    let answers = ask_from_new_namespaces(&served.pod, 1)?;
    ensure!(answers.iter().any(|answer| answer.refused_connects >= 1), "nothing was missed: {answers:?}");
    Ok(())
}

#[test]
fn bpftool_shows_names_source_lines_and_counters() -> Result<()> {
    let served = served()?;
    served.pod.must_get_credentials()?;
    let shown = program(&served, "connect4")?;
    let id = shown["id"].to_string();
    let code = must(Command::new("bpftool").args(["prog", "dump", "xlated", "id", &id, "linum"]))?;
    for expected in ["connect.rs line_num:", "target.rs line_num:", "maps.rs line_num:"] {
        ensure!(code.contains(expected), "no {expected} in\n{code}");
    }
    let maps = shown["map_ids"].as_array().context("it has maps")?;
    let mut names = Vec::new();
    for map in maps {
        let described = bpftool(&["map", "show", "id", &map.to_string()])?;
        let name = described["name"].as_str().unwrap_or_default().to_owned();
        if name == "COUNTERS" {
            let counters = must(Command::new("bpftool").args(["map", "dump", "id", &map.to_string()]))?;
            ensure!(counters.contains("connect4_steered"), "the counters have no names:\n{counters}");
        }
        names.push(name);
    }
    for expected in ["LISTENERS4", "COUNTERS", "MISSES"] {
        ensure!(names.iter().any(|name| name == expected), "no {expected} in {names:?}");
    }
    Ok(())
}

#[test]
fn the_programs_log_is_there_at_debug_level_and_compiled_out_otherwise() -> Result<()> {
    const LINE: &str = "no listener in namespace";
    let size = |served: &Served| Ok::<_, anyhow::Error>(program(served, "connect4")?["bytes_xlated"].as_u64());
    let quiet = served()?;
    miss(&quiet)?;
    let loud = served_with(&AgentSpec::flags(&["-v", "debug"]))?;
    miss(&loud)?;
    loud.agent.wait_for_log(&[LINE], Duration::from_secs(2))?;
    ensure!(!quiet.agent.log_text().contains(LINE), "a program logs though nobody asked");
    let (quiet, loud) = (size(&quiet)?, size(&loud)?);
    ensure!(quiet.zip(loud).is_some_and(|(quiet, loud)| quiet * 2 < loud), "{quiet:?} bytes, {loud:?} with the log");
    Ok(())
}
