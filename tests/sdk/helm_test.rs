//! `helm test`: the chart's script says that a pod gets its role exactly when it does.
use std::{path::Path, process::Output, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    aws::application::{Application, Family},
    process::run,
};

use crate::world::{READER, World};

/// For the AWS command line, which tries again for seconds before it gives up.
const SPEAKS: Duration = Duration::from_mins(1);

/// Runs the script as its container does, with other variables; an empty value removes one.
fn script(application: &Application<'_>, variables: &[(&str, &str)]) -> Result<Output> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart/files/grant-test.sh");
    let script = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut command = application.command("/bin/sh".as_ref())?;
    for (name, value) in variables {
        if value.is_empty() {
            command.env_remove(name)
        } else {
            command.env(name, value)
        };
    }
    run(command.args(["-c", &script]), SPEAKS)
}

fn must_fail(output: &Output, reason: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("FAILED: ") && said.contains(reason), "{output:?}");
    ensure!(!String::from_utf8_lossy(&output.stdout).contains("PASSED"), "{output:?}");
    Ok(())
}

#[test]
fn it_passes_when_the_pod_becomes_its_role_and_not_when_it_does_not() -> Result<()> {
    let world = World::new()?;
    let aws = Some(world.node.aws()?);
    let pod = world.pod(READER)?;
    for family in [Family::V4, Family::V6] {
        let application = Application::new(&pod, family, aws)?;
        // What else is in the pod's environment must neither help nor harm.
        let output = script(
            &application,
            &[("TEST_SERVICE_ACCOUNT", READER), ("AWS_ACCESS_KEY_ID", "x"), ("AWS_PROFILE", "x")],
        )?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() && said.contains("PASSED: service account reader is arn:"), "{output:?}");
        ensure!(said.contains(":assumed-role/reader/"), "{output:?}");
    }

    let application = Application::new(&pod, Family::V4, aws)?;
    must_fail(&script(&application, &[])?, "set test.serviceAccountName")?;
    let of_another_kind = [("TEST_SERVICE_ACCOUNT", READER), ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")];
    must_fail(&script(&application, &of_another_kind)?, "had no association when the pod was made")?;

    let stranger = world.pod("stranger")?;
    let application = Application::new(&stranger, Family::V4, aws)?;
    must_fail(&script(&application, &[("TEST_SERVICE_ACCOUNT", "stranger")])?, "no credentials")
}
