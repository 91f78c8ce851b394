//! The agent's commands for people, run beside a test's agent.
use std::{
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::process::binary;

/// One command's outcome.
#[derive(Debug)]
pub struct Told {
    /// stdout, then stderr.
    pub text: String,
    /// Exit code.
    pub code: Option<i32>,
}

/// Runs a command of the agent whose admin socket is in `run_dir`.
pub fn tell(run_dir: &Path, args: &[&str]) -> Result<Told> {
    let mut command = Command::new(binary("pod-identity-agent")?);
    told(command.args(args).arg("--run-dir").arg(run_dir))
}

/// Runs a command to its end.
pub fn told(command: &mut Command) -> Result<Told> {
    let Output { status, stdout, stderr } = command.output().context("the command does not start")?;
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    Ok(Told { text, code: status.code() })
}

/// What `explain` says, step by step.
#[derive(Debug)]
pub struct Explained {
    /// The whole answer.
    pub json: Value,
    /// Exit code.
    pub code: Option<i32>,
}

impl Explained {
    /// Asks about a pod.
    pub fn ask(run_dir: &Path, pod: &str) -> Result<Self> {
        let told = tell(run_dir, &["explain", pod, "--output", "json"])?;
        let json = serde_json::from_str(&told.text).with_context(|| told.text.clone())?;
        Ok(Self { json, code: told.code })
    }

    /// A step's verdict.
    pub fn verdict(&self, step: &str) -> Result<&str> {
        self.step(step)?["verdict"].as_str().context("verdict")
    }

    /// Fails unless this step is a problem, and says and advises this; the exit code has to say it too.
    pub fn must_blame(&self, step: &str, finding: &str, remedy: &str) -> Result<()> {
        let found = self.step(step)?;
        let has = |member: &str, part: &str| found[member].as_str().is_some_and(|text| text.contains(part));
        ensure!(found["verdict"] == "problem" && has("finding", finding) && has("remedy", remedy), "{:#}", self.json);
        ensure!(self.code == Some(1) && self.json["good"] == false, "{:#}", self.json);
        Ok(())
    }

    /// The same, and nothing else may be a problem.
    pub fn must_blame_only(&self, step: &str, finding: &str, remedy: &str) -> Result<()> {
        self.must_blame(step, finding, remedy)?;
        let steps = self.json["steps"].as_array().context("steps")?;
        let others = steps.iter().filter(|other| other["step"] != step && other["verdict"] == "problem").count();
        ensure!(others == 0, "{:#}", self.json);
        Ok(())
    }

    fn step(&self, name: &str) -> Result<&Value> {
        let steps = self.json["steps"].as_array().context("steps")?;
        steps.iter().find(|step| step["step"] == name).with_context(|| format!("no step {name}: {:#}", self.json))
    }
}
