use std::{fs, path::Path, sync::Arc};

use aws_credential_types::Credentials;
use aws_sdk_eksauth::config::{BehaviorVersion, Region, SharedCredentialsProvider, retry::RetryConfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::{TlsAcceptor, rustls};

use super::{
    super::{
        test_process::is_alone_with,
        test_server::{Reply, TestServer},
    },
    *,
};

const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_millis(500),
    head: Duration::from_millis(700),
    call: Duration::from_millis(1500),
};

fn clients(variables: &[(&str, &str)]) -> HttpClients {
    let value = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
    HttpClients::new(Proxies::read(value).unwrap(), &trust::nobody(), TIMEOUTS, Names::unconfined())
}

/// Calls EKS Auth at `endpoint`; whether anybody answered it with a status does not matter here.
async fn call(http: &SharedHttpClient, endpoint: &str) -> String {
    let credentials = Credentials::new("AKID", "secret", None, None, "test");
    let config = aws_sdk_eksauth::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .retry_config(RetryConfig::disabled())
        .http_client(http.clone())
        .endpoint_url(endpoint)
        .build();
    let client = aws_sdk_eksauth::Client::from_conf(config);
    let error = client.assume_role_for_pod_identity().cluster_name("c").token("t").send().await.unwrap_err();
    super::super::causes::of(&error)
}

async fn server() -> TestServer {
    TestServer::start(|_| Reply::answer(503, &[], "")).await
}

#[tokio::test]
async fn plain_http_goes_to_its_proxy_with_the_operators_password() {
    let proxy = server().await;
    let url = format!("http://user:pass%20word@{}", proxy.address);
    let http = clients(&[("HTTP_PROXY", &url), ("HTTPS_PROXY", "http://127.0.0.1:9")]);
    call(&http.services, "http://eks-auth.test").await;
    let head = proxy.requests().remove(0).head;
    assert!(
        head.starts_with("POST http://eks-auth.test/clusters/c/assume-role-for-pod-identity HTTP/1.1\r\n"),
        "{head}"
    );
    // user:pass word
    assert!(head.to_ascii_lowercase().contains("proxy-authorization: basic dxnlcjpwyxnzihdvcmq=\r\n"), "{head}");
}

#[tokio::test]
async fn https_goes_through_a_tunnel_of_its_proxy() {
    let proxy = server().await;
    let http = clients(&[("https_proxy", &proxy.url()), ("http_proxy", "http://127.0.0.1:9")]);
    call(&http.services, "https://eks-auth.test").await;
    assert!(proxy.requests().remove(0).head.starts_with("CONNECT eks-auth.test:443 HTTP/1.1\r\n"));
}

#[tokio::test]
async fn exceptions_are_called_without_the_proxy() {
    let (proxy, endpoint) = (server().await, server().await);
    // A name for 127.0.0.1 that needs no name server and is no address to whoever compares addresses.
    let url = format!("http://127.1:{}", endpoint.address.port());
    let http = clients(&[("HTTP_PROXY", &proxy.url())]);
    call(&http.services, &url).await;
    assert_eq!((proxy.connections(), endpoint.connections()), (1, 0));
    let http = clients(&[("HTTP_PROXY", &proxy.url()), ("NO_PROXY", "example.com,127.1")]);
    call(&http.services, &url).await;
    assert_eq!((proxy.connections(), endpoint.connections()), (1, 1));
}

#[tokio::test]
async fn a_proxy_sees_neither_metadata_nor_loopback() {
    let (proxy, endpoint) = (server().await, server().await);
    let http = clients(&[("HTTP_PROXY", &proxy.url()), ("HTTPS_PROXY", &proxy.url())]);
    call(&http.services, &endpoint.url()).await;
    call(&http.metadata, &format!("http://127.1:{}", endpoint.address.port())).await;
    assert_eq!((proxy.connections(), endpoint.connections()), (0, 2));

    let local = ["http://169.254.169.254/latest", "http://[fd00:ec2::254]/", "http://[::ffff:169.254.169.254]/"];
    let elsewhere = ["http://10.0.0.1/", "http://[fd00:ec3::254]/", "https://eks-auth.eu-west-1.api.aws/", "http://x/"];
    assert!(local.iter().all(|url| stays_on_the_node(&url.parse().unwrap())));
    assert!(!elsewhere.iter().any(|url| stays_on_the_node(&url.parse().unwrap())));
}

#[tokio::test]
async fn the_operators_bundle_is_trusted_and_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let authority = || {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (ours, others) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &ours).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let server = TestServer::with(Some(acceptor), |_| Reply::answer(503, &[], "")).await;
    let url = format!("https://localhost:{}", server.address.port());

    let call_trusting = async |pem: String| {
        let bundle = directory.path().join("bundle.pem");
        fs::write(&bundle, pem).unwrap();
        let trust = trust::context(Some(&bundle), true).unwrap();
        call(&HttpClients::new(Proxies::default(), &trust, TIMEOUTS, Names::unconfined()).services, &url).await
    };
    let said = call_trusting(others.pem()).await;
    assert!(said.contains("invalid peer certificate") && server.requests().is_empty(), "{said}");
    // What real bundles hold besides: other certificates, text, and certificates that rustls does not take.
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    call_trusting(format!("# a bundle\n{}{broken}{}", others.pem(), ours.pem())).await;
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_bundle_without_certificates_is_named_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle.pem");
    let error = trust::context(Some(&path), false).unwrap_err();
    assert!(
        error.to_string().starts_with(&format!("cannot read the certificates in AWS_CA_BUNDLE={}", path.display()))
    );
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for content in ["", "not PEM", key, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        fs::write(&path, content).unwrap();
        let error = trust::context(Some(&path), false).unwrap_err().to_string();
        assert!(error.contains("holds no certificate that can be used"), "{error}");
    }
}

#[test]
fn an_image_without_certificates_is_told_so_at_the_start() {
    let nothing = Path::new("/nonexistent");
    let name = "an_image_without_certificates_is_told_so_at_the_start";
    if !is_alone_with(&[("SSL_CERT_FILE", nothing), ("SSL_CERT_DIR", nothing)], module_path!(), name) {
        return;
    }
    for endpoint in [None, Some("https://eks-auth.test")] {
        let error =
            HttpClients::from_env(Trust::read(endpoint), TIMEOUTS, Names::unconfined()).unwrap_err().to_string();
        assert!(error.starts_with("there are no CA certificates to check EKS Auth's server against"), "{error}");
    }
    assert!(HttpClients::from_env(Trust::read(Some("http://eks-auth.test")), TIMEOUTS, Names::unconfined()).is_ok());
}

#[test]
fn a_proxy_of_the_environment_is_checked_at_the_start() {
    let name = "a_proxy_of_the_environment_is_checked_at_the_start";
    if !is_alone_with(&[("HTTPS_PROXY", Path::new("ftp://user:hunter2@proxy"))], module_path!(), name) {
        return;
    }
    let error =
        HttpClients::from_env(Trust::read(Some("http://eks-auth.test")), TIMEOUTS, Names::unconfined()).unwrap_err();
    assert!(matches!(error, SetupError::Proxy(_)), "{error}");
}

#[test]
fn a_bundle_of_the_environment_is_checked_at_the_start() {
    let name = "a_bundle_of_the_environment_is_checked_at_the_start";
    if !is_alone_with(&[("AWS_CA_BUNDLE", Path::new("/nonexistent/bundle.pem"))], module_path!(), name) {
        return;
    }
    let error =
        HttpClients::from_env(Trust::read(Some("http://eks-auth.test")), TIMEOUTS, Names::unconfined()).unwrap_err();
    assert!(matches!(error, SetupError::Trust(TrustError::Unreadable { .. })), "{error}");
}
