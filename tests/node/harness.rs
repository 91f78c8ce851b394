//! The harness itself: what every other module relies on, shown without an agent.
use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpListener,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    capture::Capture,
    cgroup::{Driver, Qos},
    client::Client,
    eks_auth::{CLUSTER, EksAuth},
    http1,
    node::{Node, NodeSpec},
    pod::{Network, PodSpec},
    process::{must, run},
    sigv4::AccessKey,
    standin::control::{Effect, Rule},
    token::{Claims, Forgery, Issuer},
};
use serde_json::{Value, json};

const ENDS: Duration = Duration::from_secs(10);

#[test]
fn a_pod_has_the_cgroups_and_the_namespace_of_its_own() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod("app")?;
    let (uid, id) = (pod.uid().replace('-', "_"), pod.container("app")?.id());
    let below =
        format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice/cri-containerd-{id}.scope");
    let seen = String::from_utf8(pod.exec("cat", &["/proc/self/cgroup"])?.stdout)?;
    ensure!(seen.lines().any(|line| line.starts_with("0::") && line.ends_with(&below)), "{seen}");
    let netns = fs::metadata(format!("/proc/{}/ns/net", pod.pause()?.pid()))?.ino();
    ensure!(netns == fs::metadata(pod.netns()?.path())?.ino(), "the pause process is in another namespace");
    ensure!(netns != fs::metadata(node.netns().path())?.ino(), "the pod is in the node's namespace");
    let reached = pod.exec("ip", &["-br", "-4", "addr", "show", "eth0"])?;
    ensure!(String::from_utf8(reached.stdout)?.contains(&pod.address()?.to_string()));
    Ok(())
}

#[test]
fn both_drivers_and_nested_roots_name_cgroups_as_the_kubelet_does() -> Result<()> {
    let layouts: [(Driver, Vec<&'static str>, Qos, &str); 5] = [
        (Driver::Systemd, vec![], Qos::Guaranteed, "/kubepods.slice/kubepods-podU_.slice"),
        (
            Driver::Systemd,
            vec!["kubelet"],
            Qos::BestEffort,
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-podU_.slice",
        ),
        (Driver::Cgroupfs, vec![], Qos::Burstable, "/kubepods/burstable/podU"),
        (Driver::Cgroupfs, vec![], Qos::Guaranteed, "/kubepods/podU"),
        (Driver::Cgroupfs, vec!["kubelet"], Qos::BestEffort, "/kubelet/kubepods/besteffort/podU"),
    ];
    for (driver, parents, qos, wanted) in layouts {
        let node = Node::with(NodeSpec { driver, parents, ..NodeSpec::default() })?;
        let pod = node.pod_with(PodSpec::named("app").qos(qos))?;
        let wanted = wanted.replace("U_", &pod.uid().replace('-', "_")).replace('U', pod.uid());
        ensure!(pod.cgroup().dir().ends_with(wanted.trim_start_matches('/')), "{:?} is not {wanted}", pod.cgroup());
    }
    Ok(())
}

#[test]
fn token_volumes_propagate_and_rotate_as_the_kubelets_do() -> Result<()> {
    let node = Node::new()?;
    // Mounts as a container has them that was there before the pod.
    let mut observer = must_start(&node)?;
    let mut pod = node.pod("app")?;
    let file = pod.token_file()?;
    let seen = || fs::read_to_string(format!("/proc/{}/root{}", observer.id(), file.display()));
    ensure!(seen()? == pod.token(), "the token is not seen through the mounts of another container");
    ensure!(fs::read_link(&file)?.starts_with("..data"), "the token is not reached through ..data");
    ensure!(fs::metadata(&file)?.mode() & 0o777 == 0o644, "the token's mode is not 0644");
    let volume = pod.volume().context("no volume")?.dir().to_owned();
    ensure!(
        fs::metadata(&volume)?.dev() != fs::metadata(volume.parent().context("it has a parent")?)?.dev(),
        "the volume is no file system of its own"
    );
    let before = pod.token().to_owned();
    pod.rotate_token()?;
    ensure!(pod.token() != before && seen()? == pod.token(), "the rotated token is not seen");
    pod.remove_kubelet_dir()?;
    ensure!(seen().is_err(), "the volume is still there after its removal");
    observer.kill()?;
    observer.wait()?;
    Ok(())
}

fn must_start(node: &Node) -> Result<std::process::Child> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "slave", "--", "sleep", "30"]);
    let child = command.spawn()?;
    pod_identity_tests::process::eventually("the observer's mounts to be its own", ENDS, || {
        let comm = fs::read_to_string(format!("/proc/{}/comm", child.id()))?;
        Ok((comm.trim() == "sleep").then_some(()))
    })?;
    ensure!(node.kubelet().path().exists());
    Ok(child)
}

#[test]
fn everything_a_node_made_is_gone_after_it() -> Result<()> {
    let (cgroup, netns, dir, pod_netns);
    {
        let node = Node::new()?;
        let pod = node.pod("app")?;
        (cgroup, netns) = (node.top_cgroup().dir().to_owned(), node.netns().path());
        (dir, pod_netns) = (node.dir().to_owned(), pod.netns()?.path());
        ensure!(cgroup.exists() && netns.exists() && dir.exists() && pod_netns.exists());
    }
    ensure!(!cgroup.exists() && !netns.exists() && !dir.exists() && !pod_netns.exists());
    ensure!(!fs::read_to_string("/proc/self/mountinfo")?.contains(&*dir.to_string_lossy()), "a mount is left");
    Ok(())
}

#[test]
fn a_pod_ends_in_the_kubelets_order() -> Result<()> {
    let node = Node::new()?;
    let mut pod = node.pod("app")?;
    let (cgroup, pause) = (pod.cgroup().clone(), pod.pause()?.pid());
    pod.kill_processes()?;
    ensure!(cgroup.exists() && !std::path::Path::new(&format!("/proc/{pause}/ns/net")).exists());
    pod.stop_sandbox()?;
    ensure!(cgroup.exists(), "the pod's cgroup must outlive its containers'");
    pod.remove_cgroup()?;
    ensure!(!cgroup.exists() && pod.token_file()?.exists(), "the kubelet's directory outlives the cgroup");
    pod.remove_kubelet_dir()
}

#[test]
fn pods_of_all_kinds_reach_the_node() -> Result<()> {
    let node = Node::new()?;
    let listener = node.netns().within(|| TcpListener::bind("[::]:8080"))??;
    let server = std::thread::spawn(move || -> Result<()> {
        for _ in 0..3 {
            let (mut stream, _) = listener.accept()?;
            let mut request = [0; 512];
            ensure!(stream.read(&mut request)? > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")?;
        }
        Ok(())
    });
    let kinds = [
        (Network::default(), "10.88.1.1:8080"),
        (Network::OWN_USERS, "[fd88:2::1]:8080"),
        (Network::Host, "127.0.0.1:8080"),
    ];
    for (network, address) in kinds {
        let pod = node.pod_with(PodSpec::named("app").network(network))?;
        let answer = pod.ask_once(&Client::new().to(address))?;
        ensure!(answer.status == Some(200) && answer.body == "hi", "{network:?}: {answer:?}");
        ensure!(answer.peer.as_deref() == Some(address), "{answer:?}");
    }
    server.join().map_err(|_| anyhow::anyhow!("the server panicked"))?
}

#[test]
fn a_pods_user_namespace_is_not_the_nodes() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod_with(PodSpec::named("app").network(Network::OWN_USERS))?;
    let own = fs::read_link("/proc/self/ns/user")?;
    let seen = String::from_utf8(pod.exec("readlink", &["/proc/self/ns/user"])?.stdout)?;
    ensure!(seen.trim() != own.to_string_lossy(), "{seen}");
    Ok(())
}

#[test]
fn a_capture_sees_what_crosses_an_interface_and_on_which() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod("app")?;
    let secret = "a secret of some forty characters in all";
    let listener = node.netns().within(|| TcpListener::bind("10.88.1.1:8080"))??;
    let (on_node, in_pod) = (Capture::start(node.netns())?, Capture::start(pod.netns()?)?);
    let server = std::thread::spawn(move || listener.accept().and_then(|(mut stream, _)| stream.read(&mut [0; 512])));
    pod.ask(&Client::new().to("10.88.1.1:8080").header("X-Secret", secret).hang_up_after_ms(50))?;
    server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    let (on_node, in_pod) = (on_node.stop(), in_pod.stop());
    ensure!(in_pod.interfaces_that_carried(secret) == ["eth0"], "{:?}", in_pod.packets());
    ensure!(on_node.interfaces_that_carried(secret) == ["veth1"], "{:?}", on_node.packets());
    ensure!(on_node.interfaces_that_carried("another secret of the same length, or so").is_empty());
    Ok(())
}

/// A call to the stand-in as the agent's SDK makes it, signed by `key`.
fn call(node: &Node, key: &AccessKey, cluster: &str, token: &str) -> Result<http1::Response> {
    node.netns().within(|| EksAuth::assume_role(key, cluster, token))?
}

fn error_of(response: &http1::Response) -> (u16, String) {
    (response.status, response.header("x-amzn-errortype").unwrap_or_default().to_owned())
}

#[test]
fn eks_auth_answers_in_its_own_shape_and_never_the_same_credentials() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod("app")?;
    let first = call(&node, node.eks_auth().node_key(), CLUSTER, pod.token())?;
    ensure!(first.status == 200, "{}", first.text());
    let read: Value = serde_json::from_slice(&first.body)?;
    let at = |pointer: &str| read.pointer(pointer).cloned().unwrap_or_default();
    ensure!(at("/subject") == json!({"namespace": "default", "serviceAccount": "app"}));
    ensure!(at("/audience") == "pods.eks.amazonaws.com");
    let arn = at("/assumedRoleUser/arn");
    ensure!(
        arn.as_str().is_some_and(|arn| arn.starts_with("arn:aws:sts::123456789012:assumed-role/app/eks-")),
        "{arn}"
    );
    ensure!(at("/credentials/expiration").as_u64().is_some_and(|at| at > pod_identity_tests::time::now() + 21_000));
    let second = call(&node, node.eks_auth().node_key(), CLUSTER, pod.token())?;
    ensure!(first.body != second.body, "the same credentials twice");
    let counters = node.eks_auth().counters()?;
    ensure!(counters.calls == 2 && counters.by_pod_uid.get(pod.uid()) == Some(&2), "{counters:?}");
    ensure!(counters.by_outcome.get("ok") == Some(&2) && counters.max_concurrency == 1, "{counters:?}");
    Ok(())
}

#[test]
fn eks_auth_refuses_every_forged_token() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod("app")?;
    for forgery in Forgery::ALL {
        let token = Issuer::of_this_process()?.forge(pod.subject(), forgery)?;
        let refused = error_of(&call(&node, node.eks_auth().node_key(), CLUSTER, &token)?);
        let code = if forgery == Forgery::Expired { "ExpiredTokenException" } else { "InvalidTokenException" };
        ensure!(refused == (400, code.to_owned()), "{forgery:?}: {refused:?}");
    }
    // The control: the same subject, signed rightly.
    let token = Issuer::of_this_process()?.sign(&Claims::of(pod.subject()))?;
    ensure!(call(&node, node.eks_auth().node_key(), CLUSTER, &token)?.status == 200);
    Ok(())
}

#[test]
fn eks_auth_refuses_other_nodes_clusters_and_service_accounts() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod_with(PodSpec::named("nobody"))?;
    let right = node.eks_auth().node_key();
    let stranger = AccessKey { id: "AKIASTRANGER".into(), ..right.clone() };
    let liar = AccessKey { secret: "wrong".into(), ..right.clone() };
    let refused = |key, cluster| -> Result<_> { Ok(error_of(&call(&node, key, cluster, pod.token())?)) };
    ensure!(refused(&stranger, CLUSTER)? == (403, "UnrecognizedClientException".into()));
    ensure!(refused(&liar, CLUSTER)? == (403, "InvalidSignatureException".into()));
    ensure!(refused(right, "another")? == (404, "ResourceNotFoundException".into()));
    ensure!(refused(right, CLUSTER)? == (404, "ResourceNotFoundException".into()));
    Ok(())
}

#[test]
fn eks_auth_misbehaves_on_request_and_then_no_more() -> Result<()> {
    let node = Node::new()?;
    let (pod, other) = (node.pod("app")?, node.pod("other")?);
    let key = node.eks_auth().node_key();
    let ask = |token| call(&node, key, CLUSTER, token);
    let throttle = Effect::Error { status: 429, code: "ThrottlingException".into(), message: "Rate exceeded".into() };
    node.eks_auth().next(1, throttle)?;
    ensure!(error_of(&ask(pod.token())?) == (429, "ThrottlingException".into()));
    ensure!(ask(pod.token())?.status == 200, "the rule was for one call");
    let only =
        Rule { service_account: Some("default/other".into()), effect: Some(Effect::ExpiresIn(10)), ..Rule::default() };
    node.eks_auth().rule(&only)?;
    let expiry = |token| -> Result<u64> {
        let answer: Value = serde_json::from_slice(&ask(token)?.body)?;
        let at = answer.pointer("/credentials/expiration").and_then(Value::as_u64).context("no expiration")?;
        Ok(at - pod_identity_tests::time::now())
    };
    ensure!(expiry(other.token())? <= 10 && expiry(pod.token())? > 20_000, "the rule was for the other");
    node.eks_auth().behave()?;
    node.eks_auth().always(Effect::Drop)?;
    ensure!(ask(pod.token()).is_err(), "the connection was to be dropped");
    node.eks_auth().behave()?;
    ensure!(expiry(other.token())? > 20_000);
    Ok(())
}

#[test]
fn commands_that_do_not_end_are_ended() -> Result<()> {
    let failed = run(Command::new("sleep").arg("60"), Duration::from_millis(100));
    ensure!(failed.is_err_and(|error| error.to_string().contains("did not end within")));
    Ok(())
}

#[test]
fn a_closure_in_a_namespace_leaves_its_caller_where_it_was() -> Result<()> {
    let node = Node::new()?;
    let before = fs::read_link("/proc/thread-self/ns/net")?;
    let inside = node.netns().within(|| fs::read_link("/proc/thread-self/ns/net"))??;
    ensure!(inside != before && fs::read_link("/proc/thread-self/ns/net")? == before);
    let file = File::open(node.netns().path())?;
    ensure!(rustix_fstat_ino(&file)? == ino_in(&inside.to_string_lossy())?);
    Ok(())
}

fn rustix_fstat_ino(file: &File) -> Result<u64> {
    Ok(rustix::fs::fstat(file.as_fd())?.st_ino)
}

fn ino_in(link: &str) -> Result<u64> {
    let digits = link.split('[').nth(1).and_then(|rest| rest.strip_suffix(']'));
    Ok(digits.context("not net:[N]")?.parse()?)
}

#[test]
fn bpftool_is_there() -> Result<()> {
    must(Command::new("bpftool").arg("version")).map(|_| ())
}
