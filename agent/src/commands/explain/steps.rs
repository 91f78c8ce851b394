//! The steps of a pod's way to its credentials, in their order, judged from what is known.
use std::net::IpAddr;

use super::{
    processes::{Address, Environment, Process, TokenVariable},
    remedies,
};
use crate::{
    commands::{checks::Check, instant},
    discovery::{Listener, Place},
    operator::{Explanation, NodeFacts, PodFacts, PodState, PodStatus},
    steering::DisturbanceKind,
    vouching::TokenFile,
};

#[cfg(test)]
mod tests;

const RECREATE: &str = "associate the service account, then have the pod made anew (kubectl rollout restart): EKS adds \
                        volume and variables only when a pod is created";

/// All steps for a known pod. `processes` is why they could not be listed where they could not.
pub(super) fn all(explanation: &Explanation, facts: &PodFacts, processes: Result<&[Process], String>) -> Vec<Check> {
    let PodFacts { status, token } = facts;
    let seen = processes.as_ref().copied().unwrap_or_default();
    let mut steps = vec![pod(status), volume(token), token_step(token)];
    match processes {
        Ok(processes) => steps.extend(environment(processes, &explanation.node, status.place.as_ref())),
        Err(error) => steps.push(Check::not_known("environment", error, "run this in the agent's container, as root")),
    }
    steps.push(listener(status, seen, explanation));
    steps.push(steering(explanation));
    steps.extend([eks_auth(status, &explanation.node.cluster_name), credentials(status)]);
    steps.push(requests(status, &explanation.node.cluster_name));
    steps
}

fn pod(status: &PodStatus) -> Check {
    match (&status.state, &status.place) {
        (PodState::Ended, _) | (_, None) => Check::problem("pod", "the pod has ended", "name a pod that runs"),
        (_, Some(place)) => Check::ok("pod", format!("{}, cgroup {}", described(status), place.cgroup)),
    }
}

fn described(status: &PodStatus) -> String {
    let name = &status.pod;
    match (&name.namespace, &name.name) {
        (Some(namespace), Some(pod)) => format!("{namespace}/{pod} ({})", name.uid),
        _ => format!("{} (no token has told its name)", name.uid),
    }
}

/// What the kubelet keeps for the pod.
pub(super) fn volume(token: &TokenFile) -> Check {
    const STEP: &str = "volume";
    match token {
        TokenFile::NoKubelet => Check::not_known(
            STEP,
            "the agent cannot read the kubelet's directory",
            "mount it into the agent's container and name it with --kubelet-root",
        ),
        TokenFile::Missing { volume: false } => {
            Check::problem(STEP, "the pod has no EKS token volume (eks-pod-identity-token)", RECREATE)
        }
        TokenFile::Missing { volume: true } => Check::problem(
            STEP,
            "the pod's token volume is there, and no token in it that the agent can see",
            "the kubelet has not written it (see its log), or its mounts do not reach the agent: mount its directory with \
             mountPropagation: HostToContainer",
        ),
        TokenFile::Unreadable { .. } | TokenFile::Bad { .. } | TokenFile::Good { .. } => {
            Check::ok(STEP, "the kubelet keeps an EKS token volume for the pod")
        }
    }
}

/// Whether what it holds is good.
fn token_step(token: &TokenFile) -> Check {
    const STEP: &str = "token";
    match token {
        TokenFile::NoKubelet | TokenFile::Missing { .. } => Check::not_known(STEP, "there is none to look at", ""),
        TokenFile::Unreadable { error } => Check::problem(
            STEP,
            format!("the agent cannot read the token file: {error}"),
            "see SECURITY.md for what the agent needs",
        ),
        TokenFile::Bad { reason, message } => Check::problem(
            STEP,
            message.clone(),
            match reason.as_str() {
                "token_expired" => {
                    "the kubelet does not rotate it: see the kubelet's log, and whether it reaches the API server"
                }
                "token_not_yet_valid" => "the node's clock is behind the API server's: see that it is synchronized",
                _ => "the volume was not made by EKS: take it out of the pod's manifest, and have the pod made anew",
            },
        ),
        TokenFile::Good { expires_at, service_account } => {
            Check::ok(STEP, format!("of service account {service_account}, good until {expires_at}"))
        }
    }
}

/// What its processes were started with. Processes without any of EKS's variables (a pause container, a sidecar's helper)
/// do not count where others have them.
fn environment(processes: &[Process], node: &NodeFacts, place: Option<&Place>) -> Vec<Check> {
    let known: Vec<(&Process, &Environment)> =
        processes.iter().filter_map(|process| Some((process, process.environment.as_ref()?))).collect();
    if known.is_empty() {
        let why = if processes.is_empty() { "the pod has no process" } else { "no process's environment can be read" };
        return vec![Check::not_known(
            "environment",
            why,
            "run this in the agent's container (hostPID, CAP_SYS_PTRACE)",
        )];
    }
    let asking: Vec<(&Process, &Address)> =
        known.iter().filter_map(|(process, environment)| Some((*process, environment.uri.as_ref()?))).collect();
    vec![variables(&known), address(&asking, node, place), proxy(&known), preferred(&known)]
}

fn variables(known: &[(&Process, &Environment)]) -> Check {
    const STEP: &str = "environment";
    let Some((process, environment)) = known.iter().find(|(_, environment)| environment.uri.is_some()) else {
        let finding = "no process of the pod has AWS_CONTAINER_CREDENTIALS_FULL_URI, so its SDKs never ask the agent";
        return Check::problem(STEP, finding, RECREATE);
    };
    match environment.token_file {
        TokenVariable::Injected => Check::ok(STEP, format!("{} has what EKS injects", named(process))),
        TokenVariable::Unset => Check::problem(
            STEP,
            format!("{} has no AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", named(process)),
            "do not unset it: SDKs send no token without",
        ),
        TokenVariable::Other => Check::problem(
            STEP,
            format!("{} takes its token from elsewhere than EKS mounts it", named(process)),
            "take AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE and AWS_CONTAINER_AUTHORIZATION_TOKEN out of the pod's manifest",
        ),
    }
}

fn address(asking: &[(&Process, &Address)], node: &NodeFacts, place: Option<&Place>) -> Check {
    const STEP: &str = "address";
    for (process, address) in asking {
        let shown = &address.shown;
        let Some(ip) = address.ip.filter(|ip| *ip == node_v4() || *ip == node_v6()) else {
            let finding = format!("{} asks {shown}, which is no address of EKS Pod Identity", named(process));
            return Check::problem(STEP, finding, "take AWS_CONTAINER_CREDENTIALS_FULL_URI out of the pod's manifest");
        };
        if !node.steered.contains(&ip) {
            let finding = format!("{} asks {shown}, and the agent does not steer {ip}", named(process));
            return Check::problem(STEP, finding, "start the agent without --bind-hosts, or with this address too");
        }
        if address.port != node.target_port || address.path != "/v1/credentials" {
            let finding =
                format!("{} asks {shown}, the agent serves port {}, /v1/credentials", named(process), node.target_port);
            return Check::problem(STEP, finding, "set --port and the variable to the same");
        }
        let listener =
            place.and_then(|place| place.listeners.iter().find(|listener| Some(listener.netns) == process.netns));
        if ip.is_ipv6() && listener.is_some_and(|listener| !listener.ipv6) {
            let finding = format!("{} asks {shown}, and its network namespace has no IPv6 loopback", named(process));
            return Check::problem(
                STEP,
                finding,
                "set net.ipv6.conf.all.disable_ipv6 and net.ipv6.conf.lo.disable_ipv6 to 0 in the pod",
            );
        }
    }
    match asking.first() {
        Some((_, address)) => Check::ok(STEP, format!("{} is steered to the agent", address.shown)),
        None => Check::not_known(STEP, "no process names one", ""),
    }
}

fn node_v4() -> IpAddr {
    IpAddr::V4(crate::config::TARGET_V4)
}

fn node_v6() -> IpAddr {
    IpAddr::V6(crate::config::TARGET_V6)
}

fn proxy(known: &[(&Process, &Environment)]) -> Check {
    const STEP: &str = "proxy";
    let found = known.iter().find_map(|(process, environment)| {
        environment.uri.as_ref().zip(environment.proxy.as_ref()).map(|(uri, proxy)| (process, uri, proxy))
    });
    match found {
        None => Check::ok(STEP, "none is set for the address"),
        Some((process, uri, (variable, proxy))) => {
            let address = uri.ip.map_or_else(|| uri.shown.clone(), |ip| ip.to_string());
            let finding = format!(
                "{} has {variable}={proxy}: SDKs that honour it (Go, for one) ask there, and send the token there",
                named(process)
            );
            Check::problem(STEP, finding, format!("add {address} to the pod's NO_PROXY and no_proxy"))
        }
    }
}

fn preferred(known: &[(&Process, &Environment)]) -> Check {
    const STEP: &str = "precedence";
    match known.iter().find(|(_, environment)| !environment.preferred.is_empty()) {
        None => Check::ok(STEP, "nothing in the environment is preferred to the agent"),
        Some((process, environment)) => Check::problem(
            STEP,
            format!("{} has {}, which SDKs prefer to the agent", named(process), environment.preferred.join(", ")),
            "take it out of the pod's manifest (of the service account's annotations, where it comes from IRSA)",
        ),
    }
}

fn named(process: &Process) -> String {
    format!("{} ({})", process.name, process.pid)
}

fn listener(status: &PodStatus, processes: &[Process], explanation: &Explanation) -> Check {
    const STEP: &str = "listener";
    const REMEDY: &str = "see the agent's log; a rescan tries again every 26 s";
    let own: &[Listener] = status.place.as_ref().map_or(&[], |place| &place.listeners);
    let failure = status.place.as_ref().and_then(|place| place.failure.as_deref());
    let host = explanation.host_listener.as_ref();
    let mut used = Vec::new();
    for process in processes {
        let Some(netns) = process.netns else { continue };
        if let Some(listener) = own.iter().find(|listener| listener.netns == netns) {
            used.push(*listener);
        } else if let Some(listener) = host.filter(|listener| listener.netns == netns) {
            if !explanation.node.serves_host_network {
                let finding = format!("{} is in the node's own network namespace, which is not served", named(process));
                return Check::problem(STEP, finding, "start the agent with --host-network-pods serve");
            }
            used.push(*listener);
        } else {
            let why = failure.map(|failure| format!(": {failure}")).unwrap_or_default();
            let finding = format!("the agent does not listen in the network namespace of {}{why}", named(process));
            return Check::problem(STEP, finding, REMEDY);
        }
    }
    used.sort_unstable_by_key(|listener| listener.netns);
    used.dedup();
    let seen = if used.is_empty() { own } else { &used };
    if seen.is_empty() {
        return match failure {
            Some(failure) => Check::problem(STEP, failure, REMEDY),
            None => Check::not_known(
                STEP,
                "the pod has no network namespace that can be seen",
                "wait until a container runs",
            ),
        };
    }
    let ports: Vec<String> = seen.iter().map(shown).collect();
    Check::ok(STEP, format!("the agent listens on {}", ports.join(", ")))
}

fn shown(listener: &Listener) -> String {
    let v6 = if listener.ipv6 { " and [::1]" } else { "" };
    format!("127.0.0.1{v6}, port {}", listener.port)
}

/// Whether pods' connects reach the agent's programs, and those first.
pub(in crate::commands) fn steering(explanation: &Explanation) -> Check {
    const STEP: &str = "steering";
    let Some(found) = explanation.disturbances.first() else {
        return Check::ok(STEP, "the programs are attached, and nothing runs before them");
    };
    let (program, others) = (&found.program, found.others.join(", "));
    match found.kind {
        DisturbanceKind::Preceded => Check::problem(
            STEP,
            format!("eBPF programs of others run before {program}: {others}"),
            "if they change or refuse connects to the address, detach them (bpftool cgroup tree tells where they are)",
        ),
        DisturbanceKind::Detached => Check::problem(
            STEP,
            format!("{program} is not attached to the kubepods cgroup"),
            "wait 15 s: the agent puts it back; find out who detaches it",
        ),
        DisturbanceKind::Replaced => Check::problem(
            STEP,
            format!("another eBPF program is in the place of {program}: {others}"),
            "wait 15 s: the agent puts its own back; find out who replaces it",
        ),
        DisturbanceKind::Unknown => Check::not_known(STEP, format!("{program}: {others}"), "see the agent's log"),
    }
}

fn eks_auth(status: &PodStatus, cluster: &str) -> Check {
    const STEP: &str = "eks_auth";
    match (&status.last_failure, &status.credentials) {
        (Some(failure), _) => {
            let finding = format!("{}: {}", failure.reason, failure.message);
            Check::problem(STEP, finding, remedies::of(failure, cluster, &status.pod))
        }
        (None, Some(served)) if served.association_id.is_empty() => Check::ok(STEP, "it granted the last call"),
        (None, Some(served)) => {
            Check::ok(STEP, format!("it granted the last call, association {}", served.association_id))
        }
        (None, None) => Check::not_known(
            STEP,
            "it was not asked for this pod yet, or what it granted was given up",
            "the pod's next request asks it",
        ),
    }
}

fn credentials(status: &PodStatus) -> Check {
    const STEP: &str = "credentials";
    match &status.credentials {
        Some(served) => {
            let renewal = served.renew_at.as_deref().unwrap_or("the pod's next request");
            let finding = format!(
                "{}, since {}, until {}, renewal: {renewal}",
                served.access_key_id, served.issued_at, served.expires_at
            );
            Check::ok(STEP, finding)
        }
        None if status.last_failure.is_some() => Check::problem(STEP, "there are none to serve", "see eks_auth"),
        None => Check::not_known(STEP, "none are cached", "the pod's next request fetches them"),
    }
}

fn requests(status: &PodStatus, cluster: &str) -> Check {
    const STEP: &str = "requests";
    let asked = status.last_request.as_deref();
    if let Some(refused) = &status.last_refusal {
        let since = asked.and_then(instant).zip(instant(&refused.at)).is_some_and(|(asked, refused)| asked > refused);
        let failure = &refused.failure;
        let finding = format!("refused at {}: {}: {}", refused.at, failure.reason, failure.message);
        if !since {
            return Check::problem(STEP, finding, remedies::of(failure, cluster, &status.pod));
        }
        return Check::ok(STEP, format!("asked at {}; before, {finding}", asked.unwrap_or_default()));
    }
    match asked {
        Some(at) => Check::ok(STEP, format!("asked at {at}")),
        // AWS's list, of which deploy/README.md has the rest:
        // https://docs.aws.amazon.com/eks/latest/userguide/pod-id-minimum-sdk.html
        None => Check::not_known(
            STEP,
            "the pod never asked",
            "if it should have: its SDK may be too old for EKS Pod Identity (boto3 1.34.41, Go v2 2023-11-14, Java 2.21.30, \
             JS 3.458.0, AWS CLI 2.15.0 or newer)",
        ),
    }
}
