//! Answers of EKS Auth, through the SDK: for fuzz targets and tests only.
#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a failed property is told by a panic")]
use std::{
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use aws_credential_types::Credentials;
use aws_smithy_runtime_api::{
    client::{
        http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
        orchestrator::{HttpRequest, HttpResponse},
    },
    http::StatusCode,
};
use aws_smithy_types::body::SdkBody;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::{EksAuth, NodeCredentials, TIMEOUTS, node_credentials::Watched};
use crate::{
    credentials::{Grant, Issued, PresentedToken, Upstream as _},
    fuzzing::node::{self, POD},
    refusal::Refusal,
    token::{ServiceAccountToken, TokenDigest},
};

/// The node's own key, which no answer to a pod may hold.
const NODE_SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// An answer: its status and its headers, each on a line, an empty line, its body. `{T}` stands for the pod's token in
/// the headers and in the body, as a service may quote what it does not like.
///
/// Credentials come of it only with the subject of the token, and are the ones that the answer holds; anything else is
/// one of the contract's refusals, and quotes no token.
pub fn eks_auth(input: &[u8]) {
    thread_local!(static CALLS: Calls = Calls::new());
    CALLS.with(|calls| calls.check(input));
}

/// Answers all calls.
#[derive(Clone, Debug, Default)]
struct Answers(Arc<Mutex<Option<HttpResponse>>>);

impl HttpConnector for Answers {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::ready(Ok(self.0.lock().expect("no panic").take().expect("one call for each input")))
    }
}

struct Calls {
    runtime: Runtime,
    eks_auth: EksAuth,
    answers: Answers,
    token: String,
}

impl Calls {
    fn new() -> Self {
        let answers = Answers::default();
        let connector = SharedHttpConnector::new(answers.clone());
        let node =
            NodeCredentials::new(Credentials::new("AKIDNODE", NODE_SECRET, None, None, "test"), Watched::nothing());
        let http = http_client_fn(move |_, _| connector.clone());
        let eks_auth = EksAuth::over(
            http,
            aws_config::Region::new("eu-west-1"),
            node,
            "production",
            Some("http://127.0.0.1"),
            TIMEOUTS,
        );
        let calls = Self { runtime: node::runtime(), eks_auth, answers, token: node::token(POD) };
        assert!(calls.check(include_bytes!("../../fuzz/seeds/eks_auth/granted")), "the control");
        calls
    }

    /// Whether credentials came of it.
    fn check(&self, input: &[u8]) -> bool {
        let text = String::from_utf8_lossy(input).replace("{T}", &self.token);
        let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
        let mut lines = head.lines();
        let Some(status) = lines.next().and_then(|line| StatusCode::try_from(line.parse::<u16>().ok()?).ok()) else {
            return false;
        };
        let mut response = HttpResponse::new(status, SdkBody::from(body));
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            // What is no header cannot come over HTTP.
            let _ = response.headers_mut().try_append(name.to_owned(), value.to_owned());
        }
        *self.answers.0.lock().expect("no panic") = Some(response);
        let claims = ServiceAccountToken::parse(&self.token).and_then(|token| token.validate(SystemTime::now()));
        let token = PresentedToken::new(&self.token, TokenDigest::of(&self.token), claims.expect("a good token"));
        match self.runtime.block_on(self.eks_auth.assume_role(Arc::new(token))) {
            Ok(grant) => {
                granted(&grant, status, body);
                true
            }
            Err(refusal) => {
                self.refused(&refusal, status);
                false
            }
        }
    }

    fn refused(&self, refusal: &Refusal, status: StatusCode) {
        let text = String::from_utf8(refusal.body().to_vec()).expect("UTF-8");
        let expected: &[u16] = if status.is_server_error() { &[503] } else { &[400, 404, 503] };
        // A service's front may send its errors with any status: which it is follows from the name of the error.
        let named = matches!(refusal, Refusal::EksAuthRefused(_));
        assert!(named || expected.contains(&refusal.status().as_u16()), "{status:?} became {refusal:?}");
        serde_json::from_str::<Value>(&text).expect("JSON");
        let message = refusal.message();
        assert!(!message.contains(&self.token) && !message.contains("eyJ"), "{message}");
        assert!(!message.contains(NODE_SECRET) && !message.contains(char::is_control), "{message:?}");
    }
}

fn granted(grant: &Grant, status: StatusCode, body: &str) {
    assert!(status.is_success(), "{status:?} became credentials");
    let answer: Value = serde_json::from_str(body).expect("credentials come as JSON");
    assert_eq!(
        (&answer["subject"]["namespace"], &answer["subject"]["serviceAccount"]),
        (&"shop".into(), &"reader".into())
    );
    let text = |name: &str| answer["credentials"][name].as_str().expect("a text");
    assert_eq!(text("accessKeyId"), grant.access_key_id);
    assert_eq!(text("secretAccessKey"), &**grant.secret_access_key);
    assert_eq!(text("sessionToken"), &**grant.session_token);
    assert!(answer["assumedRoleUser"]["arn"].as_str().expect("a role").contains(&grant.account_id));
    assert!(grant.expires_at != UNIX_EPOCH);

    // What cannot be written down is not served.
    let Ok(issued) = Issued::new(grant, SystemTime::now()) else { return };
    let served: Value = serde_json::from_slice(&issued.body).expect("JSON");
    assert_eq!(served["SecretAccessKey"], answer["credentials"]["secretAccessKey"]);
    assert_eq!(served["Token"], answer["credentials"]["sessionToken"]);
    let expiration = served["Expiration"].as_str().expect("a date");
    assert!(expiration.ends_with('Z') && !expiration.contains('+'), "{expiration}");
}
