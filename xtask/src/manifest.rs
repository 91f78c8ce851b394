//! `manifest`: the chart as a plain manifest, for those without helm. The deploy tier fails when it is not current.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::{kit::Kit, process, setup, workspace};

const MANIFEST: &str = "deploy/kustomize/pod-identity-agent.yaml";

pub(crate) fn run() -> Result<()> {
    setup::ensure()?;
    let helm = Kit::deploy()?.directory().join("bin/helm");
    let path = |name: &str| workspace::root().join(name).display().to_string();
    let rendered = process::output(
        &helm,
        &[
            "template",
            "pod-identity-agent",
            &path("deploy/chart"),
            "--namespace=kube-system",
            "--skip-tests",
            // Not what helm was built with: the manifest is the same with the next helm.
            "--kube-version=1.35.0",
        ],
    );
    let Some(rendered) = rendered else { bail!("{} cannot render the chart", helm.display()) };
    let manifest = workspace::root().join(MANIFEST);
    fs::write(&manifest, rendered).with_context(|| format!("write {}", manifest.display()))?;
    println!("{}", manifest.display());
    Ok(())
}
