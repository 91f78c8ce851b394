//! `explain` names the step that fails, for each way in which a pod ends up without credentials, and what to do.
use std::{net::TcpListener, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::AgentSpec,
    cgroup::Cgroup,
    client::Client,
    foreign::{self, Foreign, IN_FRONT, PREORDER},
    node::Node,
    operator::{Explained, tell},
    pod::{Network, Pod, PodSpec},
    process::{Process, eventually},
    standin::control::Effect,
    token::{Claims, Issuer, random_uid},
};
use serde_json::json;

use crate::common::{Served, served, served_with};

const V4_URI: (&str, &str) = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials");
const V6_URI: (&str, &str) = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://[fd00:ec2::23]/v1/credentials");
const TOKEN: (&str, &str) = (
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount/eks-pod-identity-token",
);

/// A process in the pod with these variables and no others, as a container's would have.
fn start(node: &Node, pod: &Pod, variables: &[(&str, &str)]) -> Result<Process> {
    let mut command = pod.container("app")?.command("sleep")?;
    command.arg("infinity").env_clear().env("PATH", std::env::var("PATH").unwrap_or_default());
    command.envs(variables.iter().copied());
    let process = Process::start("an application", &mut command, &node.dir().join("applications.log"))?;
    eventually("the application to run", Duration::from_secs(10), || {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", process.pid()))?;
        Ok((name.trim_end() == "sleep").then_some(()))
    })?;
    Ok(process)
}

fn explain(served: &Served, pod: &str) -> Result<Explained> {
    Explained::ask(served.agent.run_dir(), pod)
}

/// What is said of the pod of this node.
fn explained(served: &Served) -> Result<Explained> {
    explain(served, served.pod.uid())
}

/// What is said of a pod whose application has these variables, after it asked once.
fn explained_with(variables: &[(&str, &str)]) -> Result<Explained> {
    let served = served()?;
    served.pod.must_get_credentials()?;
    let _application = start(&served.node, &served.pod, variables)?;
    explained(&served)
}

#[test]
fn a_pod_that_is_served_has_no_problem_however_it_is_named() -> Result<()> {
    let served = served()?;
    let application = start(&served.node, &served.pod, &[V4_URI, TOKEN])?;
    let key = served.pod.must_get_credentials()?.access_key_id();
    let name = &served.pod.subject().pod_name;
    for question in [
        served.pod.uid(),
        name,
        &format!("default/{name}"),
        &application.pid().to_string(),
        &served.pod.pause()?.pid().to_string(),
    ] {
        let explained = explain(&served, question)?;
        ensure!(explained.code == Some(0) && explained.json["good"] == true, "{question}: {:#}", explained.json);
        ensure!(explained.json["pod"]["uid"] == served.pod.uid(), "{question}: {:#}", explained.json);
        let steps = explained.json["steps"].as_array().context("steps")?;
        ensure!(steps.iter().all(|step| step["verdict"] == "ok"), "{question}: {:#}", explained.json);
    }
    let told = tell(served.agent.run_dir(), &["explain", served.pod.uid()])?;
    ensure!(told.code == Some(0) && told.text.lines().count() == 12 && told.text.contains(&key), "{}", told.text);
    ensure!(!told.text.contains('\x1b'), "colours in a pipe: {}", told.text);
    let yaml = tell(served.agent.run_dir(), &["explain", served.pod.uid(), "--output", "yaml"])?.text;
    ensure!(yaml.contains("\"good\": true") && yaml.contains("    \"step\": \"pod\""), "{yaml}");
    Ok(())
}

#[test]
fn no_association() -> Result<()> {
    let served = served()?;
    let stranger = served.node.pod_with(PodSpec::named("stranger"))?;
    let _application = start(&served.node, &stranger, &[V4_URI, TOKEN])?;
    ensure!(stranger.credentials()?.status == Some(404));
    let remedy = "create-pod-identity-association --cluster-name test --namespace default --service-account stranger";
    explain(&served, stranger.uid())?.must_blame("eks_auth", "No association found", remedy)
}

#[test]
fn what_eks_auth_says_of_role_and_node() -> Result<()> {
    let node_role = "User: arn:aws:sts::123456789012:assumed-role/node/i-0 is not authorized to perform: \
                     eks-auth:AssumeRoleForPodIdentity on resource: x";
    for (status, code, message, finding, remedy) in [
        (400, "AccessDeniedException", "no", "eks_auth_refused", "sts:TagSession"),
        (403, "AccessDeniedException", node_role, "node_credentials", "AmazonEKSWorkerNodePolicy"),
        (429, "ThrottlingException", "slow down", "eks_auth_throttled", "quota"),
        (503, "ServiceUnavailableException", "down", "eks_auth_unavailable", "reaches the EKS Auth endpoint"),
    ] {
        let served = served()?;
        let _application = start(&served.node, &served.pod, &[V4_URI, TOKEN])?;
        served.node.eks_auth().fail(status, code, message)?;
        ensure!(served.pod.credentials()?.status != Some(200));
        explained(&served)?.must_blame("eks_auth", finding, remedy).with_context(|| code.to_owned())?;
    }
    Ok(())
}

#[test]
fn eks_auth_does_not_answer() -> Result<()> {
    let served = served()?;
    served.node.eks_auth().always(Effect::Drop)?;
    let _ = served.pod.credentials()?;
    eventually("the fetch to fail", Duration::from_secs(10), || {
        Ok((explained(&served)?.verdict("eks_auth")? == "problem").then_some(()))
    })?;
    explained(&served)?.must_blame("eks_auth", "cannot be reached", "route, DNS, proxy")
}

#[test]
fn no_volume_and_no_variables() -> Result<()> {
    let served = served()?;
    let plain = served.node.pod_with(PodSpec::named("plain").no_token())?;
    let explained = explain(&served, plain.uid())?;
    explained.must_blame("volume", "no EKS token volume", "made anew")?;
    explained.must_blame("environment", "no process of the pod has AWS_CONTAINER_CREDENTIALS_FULL_URI", "made anew")
}

#[test]
fn a_volume_that_the_agent_cannot_see_into() -> Result<()> {
    let served = served()?;
    let mut pod = served.node.begin_pod(PodSpec::named("late"))?;
    pod.start_sandbox()?;
    pod.start_container("app")?;
    let found = eventually("the agent to know the pod", Duration::from_secs(5), || {
        let explained = explain(&served, pod.uid())?;
        Ok((explained.verdict("pod")? == "ok").then_some(explained))
    })?;
    found.must_blame("volume", "no token in it", "mountPropagation: HostToContainer")
}

#[test]
fn tokens_that_are_stale_or_not_eks_s() -> Result<()> {
    let served = served()?;
    let _application = start(&served.node, &served.pod, &[V4_URI, TOKEN])?;
    served.pod.must_get_credentials()?;
    let volume = served.pod.volume().context("a volume")?;
    let issuer = Issuer::of_this_process()?;
    let claims = || Claims::of(served.pod.subject());
    let now = pod_identity_tests::time::now();
    for (claims, finding, remedy) in [
        (claims().with("exp", json!(now - 60)), "token is expired", "kubelet does not rotate"),
        (claims().with("nbf", json!(now + 600)), "not valid yet", "clock"),
        (claims().with("aud", json!(["sts.amazonaws.com"])), "no audience", "not made by EKS"),
        (claims().with("kubernetes.io/pod/uid", json!(random_uid())), "belongs to another pod", "not made by EKS"),
    ] {
        volume.write(&issuer.sign(&claims)?)?;
        explained(&served)?.must_blame_only("token", finding, remedy)?;
    }
    volume.write("not a token")?;
    explained(&served)?.must_blame_only("token", "cannot be parsed", "not made by EKS")
}

#[test]
fn a_proxy_in_the_environment() -> Result<()> {
    let secret = "http://me:planted@proxy.test:3128";
    for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let explained = explained_with(&[V4_URI, TOKEN, (variable, secret), ("NO_PROXY", "10.0.0.0/8,.svc")])?;
        let finding = format!("{variable}=http://proxy.test:3128");
        explained.must_blame_only("proxy", &finding, "add 169.254.170.23 to the pod's NO_PROXY")?;
        ensure!(!explained.json.to_string().contains("planted"), "{:#}", explained.json);
    }
    let spared = explained_with(&[V4_URI, TOKEN, ("HTTP_PROXY", secret), ("NO_PROXY", "169.254.0.0/16")])?;
    ensure!(spared.code == Some(0), "{:#}", spared.json);
    Ok(())
}

#[test]
fn variables_that_win_over_the_agent() -> Result<()> {
    let keys = [("AWS_ACCESS_KEY_ID", "AKIAPLANTED"), ("AWS_SECRET_ACCESS_KEY", "planted")];
    let irsa = [("AWS_ROLE_ARN", "arn:planted"), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/planted")];
    for (more, finding, remedy) in [
        (keys, "AWS_ACCESS_KEY_ID, which SDKs prefer", "pod's manifest"),
        (irsa, "AWS_WEB_IDENTITY_TOKEN_FILE, which SDKs prefer", "IRSA"),
    ] {
        let explained = explained_with(&[&[V4_URI, TOKEN], &more[..]].concat())?;
        explained.must_blame_only("precedence", finding, remedy)?;
        ensure!(!explained.json.to_string().to_lowercase().contains("planted"), "{:#}", explained.json);
    }
    Ok(())
}

#[test]
fn variables_that_point_elsewhere() -> Result<()> {
    let elsewhere = (V4_URI.0, "http://127.0.0.1:51679/v1/credentials");
    explained_with(&[elsewhere, TOKEN])?.must_blame_only("address", "http://127.0.0.1:51679", "manifest")?;
    let file = (TOKEN.0, "/var/run/secrets/kubernetes.io/serviceaccount/token");
    explained_with(&[V4_URI, file])?.must_blame_only("environment", "takes its token from elsewhere", "manifest")?;
    explained_with(&[V4_URI])?.must_blame_only("environment", "has no AWS_CONTAINER_AUTHORIZATION", "do not unset")
}

#[test]
fn ipv6_that_is_not_steered() -> Result<()> {
    let served = served_with(&AgentSpec::flags(&["--bind-hosts", "169.254.170.23"]))?;
    let _application = start(&served.node, &served.pod, &[V6_URI, TOKEN])?;
    explained(&served)?.must_blame_only("address", "does not steer fd00:ec2::23", "--bind-hosts")
}

#[test]
fn ipv6_that_the_pod_does_not_have() -> Result<()> {
    let served = served()?;
    let network = Network::Own { ipv6: false, default_route: true, user_namespace: false };
    let pod = served.node.pod_with(PodSpec::named("app").network(network))?;
    let _application = start(&served.node, &pod, &[V6_URI, TOKEN])?;
    ensure!(pod.credentials()?.status == Some(200), "it is served over IPv4");
    explain(&served, pod.uid())?.must_blame_only("address", "no IPv6 loopback", "disable_ipv6")
}

#[test]
fn no_listener_as_the_port_is_taken() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod("app")?;
    let _taken = pod.netns()?.within(|| TcpListener::bind("127.0.0.1:706"))??;
    let agent = node.agent_with(&AgentSpec::flags(&["--listener-ports", "706-706"]))?;
    let served = Served { pod, agent, node };
    let _application = start(&served.node, &served.pod, &[V4_URI, TOKEN])?;
    explained(&served)?.must_blame_only("listener", "does not listen in the network namespace of", "rescan")
}

#[test]
fn host_network_pods_that_are_not_served() -> Result<()> {
    let served = served_with(&AgentSpec::flags(&["--host-network-pods", "refuse"]))?;
    let pod = served.node.pod_with(PodSpec::named("app").host_network())?;
    let _application = start(&served.node, &pod, &[V4_URI, TOKEN])?;
    explain(&served, pod.uid())?.must_blame_only("listener", "which is not served", "--host-network-pods serve")?;
    ensure!(pod.credentials()?.status == Some(403));
    explain(&served, pod.uid())?.must_blame("requests", "host_network_pod", "--host-network-pods serve")
}

#[test]
fn programs_that_are_in_the_way_or_gone() -> Result<()> {
    let served = served()?;
    let kubepods = served.node.kubepods().cgroup().dir().to_owned();
    let _application = start(&served.node, &served.pod, &[V4_URI, TOKEN])?;
    let foreign = Foreign::harmless()?;
    let link = foreign.attach(&kubepods, IN_FRONT | PREORDER)?;
    explained(&served)?.must_blame_only("steering", "run before connect4: foreign", "bpftool cgroup tree")?;
    drop(link);
    for (_, link) in foreign::links(&kubepods)? {
        foreign::detach(link)?;
    }
    explained(&served)?.must_blame_only("steering", "not attached", "find out who detaches it")
}

#[test]
fn requests_that_were_refused() -> Result<()> {
    let served = served()?;
    let other = served.node.pod("other")?;
    let _application = start(&served.node, &served.pod, &[V4_URI, TOKEN])?;
    ensure!(served.pod.ask_once(&Client::with_token(other.token()))?.status == Some(403));
    explained(&served)?.must_blame_only("requests", "foreign_token", "another pod's token")?;
    ensure!(served.pod.ask_once(&Client::with_token(""))?.status == Some(400));
    explained(&served)?.must_blame_only("requests", "no_token", "does not send the token")
}

#[test]
fn pods_that_the_agent_does_not_know() -> Result<()> {
    let served = served()?;
    let nobody = random_uid();
    explain(&served, &nobody)?.must_blame("pod", "no cgroup of it below", "--kubepods-cgroup")?;
    for (question, part) in [
        ("default/nobody", "name it by its UID"),
        ("4194999", "cannot see process 4194999"),
        (&*std::process::id().to_string(), "is in no pod"),
    ] {
        let told = tell(served.agent.run_dir(), &["explain", question])?;
        ensure!(told.code == Some(1) && told.text.contains(part), "{question}: {}", told.text);
    }
    // Two pods of one name: a stateful set's that was made anew while the last one ends.
    let namesake = PodSpec {
        subject: pod_identity_tests::token::Subject { pod_uid: random_uid(), ..served.pod.subject().clone() },
        ..PodSpec::named("app")
    };
    let second = served.node.pod_with(namesake)?;
    for pod in [&served.pod, &second] {
        pod.must_get_credentials()?;
    }
    let told = tell(served.agent.run_dir(), &["explain", &served.pod.subject().pod_name])?;
    ensure!(told.code == Some(1) && told.text.contains(second.uid()), "{}", told.text);
    Ok(())
}

#[test]
fn a_pod_in_a_cgroup_that_the_agent_is_not_attached_to() -> Result<()> {
    let served = served()?;
    // As with a kubelet whose --cgroup-root is another one than the agent's pod is in.
    let uid = random_uid();
    let slice = format!("kubepods-pod{}.slice", uid.replace('-', "_"));
    let elsewhere = Cgroup::create(served.node.top_cgroup().dir().join("other.slice"))?;
    let _pod = elsewhere.child(&slice)?;
    explain(&served, &uid)?.must_blame("pod", "no cgroup of it below", "wrong cgroup")
}
