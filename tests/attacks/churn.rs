//! Identities that come and go: what was a pod's a moment ago must not be another's now.
use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    cgroup::Cgroup,
    client::{Client, Tally},
    host,
    process::binary,
};

use crate::{
    attack::{Attack, Expected, FOREIGN_TOKEN, Outcome, tries},
    scene::Scene,
};

/// The pid that the kernel gave last; root may say so.
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

pub(crate) const ATTACKS: [Attack; 2] = [
    Attack {
        name: "churn::reused-pids",
        attacker: "a pod",
        capability: "—",
        action: "presents tokens of pods that come and go, from processes with the pids of theirs",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: reused_pids,
    },
    Attack {
        name: "churn::cgroup-ids",
        attacker: "a pod",
        capability: "writes its cgroup",
        action: "makes and removes cgroups until one has the id of another's that has gone",
        expected: Expected::Nothing("the kernel never gives an id twice"),
        run: cgroup_ids,
    },
];

fn reused_pids(attack: &Attack) -> Result<Outcome> {
    let (rounds, each) = if host::full_size() { (200, 100) } else { (20, 50) };
    let scene = Scene::new()?;
    let agent = scene.agent()?;
    let (mut ids, mut reused) = (BTreeSet::new(), 0);
    let outcome = attack.carry_out(&agent, &[scene.thief.uid()], || {
        let mut tally = Tally::default();
        for _ in 0..rounds {
            // Of the one service account, so that nothing but its end tells it from the next.
            let victim = scene.node.pod("short-lived")?;
            let container = victim.container("app")?;
            let (pid, token) = (container.pid(), victim.token().to_owned());
            ensure!(
                ids.insert(container.cgroup().id()?) && ids.insert(victim.cgroup().id()?),
                "a cgroup id came twice"
            );
            tally.merge(scene.thief.tally(&Client::with_token(&token).tries(each / 2))?);
            victim.remove()?;
            let (again, got) = with_pid(&scene, pid, &Client::with_token(&token).tries(each / 2))?;
            reused += u64::from(got == pid);
            tally.merge(again);
        }
        Ok(tally)
    })?;
    // Other processes of the machine may be quicker, now and then.
    ensure!(reused > 0, "no pid was reused: this row shows nothing");
    let control =
        format!("{reused} of {rounds} victims' pids were reused by the thief; {} cgroup ids, none twice", ids.len());
    Ok(Outcome { control, ..outcome })
}

/// Runs a client of the thief's with this pid, if nobody else takes it first.
fn with_pid(scene: &Scene, pid: u32, client: &Client) -> Result<(Tally, u32)> {
    let mut command: Command = scene.thief.container("app")?.command_line()?;
    let (args, _) = client.invocation();
    command.arg(binary("pod-client")?).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
    fs::write(LAST_PID, (pid - 1).to_string()).with_context(|| format!("cannot write {LAST_PID}"))?;
    let mut child = command.spawn()?;
    let got = child.id();
    let mut printed = String::new();
    child.stdout.take().context("it is piped")?.read_to_string(&mut printed)?;
    ensure!(child.wait()?.success(), "the client failed");
    Ok((serde_json::from_str(&printed)?, got))
}

fn cgroup_ids(_: &Attack) -> Result<Outcome> {
    let scene = Scene::new()?;
    let below = scene.thief.container("app")?.cgroup().dir().join("x");
    let (count, mut ids) = (tries(), BTreeSet::new());
    let victims = scene.victim.container("app")?.cgroup().id()?;
    for _ in 0..count {
        let cgroup = Cgroup::create(below.clone())?;
        ids.insert(cgroup.id()?);
        cgroup.remove()?;
    }
    let control = format!("{} different ids for the one path, from {:?} to {:?}", ids.len(), ids.first(), ids.last());
    ensure!(!ids.contains(&victims));
    Ok(Outcome {
        refused: ids.len() as u64,
        total: count,
        counted: "— (nothing is asked)".to_owned(),
        control,
        ..Outcome::default()
    })
}
