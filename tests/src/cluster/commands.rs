//! kubectl and helm, as an administrator of the cluster runs them.
use std::{env, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{keys::Keys, parts::program};
use crate::{node::Node, process::run_with_input};

/// Says where helm is; `cargo xtask cluster-test` sets it.
const TOOLS: &str = "POD_IDENTITY_DEPLOY_TOOLS";

/// For a command that waits for the cluster.
const TAKES: Duration = Duration::from_mins(3);

/// What a command came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Whether it succeeded.
    pub succeeded: bool,
    /// stdout.
    pub text: String,
    /// stderr.
    pub errors: String,
}

impl Outcome {
    /// Fails unless it succeeded; what it printed.
    pub fn must(self) -> Result<String> {
        ensure!(self.succeeded, "{}{}", self.text, self.errors);
        Ok(self.text)
    }

    /// Fails if it succeeded; what it complained about.
    pub fn must_fail(self) -> Result<String> {
        ensure!(!self.succeeded, "it succeeded: {}{}", self.text, self.errors);
        Ok(self.errors)
    }
}

/// The administrator's commands.
#[derive(Clone, Debug)]
pub(super) struct Commands {
    netns: PathBuf,
    home: PathBuf,
    configuration: PathBuf,
    kubectl: PathBuf,
    helm: PathBuf,
}

impl Commands {
    pub(super) fn new(node: &Node, keys: &Keys) -> Result<Self> {
        let tools =
            env::var_os(TOOLS).with_context(|| format!("{TOOLS} is not set: run `cargo xtask cluster-test`"))?;
        Ok(Self {
            netns: node.netns().path(),
            home: keys.dir.clone(),
            configuration: keys.administrator.clone(),
            kubectl: program("kubectl")?,
            helm: PathBuf::from(tools).join("bin/helm"),
        })
    }

    pub(super) fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.try_kubectl(args)?.must().with_context(|| format!("kubectl {}", args.join(" ")))
    }

    pub(super) fn try_kubectl(&self, args: &[&str]) -> Result<Outcome> {
        self.run(&self.kubectl, args, b"")
    }

    pub(super) fn apply(&self, object: &Value) -> Result<()> {
        let applied = self.run(&self.kubectl, &["apply", "--filename", "-"], object.to_string().as_bytes())?;
        applied.must().map(drop).with_context(|| format!("apply {object}"))
    }

    pub(super) fn helm(&self, args: &[&str]) -> Result<Outcome> {
        self.run(&self.helm, args, b"")
    }

    fn run(&self, program: &PathBuf, args: &[&str], input: &[u8]) -> Result<Outcome> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg("--").arg(program).args(args);
        // No settings and no proxies of this machine's own.
        command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
        command.env("HOME", &self.home).env("KUBECONFIG", &self.configuration);
        let output = run_with_input(&mut command, input, TAKES)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Outcome { succeeded: output.status.success(), text: text(output.stdout), errors: text(output.stderr) })
    }
}
