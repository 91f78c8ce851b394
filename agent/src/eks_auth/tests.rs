//! Calls through the real SDK to a server on loopback: what its answers come to.
use std::{
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};

use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, error::CredentialsError, future},
};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _};

use super::{
    http::MAX_ANSWER_BYTES,
    node_credentials::Watched,
    test_server::{Reply, TestServer},
    *,
};
use crate::token::{Claims, TokenDigest};

/// Short enough for a test that waits for them, long enough for a busy machine's loopback.
const SHORT: Timeouts = Timeouts {
    connect: Duration::from_millis(500),
    head: Duration::from_millis(700),
    call: Duration::from_millis(1500),
};

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOlsicG9kcy5la3MiXX0.c2lnbmF0dXJl";
const NODE_SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const POD_SECRET: &str = "9a8B7c6D5e4F3a2B1c0D9e8F7a6B5c4D3e2F1a0B";
const POD_SESSION: &str = "IQoJb3JpZ2luX2VjEJr1234567890abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN=";

const ANSWER: &str = r#"{
    "subject": {"namespace": "default", "serviceAccount": "app"},
    "audience": "pods.eks.amazonaws.com",
    "podIdentityAssociation": {"associationArn": "arn:aws:eks:eu-west-1:123456789012:podidentityassociation/c/a-1",
                               "associationId": "a-1"},
    "assumedRoleUser": {"arn": "arn:aws:sts::123456789012:assumed-role/app/s", "assumeRoleId": "AROA:s"},
    "credentials": {"accessKeyId": "ASIAPOD", "secretAccessKey": "9a8B7c6D5e4F3a2B1c0D9e8F7a6B5c4D3e2F1a0B",
                    "sessionToken": "IQoJb3JpZ2luX2VjEJr1234567890abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN=",
                    "expiration": 1790000000.25}
}"#;

/// Counts how often it is asked.
#[derive(Clone, Debug, Default)]
struct Counting(Arc<AtomicUsize>);

impl ProvideCredentials for Counting {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        self.0.fetch_add(1, Ordering::Relaxed);
        future::ProvideCredentials::ready(Ok(Credentials::new("AKIDNODE", NODE_SECRET, None, None, "test")))
    }
}

/// A node without credentials.
#[derive(Debug)]
struct Nobody;

impl ProvideCredentials for Nobody {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Err(CredentialsError::not_loaded("there are none")))
    }
}

fn over(endpoint: &str, source: impl ProvideCredentials + 'static) -> EksAuth {
    let http = HttpClients::without_environment(SHORT);
    let credentials = NodeCredentials::new(source, Watched::nothing());
    EksAuth::over(http.services, Region::new("eu-west-1"), credentials, "production", Some(endpoint), SHORT)
}

async fn call(eks_auth: &EksAuth) -> Result<Grant, Refusal> {
    let claims = Claims {
        pod_uid: "0c5f4d2e-97f1-4e58-8f4a-1d2f3a4b5c6d".parse().unwrap(),
        pod_name: None,
        namespace: "default".into(),
        service_account: "app".into(),
        expires_at: UNIX_EPOCH + Duration::from_secs(4_000_000_000),
    };
    eks_auth.assume_role(Arc::new(PresentedToken::new(TOKEN, TokenDigest::of(TOKEN), claims))).await
}

async fn refusal(reply: Reply) -> Refusal {
    let server = TestServer::start(move |_| reply.clone()).await;
    match call(&over(&server.url(), Counting::default())).await {
        Ok(_) => panic!("the call succeeded"),
        Err(refusal) => refusal,
    }
}

#[tokio::test]
async fn an_answer_becomes_a_grant() {
    let server = TestServer::start(|_| Reply::answer(200, &[], ANSWER)).await;
    let grant = call(&over(&server.url(), Counting::default())).await.unwrap();
    assert_eq!((&*grant.access_key_id, &**grant.secret_access_key), ("ASIAPOD", POD_SECRET));
    assert_eq!(&**grant.session_token, POD_SESSION);
    assert_eq!((&*grant.account_id, &*grant.association_id), ("123456789012", "a-1"));
    assert_eq!(grant.expires_at, UNIX_EPOCH + Duration::from_millis(1_790_000_000_250));

    let request = server.requests().remove(0);
    assert!(
        request.head.starts_with("POST /clusters/production/assume-role-for-pod-identity HTTP/1.1\r\n"),
        "{request:?}"
    );
    assert!(request.head.contains("/eu-west-1/eks-auth/aws4_request"), "{request:?}");
    assert_eq!(request.body, format!(r#"{{"token":"{TOKEN}"}}"#));
}

#[tokio::test]
async fn an_answer_for_another_service_account_is_refused() {
    let other = ANSWER.replace(r#""serviceAccount": "app""#, r#""serviceAccount": "other""#);
    assert_eq!(refusal(Reply::answer(200, &[], &other)).await, Refusal::SubjectMismatch);
}

#[tokio::test]
async fn an_answer_that_lacks_something_is_an_outage() {
    for part in ["credentials", "assumedRoleUser", "expiration", "sessionToken", "secretAccessKey", "accessKeyId"] {
        let lacking = ANSWER.replace(&format!("\"{part}\""), "\"somethingElse\"");
        let refusal = refusal(Reply::answer(200, &[], &lacking)).await;
        assert_eq!(refusal.reason(), "eks_auth_unavailable", "{part}");
    }
    let refusal = refusal(Reply::answer(200, &[], "<html>a proxy's page</html>")).await;
    assert_eq!(refusal, Refusal::EksAuthUnavailable(Outage::Server));
}

#[tokio::test]
async fn the_name_of_an_error_is_found_in_every_form_that_services_use() {
    let body = r#"{"message":"No association"}"#;
    let id = ("x-amzn-RequestId", "id-1");
    let named = [
        Reply::answer(404, &[id, ("X-Amzn-ErrorType", "ResourceNotFoundException")], body),
        Reply::answer(
            404,
            &[id, ("X-Amzn-ErrorType", "ResourceNotFoundException:http://internal.amazon.com/coral/com.amazon.x/")],
            body,
        ),
        Reply::answer(404, &[id, ("x-amzn-errortype", "com.amazonaws.eksauth#ResourceNotFoundException")], body),
        Reply::answer(404, &[id], r#"{"__type":"ResourceNotFoundException","message":"No association"}"#),
        Reply::answer(
            404,
            &[id],
            r#"{"__type":"com.amazonaws.eksauth#ResourceNotFoundException","message":"No association"}"#,
        ),
        Reply::answer(404, &[id], r#"{"code":"ResourceNotFoundException","message":"No association"}"#),
        Reply::answer(404, &[id], r#"{"code":"ResourceNotFoundException","Message":"No association"}"#),
    ];
    for (form, reply) in named.into_iter().enumerate() {
        let refusal = refusal(reply).await;
        assert_eq!(refusal.reason(), "eks_auth_refused", "form {form}");
        assert_eq!(
            refusal.message(),
            "[id-1]: (ResourceNotFoundException): No association, fault: client",
            "form {form}"
        );
        assert_eq!(refusal.status().as_u16(), 404, "form {form}");
    }
}

#[tokio::test]
async fn each_error_is_somebodys_fault() {
    let denied =
        "User: arn:aws:sts::1:assumed-role/node/i-0 is not authorized to perform: eks-auth:AssumeRoleForPodIdentity";
    let security = "The security token included in the request is expired";
    let table: [(u16, &str, &str, &str, u16); 14] = [
        (400, "AccessDeniedException", "cannot assume the role", "eks_auth_refused", 400),
        (400, "ExpiredTokenException", "Token is expired", "eks_auth_refused", 400),
        (400, "InvalidParameterException", "x", "eks_auth_refused", 400),
        (400, "InvalidRequestException", "x", "eks_auth_refused", 400),
        (400, "InvalidTokenException", "x", "eks_auth_refused", 400),
        (403, "AccessDeniedException", denied, "node_credentials", 503),
        (403, "ExpiredTokenException", security, "node_credentials", 503),
        (
            403,
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
            "node_credentials",
            503,
        ),
        (403, "InvalidSignatureException", "Signature expired: 1 is now earlier than 2", "node_credentials", 503),
        (403, "MissingAuthenticationTokenException", "Missing Authentication Token", "node_credentials", 503),
        (429, "ThrottlingException", "Rate exceeded", "eks_auth_throttled", 503),
        (429, "", "", "eks_auth_throttled", 503),
        (500, "InternalServerException", "x", "eks_auth_unavailable", 503),
        (503, "ServiceUnavailableException", "x", "eks_auth_unavailable", 503),
    ];
    for (status, code, message, reason, answered) in table {
        let body = format!(r#"{{"message":"{message}"}}"#);
        let refusal = refusal(Reply::answer(status, &[("X-Amzn-ErrorType", code)], &body)).await;
        assert_eq!((refusal.reason(), refusal.status().as_u16()), (reason, answered), "{status} {code}: {message}");
    }
    // A load balancer's, which no service wrote.
    let refusal = refusal(Reply::answer(502, &[("Content-Type", "text/html")], "<html>Bad Gateway</html>")).await;
    assert_eq!(refusal, Refusal::EksAuthUnavailable(Outage::Server));
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_cannot_be_reached() {
    let gone = TestServer::start(|_| Reply::Send(Vec::new())).await.url();
    tokio::task::yield_now().await;
    let refusal = call(&over(&gone, Counting::default())).await.err();
    assert_eq!(refusal, Some(Refusal::EksAuthUnavailable(Outage::Transport)));
}

#[tokio::test]
async fn an_answer_that_does_not_come_or_does_not_end_is_a_timeout() {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{{", ANSWER.len());
    for reply in [Reply::Stall(Vec::new()), Reply::Stall(head.into_bytes())] {
        let start = Instant::now();
        assert_eq!(refusal(reply).await, Refusal::EksAuthUnavailable(Outage::Timeout));
        assert!(start.elapsed() < SHORT.call + Duration::from_secs(1), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_not_read() {
    let longest = format!("{ANSWER}{}", " ".repeat(MAX_ANSWER_BYTES - ANSWER.len()));
    let server = TestServer::start({
        let longest = longest.clone();
        move |_| Reply::answer(200, &[], &longest)
    })
    .await;
    assert!(call(&over(&server.url(), Counting::default())).await.is_ok());

    let too_long = Refusal::EksAuthUnavailable(Outage::Server);
    assert_eq!(refusal(Reply::answer(200, &[], &format!("{longest} "))).await, too_long);
    // Without a length: what is read must stop by itself. The server would wait for ever.
    let mut endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..=MAX_ANSWER_BYTES / 4096 {
        endless.extend_from_slice(b"1000\r\n");
        endless.extend_from_slice(&[b' '; 4096]);
        endless.extend_from_slice(b"\r\n");
    }
    assert_eq!(refusal(Reply::Stall(endless)).await, too_long);
}

#[tokio::test]
async fn calls_share_a_connection_and_the_nodes_credentials() {
    let server = TestServer::start(|_| Reply::answer(200, &[], ANSWER)).await;
    let asked = Counting::default();
    let eks_auth = over(&server.url(), asked.clone());
    for _ in 0..5 {
        call(&eks_auth).await.unwrap();
    }
    assert_eq!((server.requests().len(), server.connections()), (5, 1));
    assert_eq!(asked.0.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_node_without_credentials_calls_nobody() {
    let server = TestServer::start(|_| Reply::answer(200, &[], ANSWER)).await;
    let eks_auth = over(&server.url(), Nobody);
    for _ in 0..2 {
        assert_eq!(call(&eks_auth).await.err(), Some(Refusal::NodeCredentials));
    }
    assert_eq!(server.connections(), 0);
}

/// Kept while anything is captured. With a single subscriber in the process, a log line that is first come by in another
/// test's thread, where there is none, is switched off for all threads: tracing asks that thread alone.
static SECOND_SUBSCRIBER: LazyLock<tracing::Dispatch> =
    LazyLock::new(|| tracing::Dispatch::new(tracing_subscriber::registry()));

/// Runs `work` and returns what was logged meanwhile, as verbosely as operators can ask for.
async fn logged<T>(work: impl Future<Output = T>) -> (T, String) {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    LazyLock::force(&SECOND_SUBSCRIBER);
    let lines = Lines::default();
    let writer = lines.clone();
    let filter =
        Targets::new().with_default(LevelFilter::INFO).with_target(env!("CARGO_CRATE_NAME"), LevelFilter::TRACE);
    let subscriber = tracing_subscriber::registry()
        .with(filter)
        .with(tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone()));
    let guard = tracing::subscriber::set_default(subscriber);
    let result = work.await;
    drop(guard);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    (result, text)
}

#[tokio::test]
async fn no_secret_reaches_the_log_whatever_is_answered() {
    let secrets = [TOKEN, NODE_SECRET, POD_SECRET, POD_SESSION];
    let quoted = secrets.join("' and '");
    let quoting = format!(r#"{{"message":"what is this: '{quoted}'"}}"#);
    let error = |status, code| Reply::answer(status, &[("X-Amzn-ErrorType", code)], &quoting);
    let replies = [
        error(403, "UnrecognizedClientException"),
        error(400, "AccessDeniedException"),
        error(429, "ThrottlingException"),
        error(500, "InternalServerException"),
        error(500, TOKEN),
        error(418, POD_SECRET),
        // Not what the model says, with the secrets in it.
        Reply::answer(200, &[], &format!("{{\"credentials\":\"{quoted}")),
        Reply::answer(200, &[], &ANSWER.replace("1790000000.25", &format!("\"{POD_SECRET}\""))),
        Reply::answer(200, &[], &ANSWER.replace("\"expiration\"", "\"x\"")),
        Reply::answer(200, &[], &ANSWER.replace("\"app\"", "\"other\"")),
        Reply::Stall(format!("HTTP/1.1 {POD_SECRET}\r\n").into_bytes()),
        Reply::Stall(format!("HTTP/1.1 200 OK\r\n{POD_SECRET} {TOKEN}\r\n\r\n").into_bytes()),
    ];
    for (number, reply) in replies.into_iter().enumerate() {
        let (refusal, log) = logged(refusal(reply)).await;
        let said = format!("{log}\n{refusal}\n{refusal:?}");
        for secret in secrets {
            let piece = secret.get(..24).unwrap();
            assert!(!log.contains(piece), "reply {number}: {log}");
        }
        assert!(!said.contains("c2lnbmF0dXJl"), "reply {number}: {said}");
        let about_the_pod = matches!(refusal, Refusal::EksAuthRefused(_));
        assert_eq!(log.contains("EKS Auth"), !about_the_pod, "reply {number} is logged: {log}");
    }
}

#[tokio::test]
async fn debug_output_shows_no_secret() {
    let server = TestServer::start(|_| Reply::answer(200, &[], ANSWER)).await;
    let eks_auth = over(&server.url(), Counting::default());
    let grant = call(&eks_auth).await.unwrap();
    let text = format!("{eks_auth:?} {grant:?}");
    for secret in [TOKEN, NODE_SECRET, POD_SECRET, POD_SESSION] {
        assert!(!text.contains(secret), "{text}");
    }
}
