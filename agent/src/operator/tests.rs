use std::time::SystemTime;

use tokio::runtime::Handle;
use zeroize::Zeroizing;

use super::*;
use crate::{
    credentials::{Clock, Engine, Grant, NoTokens, PresentedToken, Upstream, UpstreamFuture},
    fuzzing::node::LIMITS,
    metrics::Metrics,
    refusal::UpstreamError,
    share,
    token::{Claims, TokenDigest},
};

const FIRST: &str = "00000000-0000-4000-8000-000000000001";
const SECOND: &str = "00000000-0000-4000-8000-000000000002";
const UNNAMED: &str = "00000000-0000-4000-8000-000000000003";

/// Grants to every service account but `refused`.
struct Script;

impl Upstream for Script {
    fn assume_role(&self, token: Arc<PresentedToken>) -> UpstreamFuture {
        Box::pin(async move {
            if &*token.claims().service_account == "refused" {
                return Err(Refusal::EksAuthRefused(UpstreamError::new(404, "id", "ResourceNotFoundException", "no")));
            }
            Ok(Grant {
                access_key_id: format!("ASIA{}", token.claims().service_account),
                secret_access_key: Zeroizing::new("planted-secret".to_owned()),
                session_token: Zeroizing::new("planted-session".to_owned()),
                account_id: "123456789012".to_owned(),
                association_id: "a-1".to_owned(),
                expires_at: SystemTime::now() + Duration::from_hours(6),
            })
        })
    }
}

fn token(uid: &str, name: Option<&str>, service_account: &str) -> PresentedToken {
    let raw = format!("planted-token-{uid}");
    let claims = Claims {
        pod_uid: uid.parse().unwrap(),
        pod_name: name.map(Into::into),
        namespace: "shop".into(),
        service_account: service_account.into(),
        expires_at: SystemTime::now() + Duration::from_hours(24),
    };
    PresentedToken::new(&raw, TokenDigest::of(&raw), claims)
}

/// Three pods: one served, one refused, one of which nothing is known.
async fn node() -> Operator {
    let metrics = Arc::new(Metrics::new());
    let engine = Engine::new(
        Arc::new(Script),
        Arc::new(NoTokens),
        Clock::system(),
        LIMITS,
        Arc::clone(&metrics),
        Handle::current(),
    );
    let pods = Pods::new(engine, metrics, None, share::DEFAULT_PERCENT);
    pods.add(UNNAMED.parse().unwrap());
    let second = pods.add(SECOND.parse().unwrap());
    second.credentials().vouch(&token(SECOND, None, "refused"));
    second.credentials().obtain(token(SECOND, None, "refused")).await.unwrap_err();
    let first = pods.add(FIRST.parse().unwrap());
    first.credentials().obtain(token(FIRST, Some("web-0"), "reader")).await.unwrap();
    Operator::new(pods, crate::fuzzing::node::view())
}

#[tokio::test]
async fn the_status_names_pods_and_tells_no_secret() {
    let status = node().await.status().await;
    let uids: Vec<&str> = status.pods.iter().map(|pod| pod.pod.uid.as_str()).collect();
    assert_eq!(uids, [SECOND, FIRST, UNNAMED], "by namespace and name, the unnamed last");
    let found: Vec<PodState> = status.pods.iter().map(|pod| pod.state).collect();
    assert_eq!(found, [PodState::Unavailable, PodState::Available, PodState::Empty]);
    let [refused, served, unnamed] = &status.pods[..] else { panic!("{status:?}") };
    assert_eq!(refused.last_failure.as_ref().unwrap().reason, "eks_auth_refused");
    assert_eq!(served.pod.name.as_deref(), Some("web-0"));
    let credentials = served.credentials.as_ref().unwrap();
    assert_eq!(credentials.access_key_id, "ASIAreader");
    assert!(credentials.issued_at < *credentials.renew_at.as_ref().unwrap());
    assert!(*credentials.renew_at.as_ref().unwrap() < credentials.expires_at);
    assert!(served.last_request.is_some() && unnamed.last_request.is_none());
    let json = serde_json::to_string(&status).unwrap();
    assert!(!json.contains("planted"), "{json}");
    assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
}

#[tokio::test]
async fn a_flush_reaches_the_pods_that_are_meant() {
    let operator = node().await;
    let cases = [
        (Selection::Pod(FIRST.to_owned()), vec![(FIRST, FlushOutcome::Renewed)]),
        (Selection::Pod(FIRST.to_uppercase()), vec![(FIRST, FlushOutcome::Renewed)]),
        (Selection::Pod("shop/web-0".to_owned()), vec![(FIRST, FlushOutcome::Renewed)]),
        (Selection::Pod("web-0".to_owned()), vec![]),
        (Selection::Pod("other/web-0".to_owned()), vec![]),
        (Selection::ServiceAccount("shop/reader".to_owned()), vec![(FIRST, FlushOutcome::Renewed)]),
        (Selection::ServiceAccount("shop/web-0".to_owned()), vec![]),
        // It has no token any more that could be shown to EKS Auth: the kubelet's file is not there.
        (
            Selection::All,
            vec![(UNNAMED, FlushOutcome::Nothing), (SECOND, FlushOutcome::Nothing), (FIRST, FlushOutcome::Renewed)],
        ),
    ];
    for (selection, expected) in cases {
        let flushed = operator.flush(&selection).await;
        let outcomes: Vec<(&str, FlushOutcome)> =
            flushed.iter().map(|pod| (pod.pod.uid.as_str(), pod.outcome)).collect();
        assert_eq!(outcomes, expected, "{selection:?}");
    }
}

#[test]
fn selections_are_written_as_the_socket_takes_them() {
    let written = |selection: &Selection| serde_json::to_string(selection).unwrap();
    assert_eq!(written(&Selection::All), r#""all""#);
    assert_eq!(written(&Selection::Pod("u".into())), r#"{"pod":"u"}"#);
    assert_eq!(written(&Selection::ServiceAccount("n/a".into())), r#"{"service_account":"n/a"}"#);
}
