//! The alerts: Prometheus' own tool runs their tests, their metrics exist, each has its entry in the runbook.
use anyhow::{Result, ensure};

use crate::{
    metrics,
    tools::{deploy, documents, must_run, of_kind, render, text},
};

const RULES: &str = "chart/files/alerts.yaml";

/// The alerts' names, in their order.
fn names() -> Result<Vec<String>> {
    let rules = text(&deploy(RULES))?;
    Ok(rules.lines().filter_map(|line| line.trim_start().strip_prefix("- alert: ")).map(str::to_owned).collect())
}

#[test]
fn each_alert_fires_when_it_should_and_not_otherwise() -> Result<()> {
    must_run("promtool", &["check", "rules", &deploy(RULES).display().to_string()])?;
    must_run("promtool", &["test", "rules", &deploy("tests/alerts.yaml").display().to_string()])?;
    let tests = text(&deploy("tests/alerts.yaml"))?;
    for name in names()? {
        // Once where it fires, once where it does not.
        let places = tests.matches(&format!("alertname: {name}")).count();
        let silent = tests.matches(&format!("alertname: {name}, exp_alerts: []")).count();
        ensure!(silent >= 1 && places > silent, "{name} is tested in {places} places, {silent} of them silent");
    }
    Ok(())
}

#[test]
fn alerts_are_about_metrics_that_exist() -> Result<()> {
    metrics::must_exist(&text(&deploy(RULES))?)
}

#[test]
fn each_alert_is_in_the_runbook_and_nothing_else_is() -> Result<()> {
    let runbook = text(&deploy("RUNBOOK.md"))?;
    let headings: Vec<_> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .filter(|line| line.starts_with("PodIdentity"))
        .collect();
    ensure!(headings == names()?, "{headings:?}");
    Ok(())
}

#[test]
fn the_chart_ships_the_alerts_that_are_tested() -> Result<()> {
    let values = ["--set", "clusterName=c,metrics.enabled=true,metrics.prometheusRule.enabled=true"];
    let documents = documents(&render(&values)?)?;
    let rules = of_kind(&documents, "PrometheusRule");
    ensure!(rules.len() == 1, "{} PrometheusRules", rules.len());
    let shipped: Vec<_> = rules[0]["spec"]["groups"][0]["rules"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|rule| rule["alert"].as_str())
        .collect();
    ensure!(shipped == names()?, "{shipped:?}");
    // Prometheus' own templates have to pass through helm's.
    let summary = rules[0]["spec"]["groups"][0]["rules"][1]["annotations"]["summary"].as_str().unwrap_or_default();
    ensure!(summary.contains("{{ $labels.instance }}"), "{summary}");
    Ok(())
}
