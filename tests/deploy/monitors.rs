//! How Prometheus finds the agents, whose containers declare no port: its own tool relabels what it would discover.
use std::fs;

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::host;
use serde_json::{Value, json};

use crate::tools::{documents, must_run, of_kind, render};

/// What Prometheus scrapes of a pod with this address, by the rules of the chart's `PodMonitor`.
fn scraped(pod_ip: &str) -> Result<Value> {
    let values = "clusterName=c,metrics.enabled=true,metrics.port=2799,metrics.podMonitor.enabled=true";
    let documents = documents(&render(&["--set", values])?)?;
    let monitors = of_kind(&documents, "PodMonitor");
    ensure!(monitors.len() == 1, "{} PodMonitors", monitors.len());
    let rules = monitors[0]["spec"]["podMetricsEndpoints"][0]["relabelings"].as_array().context("no rules")?;
    let config = json!({ "scrape_configs": [{
        "job_name": "agents",
        // As pods are discovered that declare no port.
        "static_configs": [{
            "targets": [pod_ip],
            "labels": { "__meta_kubernetes_pod_ip": pod_ip, "__meta_kubernetes_pod_node_name": "node-7" },
        }],
        "relabel_configs": rules.iter().map(relabel_config).collect::<Vec<_>>(),
    }]});
    let directory = host::run_dir(&host::unique_name())?;
    let file = directory.join("prometheus.yaml");
    // JSON is YAML.
    let shown = fs::write(&file, config.to_string()).map_err(Into::into).and_then(|()| {
        must_run("promtool", &["check", "service-discovery", "--timeout=1s", &file.display().to_string(), "agents"])
    });
    fs::remove_dir_all(&directory)?;
    let targets: Value = serde_json::from_str(&shown?)?;
    ensure!(targets.as_array().is_some_and(|targets| targets.len() == 1), "{targets}");
    Ok(targets[0]["labels"].clone())
}

/// The operator's spelling in Prometheus' own.
fn relabel_config(rule: &Value) -> Value {
    let mut config = json!({ "source_labels": rule["sourceLabels"], "target_label": rule["targetLabel"] });
    for field in ["regex", "replacement"] {
        if !rule[field].is_null() {
            config[field] = rule[field].clone();
        }
    }
    config
}

#[test]
fn a_pod_without_ports_is_scraped_at_the_port_for_metrics() -> Result<()> {
    for (pod_ip, address) in [("10.1.2.3", "10.1.2.3:2799"), ("2001:db8::7", "[2001:db8::7]:2799")] {
        let labels = scraped(pod_ip)?;
        ensure!(labels["__address__"] == address, "{labels}");
        ensure!(labels["node"] == "node-7" && labels["instance"] == address, "{labels}");
    }
    Ok(())
}

#[test]
fn the_service_leads_to_the_port_for_metrics_of_every_agent() -> Result<()> {
    let values = "clusterName=c,metrics.enabled=true,metrics.port=2799,metrics.serviceMonitor.enabled=true";
    let documents = documents(&render(&["--set", values])?)?;
    let (services, monitors) = (of_kind(&documents, "Service"), of_kind(&documents, "ServiceMonitor"));
    ensure!(services.len() == 1 && monitors.len() == 1, "{} Services", services.len());
    let ports = &services[0]["spec"]["ports"][0];
    ensure!(ports["targetPort"] == 2799 && services[0]["spec"]["clusterIP"] == "None", "{}", services[0]);
    ensure!(monitors[0]["spec"]["endpoints"][0]["port"] == ports["name"], "{}", monitors[0]);
    for (selected, labels) in [
        (&monitors[0]["spec"]["selector"]["matchLabels"], &services[0]["metadata"]["labels"]),
        (
            &services[0]["spec"]["selector"],
            &of_kind(&documents, "DaemonSet")[0]["spec"]["template"]["metadata"]["labels"],
        ),
    ] {
        let selected = selected.as_object().context("nothing is selected")?;
        ensure!(!selected.is_empty(), "everything is selected");
        for (name, value) in selected {
            ensure!(labels[name] == *value, "{name} is {}", labels[name]);
        }
    }
    Ok(())
}
