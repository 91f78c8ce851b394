//! A node as far as the ways in need one: pods, the engine of their credentials, and an EKS Auth that grants to one token.
use std::{num::NonZeroU32, sync::Arc, time::Duration, time::SystemTime};

use tokio::runtime::Runtime;
use zeroize::Zeroizing;

use crate::{
    credentials::{Clock, Engine, Grant, NoTokens, PresentedToken, Upstream, UpstreamFuture, engine::Limits},
    discovery::DiscoveryHandle,
    metrics::Metrics,
    operator::{NodeFacts, NodeView},
    pods::Pods,
    refusal::{Refusal, UpstreamError},
    share,
};

/// The UID of the pod that asks.
pub(crate) const POD: &str = "6a4d7b1e-0c7b-4b43-9f0e-1d6f3b1f2a77";

/// No answer but credentials may hold these, and no log.
pub(crate) const SECRETS: [&str; 2] = ["planted-secret-key", "planted-session-token"];

/// Claims of [`POD`], or of another pod, as a token.
pub(crate) fn token(uid: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let payload = format!(
        r#"{{"aud":["pods.eks.amazonaws.com"],"exp":4102444800,"iat":1,"nbf":1,"iss":"https://issuer.example","kubernetes.io":{{"namespace":"shop","pod":{{"name":"web-0","uid":"{uid}"}},"serviceaccount":{{"name":"reader","uid":"0"}}}},"sub":"system:serviceaccount:shop:reader"}}"#
    );
    let [header, payload] = [r#"{"alg":"RS256","kid":"k"}"#, &payload].map(|part| URL_SAFE_NO_PAD.encode(part));
    format!("{header}.{payload}.c2lnbmF0dXJl")
}

/// Of an engine that calls EKS Auth for nobody who does not ask.
pub(crate) const LIMITS: Limits = Limits {
    longest_retention: Duration::from_hours(3),
    upstream_concurrency: 4,
    background_per_second: NonZeroU32::MIN,
    cached_pods: 10,
    prefetch: false,
    seed: 1,
};

/// Grants to the token of [`POD`], as its signature is good; refuses all others.
struct OneToken(String);

impl Upstream for OneToken {
    fn assume_role(&self, token: Arc<PresentedToken>) -> UpstreamFuture {
        let good = token.secret() == self.0;
        Box::pin(async move {
            if !good {
                let error = UpstreamError::new(400, "id", "InvalidTokenException", "no such signature");
                return Err(Refusal::EksAuthRefused(error));
            }
            let [key, session] = SECRETS.map(|secret| Zeroizing::new(secret.to_owned()));
            Ok(Grant {
                access_key_id: "ASIAREADER".to_owned(),
                secret_access_key: key,
                session_token: session,
                account_id: "123456789012".to_owned(),
                association_id: "a-1".to_owned(),
                expires_at: SystemTime::now() + Duration::from_hours(6),
            })
        })
    }
}

/// What an operator is shown of it beside its pods: next to nothing.
pub(crate) fn view() -> NodeView {
    let (discovery, _) = DiscoveryHandle::new();
    let facts = NodeFacts {
        cluster_name: "test".to_owned(),
        endpoint: None,
        steered: Vec::new(),
        target_port: 80,
        serves_host_network: true,
        kubepods: "/kubepods".into(),
        kubelet_root: "/kubelet".into(),
    };
    NodeView { facts, discovery, audit: Arc::default(), tokens: None, disturbances: Box::new(|_| Vec::new()) }
}

/// An event loop that looks for what has come in after each step, so that a caller's bytes may come in pieces.
pub(crate) fn runtime() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.event_interval(1).enable_io().enable_time().build().expect("an event loop")
}

/// Pods, of which there are none yet.
pub(crate) fn pods(runtime: &Runtime, metrics: &Arc<Metrics>) -> Arc<Pods> {
    let (upstream, clock, handle) = (Arc::new(OneToken(token(POD))), Clock::system(), runtime.handle().clone());
    let engine = Engine::new(upstream, Arc::new(NoTokens), clock, LIMITS, Arc::clone(metrics), handle);
    Pods::new(engine, Arc::clone(metrics), None, share::DEFAULT_PERCENT)
}
