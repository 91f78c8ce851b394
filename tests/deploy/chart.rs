//! The chart as a whole: it is linted, and every set of values renders to documents that Kubernetes takes.
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;

use crate::tools::{KUBERNETES, deploy, documents, documents_for, file, must_run, of_kind, render, render_for};

/// A variant's name, and its documents.
pub(crate) type Rendered = (&'static str, Vec<Value>);

/// Sets of values: a name, and what helm is told.
fn variants() -> Vec<(&'static str, Vec<String>)> {
    let values = |name: &str| vec!["--values".to_owned(), file("values").join(name).display().to_string()];
    let set = |assignments: &str| vec!["--set".to_owned(), assignments.to_owned()];
    vec![
        ("nothing set", Vec::new()),
        ("restricted", set("securityMode=restricted")),
        ("AWS's placeholders", set("clusterName=EKS_CLUSTER_NAME,env.AWS_REGION=AWS_REGION_NAME")),
        ("AWS's values, cloud", values("official-cloud.yaml")),
        ("AWS's values, hybrid", values("official-hybrid.yaml")),
        ("AWS's values, hybrid on Bottlerocket", values("official-hybrid-bottlerocket.yaml")),
        ("everything", values("everything.yaml")),
    ]
}

/// Every variant as helm renders it for the newest Kubernetes; done once, valid or an error for every test that asks.
pub(crate) fn rendered() -> Result<&'static [Rendered]> {
    static RENDERED: OnceLock<Result<Vec<Rendered>>> = OnceLock::new();
    let all = RENDERED.get_or_init(|| {
        let render = |(name, variant): (&'static str, Vec<String>)| {
            Ok((name, documents(&render(&arguments(&variant))?).with_context(|| name)?))
        };
        variants().into_iter().map(render).collect()
    });
    all.as_deref().map_err(|error| anyhow!("{error:#}"))
}

/// Helm's arguments of a variant, borrowed.
fn arguments(variant: &[String]) -> Vec<&str> {
    variant.iter().map(String::as_str).collect()
}

#[test]
fn every_variant_passes_helms_linter() -> Result<()> {
    let chart = deploy("chart").display().to_string();
    for (name, variant) in variants() {
        let mut command = vec!["lint", "--strict", &chart];
        command.extend(arguments(&variant));
        let said = must_run("helm", &command)?;
        ensure!(said.contains("0 chart(s) failed"), "{name}: {said}");
    }
    Ok(())
}

#[test]
fn every_variant_is_valid_in_the_oldest_kubernetes_too() -> Result<()> {
    for (name, variant) in variants() {
        // What is left out for an old cluster is there in a new one, which every other test renders for.
        let yaml = render_for(KUBERNETES[0], &arguments(&variant))?;
        documents_for(KUBERNETES[0], &yaml).with_context(|| name)?;
    }
    Ok(())
}

#[test]
fn no_two_documents_have_one_name() -> Result<()> {
    for (name, documents) in rendered()? {
        let mut names: Vec<_> =
            documents.iter().map(|document| format!("{} {}", document["kind"], document["metadata"]["name"])).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        ensure!(names.len() == count, "{name}: {names:?}");
        let long = documents.iter().filter_map(|document| document["metadata"]["name"].as_str()).find(|n| n.len() > 63);
        ensure!(long.is_none(), "{name}: {long:?} is too long");
    }
    Ok(())
}

#[test]
fn nothing_may_call_the_kubernetes_api() -> Result<()> {
    for (name, documents) in rendered()? {
        for kind in ["Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"] {
            ensure!(of_kind(documents, kind).is_empty(), "{name} has a {kind}");
        }
        for account in of_kind(documents, "ServiceAccount") {
            ensure!(account["automountServiceAccountToken"] == false, "{name}: {account}");
        }
    }
    Ok(())
}

/// Helm prints the notes only when it installs; `--dry-run=client` does so without a cluster.
#[test]
fn what_has_no_meaning_here_is_named_at_the_installation() -> Result<()> {
    let notes = |values: &str| {
        must_run(
            "helm",
            &[
                "install",
                "agent",
                &deploy("chart").display().to_string(),
                "--dry-run=client",
                "--values",
                &file("values").join(values).display().to_string(),
            ],
        )
    };
    let said = notes("official-cloud.yaml")?;
    for expected in [
        "init.*",
        "agent.command",
        "agent.advertiseProxyPort",
        "image.region",
        "podLivenessCheck",
        "set image.override",
    ] {
        ensure!(said.contains(expected), "no word of {expected}:\n{said}");
    }
    let placeholders = ["--set", "clusterName=EKS_CLUSTER_NAME,env.AWS_REGION=AWS_REGION_NAME"];
    let chart = deploy("chart").display().to_string();
    let said = must_run("helm", &[&["install", "agent", &chart, "--dry-run=client"][..], &placeholders].concat())?;
    ensure!(said.contains("clusterName (AWS's placeholder") && said.contains("env.AWS_REGION (AWS's"), "{said}");
    let said = notes("everything.yaml")?;
    ensure!(!said.contains("ignored") && !said.contains("WARNING"), "{said}");
    Ok(())
}
