//! Instance metadata and EKS Auth, as they are reached from here.
use std::{
    env,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    path::Path,
};

use hyper::Uri;
use zeroize::Zeroizing;

use super::{
    Agent, Check, Confinement, Duration, EksAuth, EksAuthSettings, Names, Seccomp, SystemTime, Verdict, Where, sys,
};
use crate::{
    eks_auth::{ClusterName, Examined, Outcome, SetupError, Trust},
    kubelet,
};

/// It answers within milliseconds, or not at all.
const METADATA: Duration = Duration::from_secs(2);
/// Longer than the parts of a call may take.
const EXAMINED_WITHIN: Duration = Duration::from_secs(15);
/// Tokens are held against the node's clock with 30 s of leeway, signatures against AWS's with five minutes.
const SKEW_OF_TOKENS: Duration = Duration::from_secs(30);
const SKEW_OF_SIGNATURES: Duration = Duration::from_mins(5);

pub(super) fn all(place: &Where, agent: &Agent) -> Vec<Check> {
    let told = agent.node();
    let cluster = place.cluster_name.clone().or_else(|| told.map(|node| node.cluster_name.clone()));
    let endpoint = place.endpoint.clone().or_else(|| told.and_then(|node| node.endpoint.clone()));
    let mut checks = vec![metadata()];
    match examined(cluster.as_deref(), place, endpoint.as_deref()) {
        Ok(examined) => {
            checks.extend([reached(&examined), role(&examined, agent), clock(examined.date, SystemTime::now())]);
        }
        Err(error) => checks.push(Check::new(Verdict::Fail, "eks_auth", error, "see what it names")),
    }
    checks
}

/// A session token is asked for, as the SDK does, and not read.
fn metadata() -> Check {
    const STEP: &str = "metadata";
    let endpoint = env::var("AWS_EC2_METADATA_SERVICE_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
    let endpoint = endpoint.unwrap_or_else(|| "http://169.254.169.254".to_owned());
    match ask_metadata(&endpoint) {
        Ok(200) => Check::ok(
            STEP,
            "PUT /latest/api/token is answered here. Its hop limit cannot be read from inside; an agent with hostNetwork \
             needs 1, without it 2",
        ),
        Ok(status) => {
            let finding = format!("PUT /latest/api/token is answered with {status}");
            Check::new(
                Verdict::Warn,
                STEP,
                finding,
                "see whether metadata is enabled for the instance (aws ec2 describe-instances)",
            )
        }
        Err(error) => {
            let remedy = "set hostNetwork: true, or a hop limit of 2 (aws ec2 modify-instance-metadata-options); nodes \
                          outside EC2 need AWS_REGION and credentials by variables or a file instead";
            Check::new(Verdict::Warn, STEP, format!("instance metadata does not answer here: {error}"), remedy)
        }
    }
}

fn ask_metadata(endpoint: &str) -> Result<u16, String> {
    let uri: Uri = endpoint.parse().map_err(|_| "AWS_EC2_METADATA_SERVICE_ENDPOINT is no URL".to_owned())?;
    let host = uri.host().ok_or("AWS_EC2_METADATA_SERVICE_ENDPOINT names no host")?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let mut addresses = (bare, uri.port_u16().unwrap_or(80)).to_socket_addrs().map_err(|error| error.to_string())?;
    let address: SocketAddr = addresses.next().ok_or("its name has no address")?;
    let talk = || {
        let mut stream = TcpStream::connect_timeout(&address, METADATA)?;
        stream.set_read_timeout(Some(METADATA))?;
        let head = format!(
            "PUT /latest/api/token HTTP/1.1\r\nHost: {host}\r\nX-aws-ec2-metadata-token-ttl-seconds: 1\r\n\
             Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        // "HTTP/1.1 200": what follows is a secret for a second.
        let mut status = Zeroizing::new([0_u8; 12]);
        stream.read_exact(&mut *status)?;
        Ok(String::from_utf8_lossy(&*status).rsplit(' ').next().and_then(|status| status.parse().ok()))
    };
    let answered: std::io::Result<Option<u16>> = talk();
    match answered {
        Ok(Some(status)) => Ok(status),
        Ok(None) => Err("what answers does not speak HTTP".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Without a name it is looked for as the agent does; where that is in vain EKS Auth can be asked for any.
fn examined(cluster: Option<&str>, place: &Where, endpoint: Option<&str>) -> Result<Examined, String> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_io().enable_time().on_thread_park(sys::stack::scrub).build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let names = Names::start(Confinement { seccomp: Seccomp::Off, main_binds_low_ports: false });
    let names = names.map_err(|error| error.to_string())?;
    let root = place.kubelet_root.as_deref().unwrap_or(Path::new("/var/lib/kubelet"));
    let first = cluster.map_or_else(|| ClusterName::Unknown(kubelet::kubeconfig(root)), ClusterName::Given);
    let settings = |cluster| EksAuthSettings { cluster, endpoint, rotate_credentials: false };
    runtime.block_on(async {
        let examined = async {
            let eks_auth = match EksAuth::new(settings(first), Trust::read(endpoint), names.clone()).await {
                Err(SetupError::NoCluster(_)) => {
                    EksAuth::new(settings(ClusterName::Given("doctor")), Trust::read(endpoint), names).await
                }
                found => found,
            };
            Ok(eks_auth.map_err(|error| error.to_string())?.examine().await)
        };
        let late = |_| Err(format!("no answer within {} s", EXAMINED_WITHIN.as_secs()));
        tokio::time::timeout(EXAMINED_WITHIN, examined).await.unwrap_or_else(late)
    })
}

fn reached(examined: &Examined) -> Check {
    const STEP: &str = "eks_auth";
    match &examined.outcome {
        // Whatever it says, it answered: all but the clock is another check's.
        _ if examined.date.is_some() => Check::ok(STEP, "EKS Auth answers"),
        Outcome::Permitted(_) => Check::ok(STEP, "EKS Auth answers"),
        Outcome::Failed(refusal) if refusal.reason() == "node_credentials" => {
            Check::not_known(STEP, "it was not asked: the node has no credentials to sign with", "see node_role")
        }
        Outcome::Failed(refusal) => Check::new(
            Verdict::Fail,
            STEP,
            refusal.message(),
            "see route, DNS and security groups to it, HTTPS_PROXY and NO_PROXY of this container, AWS_CA_BUNDLE, and the \
             VPC endpoint com.amazonaws.REGION.eks-auth",
        ),
    }
}

/// By a call of this command, and by the running agent's last ones.
fn role(examined: &Examined, agent: &Agent) -> Check {
    const STEP: &str = "node_role";
    let remedy = "give the node's role eks-auth:AssumeRoleForPodIdentity (AmazonEKSWorkerNodePolicy has it), and see that its \
                  credentials are found: variables, shared file, instance metadata";
    let pods = agent.status.as_ref().map_or(&[][..], |status| &status.pods);
    let refused =
        pods.iter().filter_map(|pod| pod.last_failure.as_ref()).any(|failure| failure.reason == "node_credentials");
    match &examined.outcome {
        Outcome::Failed(refusal) if refusal.reason() == "node_credentials" => {
            Check::new(Verdict::Fail, STEP, refusal.message(), remedy)
        }
        _ if refused => {
            let finding = "the running agent's last calls were refused for the node's credentials";
            Check::new(Verdict::Fail, STEP, finding, remedy)
        }
        Outcome::Permitted(_) => {
            Check::ok(STEP, "EKS Auth takes the node's signature (it refused a token that is none)")
        }
        Outcome::Failed(_) if pods.iter().any(|pod| pod.credentials.is_some()) => {
            Check::ok(STEP, "the running agent has credentials from EKS Auth")
        }
        Outcome::Failed(_) => Check::not_known(STEP, "EKS Auth did not say", ""),
    }
}

fn clock(date: Option<SystemTime>, now: SystemTime) -> Check {
    const STEP: &str = "clock";
    let Some(date) = date else { return Check::not_known(STEP, "EKS Auth did not tell its time", "") };
    let skew = now.duration_since(date).unwrap_or_else(|error| error.duration());
    let finding = format!("{} s from EKS Auth's", skew.as_secs());
    let remedy = "synchronize the node's clock (chrony, 169.254.169.123)";
    match skew {
        skew if skew > SKEW_OF_SIGNATURES => Check::new(Verdict::Fail, STEP, finding, remedy),
        skew if skew > SKEW_OF_TOKENS => Check::new(Verdict::Warn, STEP, finding, remedy),
        _ => Check::ok(STEP, finding),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn clocks_may_differ_by_what_tokens_and_signatures_allow() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        for (date, now, verdict) in [
            (1000, 1000, Verdict::Ok),
            (1000, 1030, Verdict::Ok),
            (1031, 1000, Verdict::Warn),
            (1000, 1300, Verdict::Warn),
            (1301, 1000, Verdict::Fail),
        ] {
            assert_eq!(clock(Some(at(date)), at(now)).verdict, verdict, "{date} {now}");
        }
        assert_eq!(clock(None, at(1)).verdict, Verdict::NotKnown);
    }
}
