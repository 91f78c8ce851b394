//! `helm test`, as it comes with the chart.
use anyhow::{Result, ensure};
use pod_identity_tests::cluster::Outcome;

use crate::world::{RELEASE, SYSTEM, World};

/// Runs it with this service account.
fn run(world: &World, service_account: &str) -> Result<Outcome> {
    world.helm("upgrade", &["--set", &format!("test.serviceAccountName={service_account}")])?;
    world.cluster.helm(&["test", RELEASE, "--namespace", SYSTEM, "--logs", "--timeout=3m"])
}

#[test]
fn it_passes_with_an_association_and_says_what_is_missing_without() -> Result<()> {
    let world = World::with_agent()?;
    let (tester, stranger) = ("tester", "stranger");
    let role = world.node.aws()?.role(tester, "nothing")?;
    world.cluster.associate(&world.node, SYSTEM, tester, &role)?;
    let passed = run(&world, tester)?.must()?;
    ensure!(passed.contains("PASSED: service account tester is arn:"), "{passed}");
    println!("{}", passed.lines().find(|line| line.starts_with("PASSED")).unwrap_or_default());

    world.cluster.service_account(SYSTEM, stranger)?;
    let failed = run(&world, stranger)?;
    ensure!(!failed.succeeded, "{failed:?}");
    // helm shows no log of a test that failed.
    let log = world.cluster.kubectl(&["--namespace", SYSTEM, "logs", &format!("{RELEASE}-test")])?;
    ensure!(log.contains("FAILED: EKS has not set this pod up: service account stranger had no association"), "{log}");
    Ok(())
}
