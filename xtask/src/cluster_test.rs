//! `cluster-test`: the agent as it is released, in a Kubernetes of one node. Not a tier of `test`: it takes a build of
//! Kubernetes.

use anyhow::{Result, ensure};
use clap::Args;

use crate::{image, kit::Kit, kubernetes, process, setup};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// With the agent's debug build, which needs no minutes to build.
    #[arg(long)]
    debug_agent: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        process::is_root(),
        "a cluster's node makes network namespaces, cgroups and containers, which needs root: run this as root"
    );
    setup::ensure()?;
    let programs = kubernetes::programs()?;
    let archive = (!options.debug_agent).then(image::archive).transpose()?;
    process::run(&mut process::cargo(&["build", "--locked", "--workspace", "--all-targets"]))?;
    let mut cargo = process::cargo(&["test", "--locked", "--workspace", "--test", "cluster"]);
    cargo.env("POD_IDENTITY_KUBERNETES", programs).envs(archive.map(|archive| ("POD_IDENTITY_IMAGE", archive)));
    for kit in Kit::all()? {
        let (variable, directory) = kit.variable();
        cargo.env(variable, directory);
    }
    // A cluster is a busy machine to whatever runs beside it; what the tests show is worth reading.
    cargo.args(["--", "--test-threads=1", "--nocapture"]).args(&options.filter);
    process::run(&mut cargo)
}
