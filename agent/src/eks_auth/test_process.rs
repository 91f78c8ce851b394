//! Tests that need an environment of their own: that of a process is shared by all its tests.
use std::{env, ffi::OsStr, path::Path, process::Command};

/// Set in the environment of a test that runs itself again, as a process of its own.
const CHILD: &str = "POD_IDENTITY_AGENT_TEST_CHILD";

/// Whether this is the process that has `variables` and no others. If not, runs the test `name` of `module` in such a
/// process and panics unless it passes there.
pub(super) fn is_alone_with(variables: &[(&str, &Path)], module: &str, name: &str) -> bool {
    if env::var_os(CHILD).is_some() {
        return true;
    }
    let (_, module) = module.split_once("::").unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{name}"), "--nocapture"])
        .env_clear()
        .envs(variables.iter().copied())
        // No test asks the machine's own metadata service.
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

/// A variable of this process.
pub(super) fn variable(name: impl AsRef<OsStr>) -> std::path::PathBuf {
    env::var_os(name).unwrap().into()
}
