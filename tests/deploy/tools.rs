//! helm, kubectl, promtool and Kubernetes' schemas, where `cargo xtask setup` has put them.
use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::process;
use serde_json::Value;

/// Says where they are; `cargo xtask test` sets it.
const VARIABLE: &str = "POD_IDENTITY_DEPLOY_TOOLS";
/// On a machine that builds something else at the same time.
const PATIENCE: Duration = Duration::from_mins(1);

/// A file of `deploy/`.
pub(crate) fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the workspace").join("deploy").join(name)
}

/// A file of this tier.
pub(crate) fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

/// The text of a file.
pub(crate) fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// Runs helm, kubectl or promtool.
pub(crate) fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Result<Output> {
    let program = directory()?.join("bin").join(program);
    process::run(Command::new(program).args(arguments), PATIENCE)
}

/// The same, and fails with what it says.
pub(crate) fn must_run<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Result<String> {
    let output = run(program, arguments)?;
    ensure!(
        output.status.success(),
        "{program} failed ({}):\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// The oldest Kubernetes that the chart is for, and the newest that there are schemas of.
pub(crate) const KUBERNETES: [&str; 2] = ["1.25", "1.35"];

/// The chart as these arguments (`--set`, `--values`) make it for the newest Kubernetes.
pub(crate) fn render(arguments: &[&str]) -> Result<String> {
    render_for(KUBERNETES[1], arguments)
}

/// The same for one Kubernetes.
pub(crate) fn render_for(version: &str, arguments: &[&str]) -> Result<String> {
    let version = format!("{version}.0");
    must_run("helm", &template(&[arguments, &["--kube-version", &version]].concat()))
}

/// The command line of [`render`].
pub(crate) fn template(arguments: &[&str]) -> Vec<String> {
    let chart = deploy("chart").display().to_string();
    let fixed = ["template", "pod-identity-agent", &chart, "--namespace", "kube-system"];
    fixed.into_iter().chain(arguments.iter().copied()).map(str::to_owned).collect()
}

/// The documents of a manifest, checked against the schemas of the newest Kubernetes. Kinds of the Prometheus operator
/// have none there.
pub(crate) fn documents(yaml: &str) -> Result<Vec<Value>> {
    documents_for(KUBERNETES[1], yaml)
}

/// The same for one Kubernetes.
pub(crate) fn documents_for(version: &str, yaml: &str) -> Result<Vec<Value>> {
    let mut python = Command::new(directory()?.join("venv/bin/python3"));
    python.arg(file("documents.py")).arg(version);
    let output = process::run_with_input(&mut python, yaml.as_bytes(), PATIENCE)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("documents.py prints no JSON")
}

/// The documents of one kind.
pub(crate) fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Vec<&'a Value> {
    documents.iter().filter(|document| document["kind"] == kind).collect()
}

fn directory() -> Result<PathBuf> {
    let directory = match env::var_os(VARIABLE) {
        Some(directory) => PathBuf::from(directory),
        None => xtask_says()?,
    };
    for program in ["bin/helm", "bin/kubectl", "bin/promtool", "venv/bin/python3"] {
        let program = directory.join(program);
        ensure!(program.exists(), "{} is not there: run `cargo xtask setup` first", program.display());
    }
    Ok(directory)
}

fn xtask_says() -> Result<PathBuf> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["xtask", "deploy-tools-dir"]);
    let output = process::run(&mut cargo, Duration::from_mins(2))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}
