//! Cgroups named to look like another pod's: a pod with a writable cgroup mount makes them below its own.
use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    cgroup::{Cgroup, Driver},
    client::Tally,
    node::NodeSpec,
    pod::Pod,
    token::random_hex,
};

use crate::{
    attack::{Attack, Expected, FOREIGN_TOKEN, Outcome, POD_GONE, tries},
    scene::{Scene, as_an_sdk, granted},
};

pub(crate) const ATTACKS: [Attack; 3] = [
    Attack {
        name: "cgroups::names-of-the-systemd-driver",
        attacker: "a pod",
        capability: "writes its cgroup",
        action: "calls from cgroups below its own that are named as the victim's, presents its token",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: |attack| named_like_the_victim(attack, Driver::Systemd),
    },
    Attack {
        name: "cgroups::names-of-the-cgroupfs-driver",
        attacker: "a pod",
        capability: "writes its cgroup",
        action: "the same where the kubelet uses the cgroupfs driver",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: |attack| named_like_the_victim(attack, Driver::Cgroupfs),
    },
    Attack {
        name: "cgroups::named-deleted",
        attacker: "a pod",
        capability: "writes its cgroup",
        action: "calls from “x (deleted)”, the kernel's name for a removed cgroup",
        expected: Expected::Refused(&[POD_GONE]),
        run: named_deleted,
    },
];

/// A cgroup below a container's own.
fn inside(pod: &Pod, path: &str) -> Result<Cgroup> {
    Cgroup::create(pod.container("app")?.cgroup().dir().join(path))
}

fn names(victim: &str) -> [String; 8] {
    let (id, dashed) = (random_hex(32), victim.replace('-', "_"));
    [
        format!("kubepods.slice/kubepods-pod{dashed}.slice/cri-containerd-{id}.scope"),
        format!(
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{dashed}.slice/cri-containerd-{id}.scope"
        ),
        format!("kubepods/burstable/pod{victim}/{id}"),
        format!("kubepods-burstable-pod{dashed}.slice"),
        format!("pod{victim}"),
        format!("burstable/pod{victim}"),
        format!("cri-containerd-{id}.scope"),
        "..x".to_owned(),
    ]
}

fn named_like_the_victim(attack: &Attack, driver: Driver) -> Result<Outcome> {
    let scene = Scene::on(NodeSpec { driver, ..NodeSpec::default() }, |victim| victim, |thief| thief)?;
    let agent = scene.agent()?;
    let own_key = as_an_sdk(&scene.thief)?.access_key_id();
    let names = names(scene.victim.uid());
    let mut own = Tally::default();
    let outcome = attack.carry_out(&agent, &[scene.thief.uid()], || {
        let mut stolen = Tally::default();
        for name in &names {
            let cgroup = inside(&scene.thief, name)?;
            let count = tries() / names.len() as u64;
            stolen.merge(scene.thief.tally_from_cgroup(&cgroup, &scene.stolen().tries(count)).context(name.clone())?);
        }
        Ok(stolen)
    })?;
    for name in &names {
        own.merge(scene.thief.tally_from_cgroup(&inside(&scene.thief, name)?, &scene.own().tries(1))?);
    }
    ensure!(own.access_keys.contains(&own_key), "other credentials than the pod's own");
    let control = granted(&own, "its own token from each of them")?;
    Ok(Outcome { control, ..outcome })
}

/// Fails closed: whoever takes such a name is nobody, with whatever token.
fn named_deleted(attack: &Attack) -> Result<Outcome> {
    let scene = Scene::new()?;
    let agent = scene.agent()?;
    let removed = inside(&scene.thief, "x (deleted)")?;
    let outcome = attack.carry_out(&agent, &[], || {
        let mut tally = scene.thief.tally_from_cgroup(&removed, &scene.stolen().tries(tries() / 2))?;
        tally.merge(scene.thief.tally_from_cgroup(&removed, &scene.own().tries(tries() / 2))?);
        Ok(tally)
    })?;
    as_an_sdk(&scene.thief)?;
    let control = granted(&scene.thief.tally(&scene.own().tries(1))?, "its own token from the cgroup above")?;
    Ok(Outcome { control, ..outcome })
}
