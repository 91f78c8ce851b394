//! The contract's rows about EKS Auth: whose fault a failure is, what the pod is told, and that valid credentials
//! outlive every failure.
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{pod::PodSpec, standin::control::Effect};

use crate::common::{must_refuse, refusal, served};

fn error(status: u16, code: &str, message: &str) -> Effect {
    Effect::Error { status, code: code.to_owned(), message: message.to_owned() }
}

#[test]
fn what_eks_auth_says_about_a_pod_is_passed_on() -> Result<()> {
    let served = served()?;
    for (code, status) in [
        ("AccessDeniedException", 400),
        ("ExpiredTokenException", 400),
        ("InvalidParameterException", 400),
        ("InvalidRequestException", 400),
        ("InvalidTokenException", 400),
        ("ResourceNotFoundException", 404),
    ] {
        let pod = served.node.pod("app")?;
        served.node.eks_auth().next(1, error(status, code, "said EKS Auth"))?;
        let words = format!("]: ({code}): said EKS Auth, fault: client");
        let expected = refusal(status, "eks_auth_refused", &words);
        let answer = must_refuse(&served.agent, expected, || pod.credentials()).context(code)?;
        // [<request id>]: a UUID.
        ensure!(answer.member("message").find(']') == Some(37), "{answer:?}");
    }
    Ok(())
}

#[test]
fn a_pod_without_an_association_is_told_so() -> Result<()> {
    let served = served()?;
    let stranger = served.node.pod_with(PodSpec::named("stranger"))?;
    let words = "(ResourceNotFoundException): No association found for service account stranger in namespace default";
    must_refuse(&served.agent, refusal(404, "eks_auth_refused", words), || stranger.credentials()).map(|_| ())
}

#[test]
fn a_fault_of_the_node_is_not_the_pods() -> Result<()> {
    let served = served()?;
    let cached = served.pod.must_get_credentials()?.access_key_id();
    let denied = "User: arn:aws:sts::123456789012:assumed-role/node/i-0 is not authorized to perform: \
                  eks-auth:AssumeRoleForPodIdentity on resource: x";
    for (status, code, message) in [
        (403, "UnrecognizedClientException", "The security token included in the request is invalid."),
        (403, "InvalidSignatureException", "The request signature we calculated does not match."),
        (403, "SignatureDoesNotMatch", "x"),
        (400, "RequestExpired", "x"),
        (403, "MissingAuthenticationToken", "x"),
        (403, "InvalidClientTokenId", "x"),
        (403, "AccessDeniedException", denied),
        (403, "ExpiredTokenException", "The security token included in the request is expired"),
    ] {
        let pod = served.node.pod("app")?;
        served.node.eks_auth().next(1, error(status, code, message))?;
        let expected = refusal(503, "node_credentials", "IAM role is at fault");
        must_refuse(&served.agent, expected, || pod.credentials()).context(code)?;
        served.agent.wait_for_log(&["ERROR", "does not accept this node's credentials"], Duration::from_secs(2))?;
        ensure!(served.pod.must_get_credentials()?.access_key_id() == cached, "{code} cost another pod's credentials");
    }
    Ok(())
}

#[test]
fn an_unknown_node_is_refused_by_its_signature() -> Result<()> {
    let node = pod_identity_tests::node::Node::new()?;
    let spec = pod_identity_tests::agent::AgentSpec {
        env: vec![("AWS_SECRET_ACCESS_KEY".into(), "not the node's".into())],
        ..Default::default()
    };
    let (agent, pod) = (node.agent_with(&spec)?, node.pod("app")?);
    must_refuse(&agent, refusal(503, "node_credentials", "IAM role is at fault"), || pod.credentials())?;
    ensure!(node.eks_auth().outcomes()?.contains_key("InvalidSignatureException"));
    Ok(())
}

#[test]
fn throttling_and_outages_will_pass() -> Result<()> {
    let served = served()?;
    for (effect, reason) in [
        (error(500, "InternalServerException", "oops"), "eks_auth_unavailable"),
        (error(503, "ServiceUnavailableException", "oops"), "eks_auth_unavailable"),
        (error(502, "", "<html>"), "eks_auth_unavailable"),
        (Effect::Drop, "eks_auth_unavailable"),
        (Effect::Nonsense, "eks_auth_unavailable"),
        (Effect::WrongSubject, "subject_mismatch"),
        (Effect::ExpiresIn(15), "expiring"),
        (Effect::ExpiresIn(1), "expiring"),
        // The last one: the node leaves EKS Auth alone for a while after it.
        (error(429, "ThrottlingException", "Rate exceeded"), "eks_auth_throttled"),
    ] {
        let pod = served.node.pod("app")?;
        served.node.eks_auth().next(1, effect.clone())?;
        must_refuse(&served.agent, refusal(503, reason, "try again"), || pod.credentials())
            .with_context(|| format!("{effect:?}"))?;
    }
    // Another pod is told at once, without a call that would only be throttled too.
    let other = served.node.pod("app")?;
    must_refuse(&served.agent, refusal(503, "eks_auth_throttled", "try again"), || other.credentials())?;
    ensure!(served.node.eks_auth().calls_for(other.uid())? == 0);
    Ok(())
}

#[test]
fn throttling_has_two_spellings() -> Result<()> {
    let served = served()?;
    served.node.eks_auth().next(1, error(400, "ThrottlingException", "Rate exceeded"))?;
    let expected = refusal(503, "eks_auth_throttled", "try again");
    must_refuse(&served.agent, expected, || served.pod.credentials()).map(|_| ())
}

#[test]
fn an_answer_that_is_late_is_refused_in_time_and_served_afterwards() -> Result<()> {
    let served = served()?;
    served.node.eks_auth().delay(Duration::from_millis(1500))?;
    let expected = refusal(503, "answer_deadline", "try again");
    let answer = must_refuse(&served.agent, expected, || served.pod.credentials())?;
    ensure!((850_000..1_000_000).contains(&answer.latency_us), "not within 0.9 s: {answer:?}");
    ensure!(answer.header("retry-after") == Some("1"));
    std::thread::sleep(Duration::from_millis(900));
    let cached = served.pod.must_get_credentials()?;
    ensure!(cached.latency_us < 500_000, "the fetch did not fill the cache: {cached:?}");
    ensure!(served.node.eks_auth().calls_for(served.pod.uid())? == 1, "the fetch was made again");
    Ok(())
}

#[test]
fn cached_credentials_outlive_every_failure() -> Result<()> {
    let mut served = served()?;
    let first = served.pod.must_get_credentials()?.access_key_id();
    served.node.eks_auth().fail(500, "InternalServerException", "down")?;
    for _ in 0..5 {
        ensure!(served.pod.must_get_credentials()?.access_key_id() == first);
    }
    // A new token changes nothing about what is valid: its own fetch fails, and the old one's is still served.
    let old = served.pod.token().to_owned();
    served.pod.rotate_token()?;
    served.pod.credentials()?;
    let client = pod_identity_tests::client::Client::with_token(&old);
    ensure!(served.pod.ask_once(&client)?.access_key_id() == first, "an outage cost valid credentials");
    Ok(())
}
