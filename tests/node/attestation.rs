//! Who gets which credentials: the kernel says which pod calls. What attackers try instead is the attack suite's.
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::AgentSpec,
    cgroup::{Cgroup, Driver, Qos},
    client::{Answer, Client},
    node::{Node, NodeSpec},
    pod::{Network, Pod, PodSpec},
    process::binary,
    token::{Claims, Issuer, random_hex, random_uid},
};

use crate::common::{must_be_granted, must_refuse, refusal, served, served_with};

const FOREIGN: &str = "Access Denied. The service account token belongs to another pod";

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
fn pods_of_the_host_network_are_told_apart() -> Result<()> {
    let served = served()?;
    let (first, second) = (
        served.node.pod_with(PodSpec::named("app").host_network())?,
        served.node.pod_with(PodSpec::named("app").host_network())?,
    );
    let keys = (first.must_get_credentials()?.access_key_id(), second.must_get_credentials()?.access_key_id());
    ensure!(keys.0 != keys.1, "two pods share credentials");
    Ok(())
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
    must_refuse(&served.agent, expected, || pod.ask_once(&Client::new())).map(|_| ())
}

/// A cgroup below a container's own, as a pod with a writable cgroup mount can make it.
fn inside(pod: &Pod, path: &str) -> Result<Cgroup> {
    Cgroup::create(pod.container("app")?.cgroup().dir().join(path))
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
