//! The dashboard: its panels ask for metrics that exist, in expressions that Prometheus takes, and leave none out.
use std::{collections::BTreeSet, fmt::Write as _, fs};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::host;
use serde_json::Value;

use crate::{
    metrics,
    tools::{deploy, documents, must_run, of_kind, render, text},
};

fn dashboard() -> Result<Value> {
    serde_json::from_str(&text(&deploy("chart/files/dashboard.json"))?).context("the dashboard is no JSON")
}

/// Panel titles with their expressions.
fn expressions(dashboard: &Value) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let field = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            found.push((field(&panel["title"]), field(&target["expr"])));
        }
    }
    ensure!(found.len() >= 20, "only {} expressions", found.len());
    Ok(found)
}

#[test]
fn panels_are_about_metrics_that_exist() -> Result<()> {
    metrics::must_exist(&text(&deploy("chart/files/dashboard.json"))?)
}

/// What is worth counting is worth looking at.
#[test]
fn every_metric_has_its_panel() -> Result<()> {
    let shown = metrics::used(&text(&deploy("chart/files/dashboard.json"))?);
    let shown: BTreeSet<_> = shown.iter().map(|name| base(name)).collect();
    let known = metrics::known(&metrics::served());
    let missing: BTreeSet<_> = known.iter().map(|name| base(name)).filter(|name| !shown.contains(name)).collect();
    ensure!(missing.is_empty(), "no panel shows {missing:?}");
    Ok(())
}

/// A histogram's own name.
pub(crate) fn base(name: &str) -> &str {
    ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

#[test]
fn prometheus_takes_every_expression() -> Result<()> {
    let mut rules = String::from("groups:\n- name: dashboard\n  rules:\n");
    for (number, (_, expression)) in expressions(&dashboard()?)?.iter().enumerate() {
        // What Grafana fills in.
        let expression = expression.replace("$__rate_interval", "5m").replace("$instance", ".*");
        ensure!(!expression.contains('$'), "{expression} has a variable that nobody fills in");
        // JSON's strings are YAML's.
        writeln!(rules, "  - record: panel:{number}\n    expr: {}", Value::from(expression))?;
    }
    let directory = host::run_dir(&host::unique_name())?;
    let file = directory.join("rules.yaml");
    let checked = fs::write(&file, rules)
        .map_err(Into::into)
        .and_then(|()| must_run("promtool", &["check", "rules", &file.display().to_string()]));
    fs::remove_dir_all(&directory)?;
    checked.map(drop)
}

#[test]
fn panels_have_ids_of_their_own_and_do_not_overlap() -> Result<()> {
    let dashboard = dashboard()?;
    let mut ids = BTreeSet::new();
    let mut places = BTreeSet::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        ensure!(ids.insert(panel["id"].as_u64()), "{} has another panel's id", panel["title"]);
        let at = |name: &str| panel["gridPos"][name].as_u64().context("no place");
        ensure!(at("x")? + at("w")? <= 24, "{} is too wide", panel["title"]);
        for x in at("x")?..at("x")? + at("w")? {
            for y in at("y")?..at("y")? + at("h")? {
                ensure!(places.insert((x, y)), "{} lies on another panel", panel["title"]);
            }
        }
    }
    Ok(())
}

#[test]
fn the_chart_ships_this_dashboard() -> Result<()> {
    let documents = documents(&render(&["--set", "clusterName=c,metrics.dashboard.enabled=true"])?)?;
    let maps = of_kind(&documents, "ConfigMap");
    ensure!(maps.len() == 1, "{} ConfigMaps", maps.len());
    let shipped = maps[0]["data"]["pod-identity-agent.json"].as_str().context("no dashboard")?;
    ensure!(serde_json::from_str::<Value>(shipped)? == dashboard()?, "it is another one");
    ensure!(maps[0]["metadata"]["labels"]["grafana_dashboard"] == "1", "Grafana does not find it");
    Ok(())
}
