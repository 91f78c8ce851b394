//! The plain manifest, for those without helm: it is what the chart renders, and kustomize can build on it.
use std::fs;

use anyhow::{Result, ensure};
use pod_identity_tests::host;

use crate::tools::{deploy, documents, must_run, of_kind, render, text};

#[test]
fn the_manifest_is_what_the_chart_renders() -> Result<()> {
    let rendered = render(&["--skip-tests"])?;
    let manifest = text(&deploy("kustomize/pod-identity-agent.yaml"))?;
    ensure!(
        manifest == rendered,
        "deploy/kustomize/pod-identity-agent.yaml is not current: run `cargo xtask manifest`"
    );
    documents(&manifest).map(drop)
}

#[test]
fn an_overlay_sets_the_cluster_and_the_image() -> Result<()> {
    let name = host::unique_name();
    let directory = host::run_dir(&name)?;
    let built = build(&directory);
    fs::remove_dir_all(&directory)?;
    let documents = documents(&built?)?;
    let daemonsets = of_kind(&documents, "DaemonSet");
    ensure!(daemonsets.len() == 1, "{} DaemonSets", daemonsets.len());
    let container = &daemonsets[0]["spec"]["template"]["spec"]["containers"][0];
    ensure!(container["image"] == "registry.example/pod-identity-agent:1", "{container}");
    let arguments = container["args"].as_array().and_then(|list| list.last());
    ensure!(arguments.is_some_and(|last| last == "--cluster-name=my-cluster"), "{container}");
    Ok(())
}

/// The overlay of deploy/README.md, filled in.
fn build(directory: &std::path::Path) -> Result<String> {
    let readme = text(&deploy("README.md"))?;
    let overlay = readme.split("```yaml\n# kustomization.yaml\n").nth(1).and_then(|rest| rest.split("```").next());
    let overlay = overlay.ok_or_else(|| anyhow::anyhow!("deploy/README.md has no overlay"))?;
    // kustomize takes no absolute path of a base.
    let base = format!("{}/base", directory.display());
    fs::create_dir(&base)?;
    for file in ["kustomization.yaml", "pod-identity-agent.yaml"] {
        fs::copy(deploy("kustomize").join(file), format!("{base}/{file}"))?;
    }
    fs::write(directory.join("kustomization.yaml"), overlay.replace("../deploy/kustomize", "base"))?;
    must_run("kubectl", &["kustomize", &directory.display().to_string()])
}
