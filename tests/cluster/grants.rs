//! Pods of two service accounts become their own roles, and may what their role may.
use anyhow::{Result, ensure};
use pod_identity_tests::cluster::AWS_CLI;

use crate::world::{AUDITOR, READER, SHOP, World};

/// Fails unless the pod of this service account is the role of its name, lists its own bucket, and not the other's.
fn must_be_its_role(world: &World, name: &str, other: &str) -> Result<()> {
    let aws = |command: &str| world.cluster.shell(SHOP, name, &format!("aws {command}"));
    let arn = aws("sts get-caller-identity --query Arn --output text")?.must()?;
    ensure!(arn.contains(&format!(":assumed-role/{name}/")), "{name} is {arn}");
    let listed = aws(&format!("s3 ls s3://{name}"))?.must()?;
    ensure!(listed.contains(&format!("of-{name}.txt")), "{name} sees in its bucket: {listed}");
    let denied = aws(&format!("s3 ls s3://{other}"))?.must_fail()?;
    ensure!(denied.contains("AccessDenied"), "{name} is not denied {other}'s bucket: {denied}");
    println!("{name} is {}; s3://{name} is listed, s3://{other} denied", arn.trim());
    Ok(())
}

#[test]
fn pods_of_two_service_accounts_may_what_their_own_role_may() -> Result<()> {
    let world = World::new()?;
    // There before the agent: found at its start.
    world.cluster.idle_pod(SHOP, READER, AWS_CLI)?;
    world.helm("install", &["--set", "securityMode=restricted"])?;
    world.cluster.idle_pod(SHOP, AUDITOR, AWS_CLI)?;
    must_be_its_role(&world, READER, AUDITOR)?;
    must_be_its_role(&world, AUDITOR, READER)?;

    // Without an association.
    let stranger = "stranger";
    world.cluster.service_account(SHOP, stranger)?;
    world.cluster.idle_pod(SHOP, stranger, AWS_CLI)?;
    let refused =
        world.cluster.shell(SHOP, stranger, "aws --region eu-central-1 sts get-caller-identity")?.must_fail()?;
    ensure!(refused.contains("Unable to locate credentials"), "{refused}");
    Ok(())
}
