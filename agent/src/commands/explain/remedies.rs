//! What to do about a refusal.
use crate::operator::{Failure, PodName};

/// In the words of somebody who may change the cluster.
pub(super) fn of(failure: &Failure, cluster: &str, pod: &PodName) -> String {
    let account = |name: &Option<String>| name.clone().unwrap_or_else(|| "NAME".to_owned());
    let (namespace, service_account) = (account(&pod.namespace), account(&pod.service_account));
    match (failure.reason.as_str(), failure.code.as_str()) {
        ("eks_auth_refused", "ResourceNotFoundException") => format!(
            "associate the service account with a role (aws eks create-pod-identity-association --cluster-name {cluster} \
             --namespace {namespace} --service-account {service_account} --role-arn ARN), or see that the cluster is called so"
        ),
        ("eks_auth_refused", "AccessDeniedException") => "let the role's trust policy allow sts:AssumeRole and \
             sts:TagSession to the service pods.eks.amazonaws.com, and see that the role exists"
            .to_owned(),
        ("eks_auth_refused", "ExpiredTokenException" | "InvalidTokenException") => {
            "the kubelet's token is stale, or of another cluster: see the kubelet's log and --cluster-name".to_owned()
        }
        ("eks_auth_refused", _) => "see what EKS Auth says, and CloudTrail under the request id".to_owned(),
        ("node_credentials", _) => "give the node's role eks-auth:AssumeRoleForPodIdentity \
             (AmazonEKSWorkerNodePolicy has it); if it has, see where the agent takes the node's credentials from (its log)"
            .to_owned(),
        ("eks_auth_throttled", _) => {
            "wait: calls are spread by themselves; if it stays so, ask AWS for a higher quota of eks-auth".to_owned()
        }
        ("eks_auth_unavailable", _) => {
            "see that the node reaches the EKS Auth endpoint (doctor tells): route, DNS, proxy, VPC endpoint com.amazonaws.REGION.eks-auth".to_owned()
        }
        ("token_expired" | "token_not_yet_valid", _) => {
            "the application presents a token that it read long ago, or the clocks differ: let the SDK read the file for each fetch".to_owned()
        }
        ("foreign_token", _) => "the application presents another pod's token: see what is mounted where it reads it".to_owned(),
        ("wrong_host" | "forwarded", _) => "something in the pod forwards the request (a proxy, a service mesh): exempt the address from it".to_owned(),
        ("no_token" | "malformed_token" | "wrong_audience" | "no_pod_uid", _) => {
            "the application does not send the token that EKS mounts: unset what overrides AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE".to_owned()
        }
        ("unknown_socket", _) => "the connection does not come from the pod itself: somebody translates or forwards it".to_owned(),
        ("host_network_pod", _) => "start the agent with --host-network-pods serve, or give the pod a network of its own".to_owned(),
        ("pod_limit", _) => "the application holds hundreds of connections: let it use one SDK client, or close them".to_owned(),
        ("unknown_path" | "method_not_allowed" | "ambiguous_request" | "malformed_request", _) => {
            "the request is none of an SDK's: see what asks".to_owned()
        }
        _ => "ask again; if it stays so, see the agent's log".to_owned(),
    }
}
