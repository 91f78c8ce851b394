//! Connections to the admin socket, with whatever bytes come on them: for fuzz targets and tests only.
#![expect(clippy::expect_used, reason = "a failed property is told by a panic")]
use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    runtime::Runtime,
    task::yield_now,
};

use super::{Admin, Routes};
use crate::{
    credentials::PresentedToken,
    fuzzing::{
        answers,
        node::{self, POD, SECRETS},
    },
    health::{Liveness, Readiness},
    metrics::Metrics,
    operator::Operator,
    pods::Pods,
    token::{ServiceAccountToken, TokenDigest},
};

/// Longer than what is sent and answered.
const BUFFER: usize = 1024 * 1024;

/// What an operator's tool sends. Whatever it is, it is answered with right lengths, in the forms that are documented, and
/// without a secret of the pods, which all have credentials.
pub fn admin(input: &[u8]) {
    thread_local!(static NODE: Node = Node::new());
    NODE.with(|node| {
        for routes in [Routes::All, Routes::Health, Routes::Metrics] {
            node.check(input, routes);
        }
    });
}

struct Node {
    runtime: Runtime,
    admin: Admin,
    pods: Arc<Pods>,
    token: String,
}

impl Node {
    fn new() -> Self {
        let runtime = node::runtime();
        let metrics = Arc::new(Metrics::new());
        let pods = node::pods(&runtime, &metrics);
        let admin = Admin::new(Readiness::default(), Liveness::default(), metrics);
        admin.know(Operator::new(Arc::clone(&pods), node::view()));
        let node = Self { runtime, admin, pods, token: node::token(POD) };
        let pod = node.pods.add(POD.parse().expect("a UID"));
        node.pods.add("00000000-0000-4000-8000-000000000000".parse().expect("a UID"));
        let claims =
            ServiceAccountToken::parse(&node.token).and_then(|token| token.validate(std::time::SystemTime::now()));
        let presented = PresentedToken::new(&node.token, TokenDigest::of(&node.token), claims.expect("a good token"));
        node.runtime.block_on(pod.credentials().obtain(presented)).expect("credentials");
        // The control: what must not be found elsewhere is found here.
        let status = node.runtime.block_on(node.exchange(b"GET /status HTTP/1.1\r\n\r\n", Routes::All));
        assert!(String::from_utf8_lossy(&status).contains(POD), "{status:?}");
        node
    }

    fn check(&self, input: &[u8], routes: Routes) {
        let answers = answers::read(&self.runtime.block_on(self.exchange(input, routes)));
        for answer in &answers {
            let text = String::from_utf8_lossy(&answer.body);
            assert!(matches!(answer.status, 100 | 200 | 400 | 404 | 405 | 413 | 431), "{}: {text}", answer.status);
            assert_eq!(answer.header("allow").is_some(), answer.status == 405, "{answer:?}");
            for secret in SECRETS.iter().copied().chain([&*self.token, "eyJ"]) {
                assert!(!text.contains(secret), "{text}");
            }
            if !answer.body.is_empty() && answer.header("content-type") == Some("application/json") {
                serde_json::from_slice::<serde_json::Value>(&answer.body).expect("JSON");
            }
        }
        if routes != Routes::All {
            assert!(!answers.iter().any(|answer| String::from_utf8_lossy(&answer.body).contains(POD)), "{answers:?}");
        }
    }

    async fn exchange(&self, input: &[u8], routes: Routes) -> Vec<u8> {
        let (mut client, accepted) = duplex(BUFFER);
        let mut answer = Vec::new();
        let asking = async {
            client.write_all(input).await.expect("room for it");
            // A client that hangs up at once is not answered.
            for _ in 0..16 {
                yield_now().await;
            }
            client.shutdown().await.expect("an end");
            client.read_to_end(&mut answer).await.expect("what was answered");
        };
        tokio::join!(self.admin.clone().serve(accepted, routes), asking);
        answer
    }
}
