//! A token in the wrong hands: who else could present it.
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::Agent,
    cgroup::Cgroup,
    client::{Client, Tally},
    link_local::LinkLocal,
    pod::{Network, Pod, PodSpec, tally_with},
    process::binary,
    token::random_hex,
};

use crate::{
    attack::{Attack, CONTROL, Expected, FOREIGN_TOKEN, NOT_A_POD, Outcome, STATIC_POD, tries},
    scene::{Scene, as_an_sdk, directly, granted, theft},
};

pub(crate) const ATTACKS: [Attack; 12] = [
    Attack {
        name: "callers::another-pod",
        attacker: "a pod",
        capability: "—",
        action: "presents another pod's valid token",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: |attack| theft(attack, &Scene::new()?, by_the_thief),
    },
    Attack {
        name: "callers::host-network-pod",
        attacker: "a host-network pod",
        capability: "—",
        action: "presents another pod's valid token",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: |attack| theft(attack, &Scene::with(|victim| victim, PodSpec::host_network)?, by_the_thief),
    },
    Attack {
        name: "callers::host-network-neighbour",
        attacker: "a host-network pod",
        capability: "—",
        action: "presents the token of another host-network pod, over the listener they share",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: |attack| theft(attack, &Scene::on_the_host_network()?, by_the_thief),
    },
    Attack {
        name: "callers::pod-with-users-of-its-own",
        attacker: "a pod with hostUsers: false",
        capability: "root in its user namespace",
        action: "presents another pod's valid token",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: |attack| {
            let scene = Scene::with(|victim| victim, |thief| thief.network(Network::OWN_USERS))?;
            theft(attack, &scene, by_the_thief)
        },
    },
    Attack {
        name: "callers::static-pod",
        attacker: "a static pod",
        capability: "—",
        action: "presents another pod's valid token",
        expected: Expected::Refused(&[STATIC_POD]),
        run: |attack| {
            let scene = Scene::with(|victim| victim, |thief| thief.uid(&random_hex(16)).no_token())?;
            let control = scene.succeeds_with_a_believer(|client| scene.thief.tally(client))?;
            let agent = scene.agent()?;
            let outcome = attack.carry_out(&agent, &[], || scene.thief.tally(&scene.stolen().tries(tries())))?;
            Ok(Outcome { control, ..outcome })
        },
    },
    Attack {
        name: "callers::after-the-victims-end",
        attacker: "a pod",
        capability: "—",
        action: "presents the token of a pod that has ended",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: after_the_victims_end,
    },
    Attack {
        name: "callers::host-process",
        attacker: "a process of the node (systemd)",
        capability: "root on the node",
        action: "calls the node's listener with a pod's valid token",
        expected: Expected::Refused(&[NOT_A_POD]),
        run: |attack| outside_of_pods(attack, on_the_node),
    },
    Attack {
        name: "callers::port-forward",
        attacker: "a process of the node (runtime)",
        capability: "may enter namespaces",
        action: "enters the victim's namespace (nsenter, port-forward), presents its token",
        expected: Expected::Refused(&[NOT_A_POD]),
        run: |attack| outside_of_pods(attack, |scene, cgroup, client| scene.victim.tally_from_cgroup(cgroup, client)),
    },
    Attack {
        name: "callers::stray-cgroup",
        attacker: "a process below kubepods",
        capability: "root on the node",
        action: "enters the victim's namespace from a cgroup that is no pod's, presents its token",
        expected: Expected::Refused(&[NOT_A_POD]),
        run: |attack| {
            let scene = Scene::new()?;
            let agent = scene.agent()?;
            let stray = scene.node.kubepods().cgroup().child("stray")?;
            let ask = |count| scene.victim.tally_from_cgroup(&stray, &scene.stolen().tries(count));
            let outcome = attack.carry_out(&agent, &[], || ask(tries()))?;
            own_way_is_granted(&scene, &agent, outcome)
        },
    },
    Attack {
        name: "callers::pod-in-the-victims-namespace",
        attacker: "a pod",
        capability: "SYS_ADMIN over namespaces",
        action: "enters the victim's network namespace, presents its token",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: |attack| {
            let scene = Scene::new()?;
            let cgroup = scene.thief.container("app")?.cgroup().clone();
            theft(attack, &scene, |scene, client| scene.victim.tally_from_cgroup(&cgroup, client))
        },
    },
    Attack {
        name: "callers::docker-in-docker",
        attacker: "a container made in a pod",
        capability: "SYS_ADMIN in the pod",
        action: "presents another pod's token from a network namespace of its own",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: |attack| nested(attack, &["--net"]),
    },
    Attack {
        name: "callers::user-namespace",
        attacker: "a process of a pod",
        capability: "—",
        action: "becomes root of a user and network namespace of its own, presents another's token",
        expected: Expected::Refused(&[FOREIGN_TOKEN]),
        run: |attack| nested(attack, &["--user", "--map-root-user", "--net"]),
    },
];

fn by_the_thief(scene: &Scene, client: &Client) -> Result<Tally> {
    scene.thief.tally(client)
}

fn after_the_victims_end(attack: &Attack) -> Result<Outcome> {
    let Scene { victim, thief, node } = Scene::new()?;
    let token = victim.token().to_owned();
    let client = |count| Client::with_token(&token).tries(count);
    let agent = node.agent()?;
    as_an_sdk(&victim)?;
    victim.remove()?;
    let outcome = attack.carry_out(&agent, &[thief.uid()], || thief.tally(&client(tries())))?;
    drop(agent);
    // EKS Auth itself does not know of the pod's end here, as AWS's learns of it with a delay.
    let _believer = LinkLocal::agent(&node)?;
    let tally = thief.tally(&client(CONTROL))?;
    let control = granted(&tally, "against an agent that believes bearers, after the victim's end")?;
    Ok(Outcome { control, ..outcome })
}

/// The agent's listener is open to every process of a namespace: what counts is where the socket was made.
fn outside_of_pods(attack: &Attack, ask: fn(&Scene, &Cgroup, &Client) -> Result<Tally>) -> Result<Outcome> {
    let scene = Scene::new()?;
    let host = scene.node.top_cgroup().child("sshd.service")?;
    let believer = scene.succeeds_with_a_believer(|client| ask(&scene, &host, client))?;
    let agent = scene.agent()?;
    let outcome = attack.carry_out(&agent, &[], || ask(&scene, &host, &directly(scene.stolen()).tries(tries())))?;
    // Aimed at the target address it is not steered: nobody answers.
    let unanswered = ask(&scene, &host, &scene.stolen().connect_once().timeout_ms(300).tries(2))?;
    ensure!(unanswered.errors.values().sum::<u64>() == 2, "somebody answered a host process: {unanswered:?}");
    let outcome = own_way_is_granted(&scene, &agent, outcome)?;
    Ok(Outcome { control: format!("{believer}; {}", outcome.control), ..outcome })
}

fn on_the_node(scene: &Scene, cgroup: &Cgroup, client: &Client) -> Result<Tally> {
    let mut command = Command::new(binary("pod-exec")?);
    command.arg("--from").arg(scene.node.netns().path()).arg("--cgroup").arg(cgroup.dir()).arg("--");
    tally_with(&mut command, client)
}

fn own_way_is_granted(scene: &Scene, agent: &Agent, outcome: Outcome) -> Result<Outcome> {
    let tally = scene.victim.tally(&directly(scene.stolen()).tries(CONTROL))?;
    crate::scene::victim_is_served(scene, agent)?;
    Ok(Outcome { control: granted(&tally, "the pod itself by the same way")?, ..outcome })
}

fn in_new_namespaces(pod: &Pod, which: &[&str], client: &Client) -> Result<Tally> {
    let mut command = pod.container("app")?.command("unshare")?;
    command.args(which).args(["sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]);
    tally_with(&mut command, client)
}

/// What a pod makes below itself is the pod's: its own token is good there, another's is not.
fn nested(attack: &Attack, which: &[&str]) -> Result<Outcome> {
    let scene = Scene::new()?;
    let agent = scene.agent()?;
    let ask = |client: Client| in_new_namespaces(&scene.thief, which, &client);
    as_an_sdk(&scene.thief)?;
    let own = ask(scene.own().tries(CONTROL))?;
    let control = granted(&own, "the outer pod's own token from there")?;
    let key = as_an_sdk(&scene.thief)?.access_key_id();
    ensure!(own.access_keys.first() == Some(&key), "other credentials than the outer pod's");
    let outcome = attack.carry_out(&agent, &[scene.thief.uid()], || ask(scene.stolen().tries(tries())))?;
    as_an_sdk(&scene.victim).context("the victim")?;
    Ok(Outcome { control, ..outcome })
}
