use super::*;
use crate::{
    commands::{
        checks::Verdict,
        explain::processes::{self},
    },
    operator::{Failure, PodName, RefusedAt, Served},
    steering::Disturbance,
};

const EKS: &[u8] = b"AWS_CONTAINER_CREDENTIALS_FULL_URI=http://169.254.170.23/v1/credentials\0\
    AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=/var/run/secrets/pods.eks.amazonaws.com/serviceaccount/eks-pod-identity-token\0";

/// A pod for which everything is as it should be.
struct Scene {
    explanation: Explanation,
    facts: PodFacts,
    environment: Vec<u8>,
    netns: u64,
}

fn scene() -> Scene {
    let listener = Listener { netns: 7, cookie: 8, port: 706, ipv6: true };
    let node = NodeFacts {
        cluster_name: "prod".to_owned(),
        endpoint: None,
        steered: vec![node_v4(), node_v6()],
        target_port: 80,
        serves_host_network: true,
        kubepods: "/kubepods".into(),
        kubelet_root: "/kubelet".into(),
    };
    let explanation = Explanation {
        node,
        host_listener: Some(Listener { netns: 1, cookie: 2, port: 706, ipv6: true }),
        disturbances: Vec::new(),
        candidates: Vec::new(),
        pod: None,
        unknown_pods_token: None,
    };
    let text = |text: &str| text.to_owned();
    let status = PodStatus {
        pod: PodName {
            namespace: Some(text("shop")),
            name: Some(text("web-0")),
            service_account: Some(text("reader")),
            uid: text("u"),
        },
        state: PodState::Available,
        credentials: Some(Served {
            access_key_id: text("ASIA1"),
            association_id: text("a-1"),
            issued_at: text("1970-01-01T00:00:00Z"),
            expires_at: text("1970-01-01T06:00:00Z"),
            renew_at: None,
        }),
        last_request: Some(text("1970-01-01T00:00:10Z")),
        last_failure: None,
        last_refusal: None,
        place: Some(Place { cgroup: text("pod1"), cgroup_id: Some(1), listeners: vec![listener], failure: None }),
    };
    let token = TokenFile::Good { expires_at: text("1970-01-01T06:00:00Z"), service_account: text("shop/reader") };
    Scene { explanation, facts: PodFacts { status, token }, environment: EKS.to_vec(), netns: 7 }
}

impl Scene {
    fn steps(&self) -> Vec<Check> {
        let environment = Some(processes::read(&self.environment));
        let process = Process { pid: 4711, name: "app".to_owned(), netns: Some(self.netns), environment };
        all(&self.explanation, &self.facts, Ok(&[process]))
    }

    /// The only step that is not as it should be, as `STEP: FINDING → REMEDY`.
    #[track_caller]
    fn broken(&self) -> String {
        let steps = self.steps();
        let problems: Vec<&Check> = steps.iter().filter(|step| step.verdict == Verdict::Problem).collect();
        let [Check { step, finding, remedy, .. }] = problems[..] else { panic!("{steps:#?}") };
        assert!(!remedy.is_empty(), "{steps:#?}");
        format!("{step}: {finding} → {remedy}")
    }
}

#[track_caller]
fn contains(text: &str, parts: &[&str]) {
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
}

fn failure(reason: &str, code: &str) -> Failure {
    Failure { reason: reason.to_owned(), code: code.to_owned(), message: "said so".to_owned() }
}

#[test]
fn all_steps_of_a_served_pod_are_ok() {
    let steps = scene().steps();
    assert!(steps.iter().all(|step| step.verdict == Verdict::Ok), "{steps:#?}");
    let names: Vec<&str> = steps.iter().map(|step| step.step).collect();
    let expected = [
        "pod",
        "volume",
        "token",
        "environment",
        "address",
        "proxy",
        "precedence",
        "listener",
        "steering",
        "eks_auth",
        "credentials",
        "requests",
    ];
    assert_eq!(names, expected);
}

#[test]
fn each_fault_of_the_environment_has_its_step() {
    type Case = (&'static str, &'static str, [&'static str; 2]);
    let cases: [Case; 9] = [
        ("FULL_URI", "X", ["environment: no process", "made anew"]),
        ("TOKEN_FILE=/var/run", "TOKEN_FILE=/elsewhere", ["environment: app (4711) takes its token", "manifest"]),
        ("AUTHORIZATION_TOKEN_FILE", "X", ["environment: app (4711) has no", "do not unset"]),
        ("169.254.170.23", "169.254.170.2", ["address: app (4711) asks http://169.254.170.2/v1", "no address of EKS"]),
        ("170.23/", "170.23:8080/", ["address: ", "the agent serves port 80"]),
        ("v1/credentials\0", "v1/credentials\0http_proxy=proxy:3128\0", ["proxy: ", "add 169.254.170.23 to"]),
        (
            "v1/credentials\0",
            "v1/credentials\0AWS_ACCESS_KEY_ID=a\0AWS_SECRET_ACCESS_KEY=b\0",
            ["precedence: ", "AWS_ACCESS_KEY_ID, which"],
        ),
        (
            "v1/credentials\0",
            "v1/credentials\0AWS_ROLE_ARN=a\0AWS_WEB_IDENTITY_TOKEN_FILE=b\0",
            ["precedence: ", "annotations, where it comes from IRSA"],
        ),
        (
            "v1/credentials\0",
            "v1/credentials\0AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/x\0",
            ["precedence: ", "RELATIVE_URI"],
        ),
    ];
    for (from, to, parts) in cases {
        let mut scene = scene();
        scene.environment = String::from_utf8(scene.environment).unwrap().replace(from, to).into_bytes();
        contains(&scene.broken(), &parts);
    }
}

#[test]
fn addresses_of_ipv6_need_steering_and_a_loopback() {
    let mut scene = scene();
    let v6 = String::from_utf8(scene.environment).unwrap().replace("169.254.170.23", "[fd00:ec2::23]");
    scene.environment = v6.into_bytes();
    assert!(scene.steps().iter().all(|step| step.verdict == Verdict::Ok));
    scene.facts.status.place.as_mut().unwrap().listeners[0].ipv6 = false;
    contains(&scene.broken(), &["address: ", "no IPv6 loopback", "disable_ipv6"]);
    scene.explanation.node.steered.pop();
    contains(&scene.broken(), &["address: ", "does not steer fd00:ec2::23", "--bind-hosts"]);
}

#[test]
fn each_fault_of_the_token_has_its_step() {
    let bad = |reason: &str| TokenFile::Bad { reason: reason.to_owned(), message: "said so".to_owned() };
    for (token, parts) in [
        (TokenFile::Missing { volume: false }, ["volume: the pod has no EKS token volume", "made anew"]),
        (TokenFile::Missing { volume: true }, ["volume: the pod's token volume is there", "mountPropagation"]),
        (bad("token_expired"), ["token: said so", "does not rotate"]),
        (bad("token_not_yet_valid"), ["token: said so", "clock"]),
        (bad("wrong_audience"), ["token: said so", "not made by EKS"]),
        (TokenFile::Unreadable { error: "EACCES".to_owned() }, ["token: the agent cannot read", "EACCES"]),
    ] {
        let mut scene = scene();
        scene.facts.token = token;
        contains(&scene.broken(), &parts);
    }
}

#[test]
fn namespaces_without_a_listener_are_told() {
    let mut elsewhere = scene();
    elsewhere.netns = 9;
    elsewhere.facts.status.place.as_mut().unwrap().failure = Some("no port is free".to_owned());
    contains(&elsewhere.broken(), &["listener: the agent does not listen in", "app (4711): no port is free"]);
    let mut host = scene();
    host.netns = 1;
    assert!(host.steps().iter().all(|step| step.verdict == Verdict::Ok));
    host.explanation.node.serves_host_network = false;
    contains(&host.broken(), &["listener: app (4711) is in the node's own", "--host-network-pods serve"]);
}

#[test]
fn other_programs_are_named() {
    for (kind, part) in [
        (DisturbanceKind::Preceded, "run before connect4: theirs (id 7)"),
        (DisturbanceKind::Detached, "not attached"),
        (DisturbanceKind::Replaced, "in the place of connect4: theirs (id 7)"),
    ] {
        let mut scene = scene();
        let others = vec!["theirs (id 7)".to_owned()];
        scene.explanation.disturbances = vec![Disturbance { program: "connect4".to_owned(), kind, others }];
        contains(&scene.broken(), &["steering: ", part]);
    }
}

#[test]
fn eks_auths_refusals_say_who_has_to_change_what() {
    for (reason, code, part) in [
        (
            "eks_auth_refused",
            "ResourceNotFoundException",
            "--cluster-name prod --namespace shop --service-account reader",
        ),
        ("eks_auth_refused", "AccessDeniedException", "sts:TagSession"),
        ("eks_auth_refused", "ExpiredTokenException", "stale"),
        ("node_credentials", "node_credentials", "eks-auth:AssumeRoleForPodIdentity"),
        ("eks_auth_throttled", "ThrottlingException", "quota"),
        ("eks_auth_unavailable", "eks_auth_unavailable", "endpoint"),
    ] {
        let mut scene = scene();
        scene.facts.status.last_failure = Some(failure(reason, code));
        contains(&scene.broken(), &["eks_auth: ", "said so", part]);
    }
}

#[test]
fn a_refusal_counts_until_the_pod_has_asked_again() {
    let mut scene = scene();
    let refused = |at: &str| Some(RefusedAt { at: at.to_owned(), failure: failure("wrong_host", "wrong_host") });
    scene.facts.status.last_refusal = refused("1970-01-01T00:00:11Z");
    contains(&scene.broken(), &["requests: refused at 1970-01-01T00:00:11Z: wrong_host", "service mesh"]);
    scene.facts.status.last_refusal = refused("1970-01-01T00:00:09Z");
    assert!(scene.steps().iter().all(|step| step.verdict == Verdict::Ok));
    scene.facts.status.last_refusal = None;
    scene.facts.status.last_request = None;
    let last = scene.steps().pop().unwrap();
    assert_eq!((last.step, last.verdict), ("requests", Verdict::NotKnown));
    contains(&last.remedy, &["too old"]);
}
