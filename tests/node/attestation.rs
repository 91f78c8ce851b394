//! Who gets which credentials: the kernel says which pod calls, and a token of another pod changes nothing.
use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::AgentSpec,
    cgroup::{Cgroup, Driver, Qos},
    client::{Answer, Client},
    node::{Node, NodeSpec},
    pod::{Network, Pod, PodSpec, ask_with},
    process::binary,
    token::{Claims, Issuer, random_hex, random_uid},
};

use crate::common::{must_be_granted, must_be_refused, must_refuse, refusal, served, served_with};

const FOREIGN: &str = "Access Denied. The service account token belongs to another pod";

/// Where the agent listens in a namespace whose ports are all free.
const LISTENER: &str = "127.0.0.1:706";

fn one(answers: Result<Vec<Answer>>) -> Result<Answer> {
    answers?.pop().context("the client printed nothing")
}

#[test]
fn each_pod_gets_its_own_credentials() -> Result<()> {
    let served = served()?;
    // Of the same service account: credentials carry the pod's name all the same.
    let other = served.node.pod("app")?;
    let (first, second) = (served.pod.must_get_credentials()?, other.must_get_credentials()?);
    ensure!(first.access_key_id() != second.access_key_id());
    ensure!(served.pod.must_get_credentials()?.access_key_id() == first.access_key_id());
    let log = served.agent.wait_for_log(&[other.uid(), "granted"], Duration::from_secs(2))?;
    ensure!(log.contains(other.container("app")?.id()), "the log does not name the container: {log}");
    Ok(())
}

#[test]
fn another_pods_valid_token_is_refused_counted_and_logged() -> Result<()> {
    let served = served()?;
    let thief = served.node.pod("thief")?;
    thief.must_get_credentials()?;
    // Whether the owner has used it or not.
    for _ in 0..2 {
        let client = Client::with_token(served.pod.token());
        let answer = must_refuse(&served.agent, refusal(403, "foreign_token", FOREIGN), || thief.ask_once(&client))?;
        for uid in [served.pod.uid(), thief.uid()] {
            ensure!(!answer.body.contains(uid), "the refusal names a pod: {answer:?}");
        }
        served.pod.must_get_credentials()?;
    }
    ensure!((served.agent.metric("pod_identity_impersonation_attempts_total")? - 2.0).abs() < 0.1);
    served.agent.wait_for_log(&["foreign_token", thief.uid()], Duration::from_secs(2))?;
    ensure!(served.node.eks_auth().calls_for(served.pod.uid())? == 1, "a stolen token reached EKS Auth");
    Ok(())
}

#[test]
fn an_answer_that_the_kernel_never_gave_is_not_believed() -> Result<()> {
    let served = served()?;
    let thief = served.node.pod("thief")?;
    let cgroup_id = served.pod.container("app")?.cgroup().id()?.to_string();
    for (attempt, port) in [45_001, 45_002, 45_003].into_iter().enumerate() {
        let client = Client::with_token(served.pod.token())
            .to(LISTENER)
            .host("169.254.170.23")
            .mode("forged-answer")
            .arg("--bind", &format!("127.0.0.1:{port}"))
            .arg("--cgroup-id", &cgroup_id);
        must_refuse(&served.agent, refusal(403, "foreign_token", FOREIGN), || thief.ask_once(&client))
            .with_context(|| format!("attempt {attempt}"))?;
    }
    // And nobody is left with somebody else's answer.
    thief.must_get_credentials()?;
    served.pod.must_get_credentials().map(|_| ())
}

#[test]
fn pods_of_the_host_network_are_told_apart() -> Result<()> {
    let served = served()?;
    let (first, second) = (
        served.node.pod_with(PodSpec::named("app").host_network())?,
        served.node.pod_with(PodSpec::named("app").host_network())?,
    );
    let keys = (first.must_get_credentials()?.access_key_id(), second.must_get_credentials()?.access_key_id());
    ensure!(keys.0 != keys.1, "two pods share credentials");
    let stolen = Client::with_token(first.token());
    must_refuse(&served.agent, refusal(403, "foreign_token", FOREIGN), || second.ask_once(&stolen)).map(|_| ())
}

#[test]
fn pods_of_the_host_network_are_refused_where_the_operator_says_so() -> Result<()> {
    let served = served_with(&AgentSpec::flags(&["--host-network-pods", "refuse"]))?;
    let pod = served.node.pod_with(PodSpec::named("app").host_network())?;
    let expected = refusal(403, "host_network_pod", "Host-network pods are not served");
    must_refuse(&served.agent, expected, || pod.credentials())?;
    served.pod.must_get_credentials().map(|_| ())
}

#[test]
fn every_container_of_a_pod_gets_the_pods_credentials() -> Result<()> {
    let mut served = served()?;
    let key = served.pod.must_get_credentials()?.access_key_id();
    for name in ["init", "sidecar", "ephemeral"] {
        served.pod.start_container(name)?;
        let answer = one(served.pod.ask_in(name, &Client::with_token(served.pod.token())))?;
        ensure!(answer.access_key_id() == key, "{name}: {answer:?}");
        served.pod.stop_container(name)?;
    }
    // A container that crashed starts anew in the sandbox that stayed.
    served.pod.stop_container("app")?;
    served.pod.start_container("app")?;
    ensure!(served.pod.must_get_credentials()?.access_key_id() == key);
    ensure!(
        served.node.eks_auth().calls_for(served.pod.uid())? == 1,
        "a container's restart is no reason to ask again"
    );
    Ok(())
}

#[test]
fn a_pod_with_users_of_its_own_is_served() -> Result<()> {
    let served = served()?;
    let pod = served.node.pod_with(PodSpec::named("app").network(Network::OWN_USERS))?;
    pod.must_get_credentials()?;
    // And a process that makes namespaces of its own in an ordinary pod is still that pod's.
    let client = binary("pod-client")?;
    let script = format!(
        "ip link set lo up && {} --connect-within-ms=3000 --header='Authorization: {}'",
        client.display(),
        served.pod.token()
    );
    let output = served.pod.exec("unshare", &["--user", "--map-root-user", "--net", "sh", "-c", &script])?;
    let answer: Answer = serde_json::from_slice(&output.stdout)?;
    must_be_granted(&answer)
}

#[test]
fn static_pods_are_refused() -> Result<()> {
    let served = served()?;
    let pod = served.node.pod_with(PodSpec::named("etcd").uid(&random_hex(16)).no_token())?;
    let expected = refusal(403, "static_pod", "Static pods have no service account");
    must_refuse(&served.agent, expected, || pod.ask_once(&Client::new()))?;
    // Nor does a token help.
    let stolen = Client::with_token(served.pod.token());
    must_refuse(&served.agent, expected, || pod.ask_once(&stolen)).map(|_| ())
}

#[test]
fn processes_outside_of_pods_are_refused() -> Result<()> {
    let served = served()?;
    let host = served.node.top_cgroup().child("sshd.service")?;
    let client = Client::with_token(served.pod.token()).to(LISTENER).host("169.254.170.23");
    let expected = refusal(403, "not_a_pod", "not in a pod of this node");
    // In the pod's namespace, as a port-forward of the runtime is, and in the node's.
    must_refuse(&served.agent, expected, || one(served.pod.ask_from_cgroup(&host, &client)))?;
    let mut on_node = Command::new(binary("pod-exec")?);
    on_node.arg("--from").arg(served.node.netns().path()).arg("--cgroup").arg(host.dir()).arg("--");
    must_refuse(&served.agent, expected, || one(ask_with(&mut on_node, &client)))?;
    // Directly below kubepods, where only the kubelet puts anything.
    let stray = served.node.kubepods().cgroup().child("stray")?;
    must_refuse(&served.agent, expected, || one(served.pod.ask_from_cgroup(&stray, &client)))?;
    served.agent.wait_for_log(&["not_a_pod"], Duration::from_secs(2))?;
    // The control: the pod itself, by the same way.
    must_be_granted(&served.pod.ask_once(&client)?)
}

#[test]
fn host_processes_are_not_steered() -> Result<()> {
    let served = served()?;
    let host = served.node.top_cgroup().child("sshd.service")?;
    let client = Client::with_token(served.pod.token()).connect_once().timeout_ms(1000);
    let answer = one(served.pod.ask_from_cgroup(&host, &client))?;
    ensure!(answer.status.is_none(), "somebody answered a host process: {answer:?}");
    Ok(())
}

#[test]
fn a_pod_may_call_the_listener_directly_and_is_still_itself() -> Result<()> {
    let served = served()?;
    let thief = served.node.pod("thief")?;
    for (to, bind) in [(LISTENER, None), (LISTENER, Some("127.1.0.7:0")), ("[::1]:706", None)] {
        let mut client = Client::with_token(thief.token()).to(to).host("169.254.170.23");
        let mut stolen = Client::with_token(served.pod.token()).to(to).host("169.254.170.23");
        if let Some(address) = bind {
            client = client.mode("bound").arg("--bind", address);
            stolen = stolen.mode("bound").arg("--bind", address);
        }
        must_be_granted(&thief.ask_once(&client)?)?;
        must_refuse(&served.agent, refusal(403, "foreign_token", FOREIGN), || thief.ask_once(&stolen))?;
    }
    Ok(())
}

/// A cgroup below a container's own, as a pod with a writable cgroup mount can make it.
fn inside(pod: &Pod, path: &str) -> Result<Cgroup> {
    Cgroup::create(pod.container("app")?.cgroup().dir().join(path))
}

#[test]
fn cgroup_names_that_a_pod_makes_up_change_nothing() -> Result<()> {
    let served = served()?;
    let (victim, id) = (served.pod.uid(), random_hex(32));
    let thief = served.node.pod("thief")?;
    let own = thief.must_get_credentials()?.access_key_id();
    let dashed = victim.replace('-', "_");
    for path in [
        format!("kubepods.slice/kubepods-pod{dashed}.slice/cri-containerd-{id}.scope"),
        format!(
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{dashed}.slice/cri-containerd-{id}.scope"
        ),
        format!("kubepods/burstable/pod{victim}/{id}"),
        format!("kubepods-burstable-pod{dashed}.slice"),
        format!("pod{victim}"),
        format!("cri-containerd-{id}.scope"),
        "..x".to_owned(),
    ] {
        let cgroup = inside(&thief, &path)?;
        let mine = one(thief.ask_from_cgroup(&cgroup, &Client::with_token(thief.token())))?;
        ensure!(mine.access_key_id() == own, "{path}: {mine:?}");
        let stolen = Client::with_token(served.pod.token());
        let ask = || one(thief.ask_from_cgroup(&cgroup, &stolen));
        must_refuse(&served.agent, refusal(403, "foreign_token", FOREIGN), ask).context(path)?;
    }
    // What the kernel appends to a removed cgroup's path: whoever takes such a name is refused, as nobody.
    let removed = inside(&thief, "x (deleted)")?;
    for token in [thief.token(), served.pod.token()] {
        let ask = || one(thief.ask_from_cgroup(&removed, &Client::with_token(token)));
        must_refuse(&served.agent, refusal(403, "pod_gone", "The calling pod has ended"), ask)?;
    }
    Ok(())
}

#[test]
fn pods_of_a_cluster_inside_a_pod_are_the_outer_pods() -> Result<()> {
    let served = served()?;
    let inner = inside(
        &served.pod,
        &format!(
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{}.slice/cri-containerd-{}.scope",
            random_uid().replace('-', "_"),
            random_hex(32)
        ),
    )?;
    must_be_granted(&one(served.pod.ask_from_cgroup(&inner, &Client::with_token(served.pod.token())))?)?;
    // An inner pod's own token, should its cluster's issuer be the same, is another pod's.
    let claims = Claims::of(&PodSpec::named("inner").subject);
    let token = Issuer::of_this_process()?.sign(&claims)?;
    let ask = || one(served.pod.ask_from_cgroup(&inner, &Client::with_token(&token)));
    must_refuse(&served.agent, refusal(403, "foreign_token", FOREIGN), ask).map(|_| ())
}

/// Ways in which runtimes name a container's cgroup, and what may lie below it.
fn container_forms(driver: Driver) -> &'static [&'static str] {
    match driver {
        Driver::Systemd => &[
            "",
            "cri-containerd-C.scope",
            "crio-C.scope",
            "crio-C.scope/container",
            "crio-conmon-C.scope",
            "docker-C.scope",
            "libpod-C.scope",
            "cri-containerd-C.scope/init.scope",
            "cri-containerd-C.scope/system.slice/foo.service",
        ],
        Driver::Cgroupfs => &["", "C", "crio-C", "crio-conmon-C", "C/init.scope", "C/system.slice/foo.service"],
    }
}

#[test]
fn every_form_of_cgroup_path_leads_to_its_pod() -> Result<()> {
    let mut forms = 0;
    for (driver, parents) in [
        (Driver::Systemd, vec![]),
        (Driver::Systemd, vec!["kubelet"]),
        (Driver::Cgroupfs, vec![]),
        (Driver::Cgroupfs, vec!["kubelet"]),
    ] {
        let node = Node::with(NodeSpec { driver, parents, ..NodeSpec::default() })?;
        let _agent = node.agent()?;
        node.eks_auth().associate("default", "app", "app")?;
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let pod = node.pod_with(PodSpec::named("app").qos(qos))?;
            let key = pod.must_get_credentials()?.access_key_id();
            for form in container_forms(driver) {
                let path = pod.cgroup().dir().join(form.replace('C', &random_hex(32)));
                let cgroup = Cgroup::create(path.clone())?;
                let answer = one(pod.ask_from_cgroup(&cgroup, &Client::with_token(pod.token())))?;
                ensure!(answer.access_key_id() == key, "{}: {answer:?}", path.display());
                forms += 1;
            }
        }
    }
    ensure!(forms >= 25, "{forms} forms only");
    Ok(())
}

#[test]
fn a_socket_belongs_to_the_pod_that_made_it() -> Result<()> {
    let served = served()?;
    let maker = served.node.pod("maker")?;
    for (token, granted) in [(maker.token(), true), (served.pod.token(), false)] {
        let unix = served.node.dir().join(format!("{}.sock", random_hex(3)));
        let path = unix.to_string_lossy().into_owned();
        let answer = std::thread::scope(|scope| {
            let client = Client::with_token(token).mode("taken-socket").arg("--unix", &path);
            let pod = &served.pod;
            let taker = scope.spawn(move || pod.ask_once(&client));
            pod_identity_tests::process::eventually("the taker to listen", Duration::from_secs(5), || {
                Ok(unix.exists().then_some(()))
            })?;
            let given = maker.ask(&Client::new().mode("give-socket").arg("--unix", &path))?;
            ensure!(given.is_empty());
            taker.join().map_err(|_| anyhow::anyhow!("the taker panicked"))?
        })?;
        if granted { must_be_granted(&answer)? } else { must_be_refused(&answer, 403, FOREIGN)? }
    }
    Ok(())
}

#[test]
fn connections_translated_into_a_pod_are_refused() -> Result<()> {
    let served = served()?;
    let (netns, address) = (served.pod.netns()?, served.pod.address()?);
    // What a pod with NET_ADMIN can do: let the outside in.
    netns.sysctl("ipv4/conf/all/route_localnet", "1")?;
    netns.sysctl("ipv4/conf/eth0/route_localnet", "1")?;
    netns.nft(&format!(
        "add table ip attack\nadd chain ip attack pre {{ type nat hook prerouting priority -100; }}\n\
         add rule ip attack pre ip daddr {address} tcp dport 9999 dnat to {LISTENER}\n"
    ))?;
    let outside = served.node.pod("outside")?;
    let client = Client::with_token(served.pod.token()).to(&format!("{address}:9999")).host("169.254.170.23");
    let expected = refusal(403, "unknown_socket", "The kernel knows no calling socket");
    must_refuse(&served.agent, expected, || outside.ask_once(&client))?;
    // From the pod itself everything is as before.
    served.pod.must_get_credentials().map(|_| ())
}

#[test]
fn connections_whose_source_was_translated_are_refused() -> Result<()> {
    let served = served()?;
    served.pod.netns()?.nft(
        "add table ip attack\nadd chain ip attack post { type nat hook postrouting priority 100; }\n\
         add rule ip attack post oif lo tcp dport 706 snat to 127.9.9.9:5555\n",
    )?;
    let expected = refusal(403, "unknown_socket", "The kernel knows no calling socket");
    must_refuse(&served.agent, expected, || served.pod.credentials()).map(|_| ())
}
