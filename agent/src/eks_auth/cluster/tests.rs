use std::{io, time::Duration};

use super::{
    super::{
        TIMEOUTS,
        test_server::{Reply, TestServer},
    },
    documents::{kubeconfig, user_data},
    *,
};

const AUTHENTICATOR: &str = "
apiVersion: v1
kind: Config
clusters: [{name: kubernetes, cluster: {server: https://example.eks.amazonaws.com}}]
users:
- name: kubelet
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      command: /usr/bin/aws-iam-authenticator
      args: [token, -i, prod, --region, eu-west-1]
";

const NODE_CONFIG: &str = "---
apiVersion: node.eks.aws/v1alpha1
kind: NodeConfig
spec:
  cluster:
    name: from-node-config
    apiServerEndpoint: https://example.com
";

fn multipart(parts: &[&str]) -> String {
    let mut text = "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"BOUNDARY\"\n\n".to_owned();
    for part in parts {
        text.extend(["--BOUNDARY\n", part, "\n"]);
    }
    text + "--BOUNDARY--\n"
}

#[test]
fn a_kubeconfig_names_the_cluster_that_tokens_are_for() {
    assert_eq!(kubeconfig(AUTHENTICATOR).as_deref(), Some("prod"));
    let aws = AUTHENTICATOR.replace("token, -i, prod", "eks, get-token, --cluster-name, prod");
    assert_eq!(kubeconfig(&aws).as_deref(), Some("prod"));
    let joined = AUTHENTICATOR.replace("-i, prod", "\"--cluster-id=prod\"");
    assert_eq!(kubeconfig(&joined).as_deref(), Some("prod"));
}

#[test]
fn a_kubeconfig_without_one_names_none() {
    for text in [
        "",
        "users: 3",
        ": {",
        "users: [{name: kubelet, user: {client-certificate: /x}}]",
        &AUTHENTICATOR.replace(", -i, prod, --region, eu-west-1", ", -i"),
    ] {
        assert_eq!(kubeconfig(text), None, "{text}");
    }
}

#[test]
fn user_data_names_the_cluster_in_every_form_that_eks_nodes_know() {
    let script = "#!/bin/bash\nset -ex\n# /etc/eks/bootstrap.sh commented\n";
    let cases = [
        (NODE_CONFIG.to_owned(), "from-node-config"),
        (
            r#"{"apiVersion":"node.eks.aws/v1alpha1","kind":"NodeConfig","spec":{"cluster":{"name":"json"}}}"#
                .to_owned(),
            "json",
        ),
        (
            multipart(&[
                "Content-Type: text/x-shellscript\n\n#!/bin/bash\necho hello",
                &format!("Content-Type: application/node.eks.aws\n\n{NODE_CONFIG}"),
            ]),
            "from-node-config",
        ),
        (
            multipart(&[&format!(
                "Content-Type: application/node.eks.aws\nContent-Transfer-Encoding: base64\n\n{}",
                base64::Engine::encode(&base64::prelude::BASE64_STANDARD, NODE_CONFIG)
            )])
            .replace('\n', "\r\n"),
            "from-node-config",
        ),
        (format!("{script}/etc/eks/bootstrap.sh plain --use-max-pods false"), "plain"),
        (
            format!("{script}/etc/eks/bootstrap.sh \\\n  --kubelet-extra-args '--node-labels=a=b --x' \\\n  \"last\""),
            "last",
        ),
        (format!("{script}/etc/eks/bootstrap.sh --b64-cluster-ca=abc= joined"), "joined"),
        ("[settings.kubernetes]\ncluster-name = \"rocket\"\napi-server = \"https://x\"\n".to_owned(), "rocket"),
        ("settings.kubernetes.cluster-name = 'dotted'\n".to_owned(), "dotted"),
    ];
    for (text, name) in cases {
        assert_eq!(user_data(&text).as_deref(), Some(name), "{text}");
    }
}

#[test]
fn user_data_of_another_kind_names_none() {
    for text in [
        "",
        "#!/bin/bash\necho no cluster",
        "kind: Other\nspec: {cluster: {name: x}}",
        "[settings.host]\ncluster-name = 'x'",
        "/etc/eks/bootstrap.sh --only flags",
        "Content-Type: multipart/mixed; boundary=\n\n--\n\nx",
        &multipart(&["no headers"]),
    ] {
        assert_eq!(user_data(text), None, "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_readers_panic(text in ".{0,300}") {
        let _ = (kubeconfig(&text), user_data(&text), user_data(&multipart(&[&text])));
    }
}

/// A metadata service that has these.
async fn metadata(has: &'static [(&'static str, &'static str)]) -> TestServer {
    TestServer::start(move |request| {
        let path = request.head.split(' ').nth(1).unwrap();
        let body = if path == "/latest/api/token" { Some("metadata-token") } else { None };
        let found = body.or_else(|| has.iter().find(|(known, _)| *known == path).map(|(_, body)| *body));
        let headers = [("x-aws-ec2-metadata-token-ttl-seconds", "21600")];
        found.map_or_else(|| Reply::answer(404, &[], ""), |body| Reply::answer(200, &headers, body))
    })
    .await
}

async fn found(server: &TestServer, kubeconfig: io::Result<String>) -> Result<(String, Source), UnknownCluster> {
    let http = HttpClients::without_environment(TIMEOUTS);
    let config = ProviderConfig::without_region().with_http_client(http.metadata);
    let client = imds::Client::builder().configure(&config).max_attempts(2).endpoint(server.url()).unwrap().build();
    find_with(&client, kubeconfig).await
}

fn absent() -> io::Result<String> {
    Err(io::ErrorKind::NotFound.into())
}

#[tokio::test]
async fn sources_are_asked_in_their_order() {
    const TAG: (&str, &str) = ("/latest/meta-data/tags/instance/eks:cluster-name", "tagged");
    const KARPENTER: (&str, &str) = ("/latest/meta-data/tags/instance/eks:eks-cluster-name", "of-karpenter");
    const DATA: (&str, &str) = ("/latest/user-data", "#!/bin/sh\n/etc/eks/bootstrap.sh started");
    let all = metadata(&[TAG, DATA]).await;
    assert_eq!(found(&all, Ok(AUTHENTICATOR.to_owned())).await.unwrap(), ("prod".to_owned(), Source::Kubeconfig));
    assert!(all.requests().is_empty(), "nobody had to be asked");
    assert_eq!(found(&all, absent()).await.unwrap(), ("tagged".to_owned(), Source::Tags));
    let karpenter = metadata(&[KARPENTER, DATA]).await;
    assert_eq!(found(&karpenter, absent()).await.unwrap(), ("of-karpenter".to_owned(), Source::Tags));
    let data = metadata(&[DATA]).await;
    assert_eq!(found(&data, Ok(String::new())).await.unwrap(), ("started".to_owned(), Source::UserData));
}

#[tokio::test]
async fn what_is_no_clusters_name_is_passed_over() {
    let server = metadata(&[
        ("/latest/meta-data/tags/instance/eks:cluster-name", "a/b"),
        ("/latest/user-data", "#!/bin/sh\n/etc/eks/bootstrap.sh ${CLUSTER}"),
    ])
    .await;
    let error = found(&server, Ok(AUTHENTICATOR.replace("prod", "$CLUSTER"))).await.unwrap_err().to_string();
    for part in ["set --cluster-name", "kubeconfig: it names no cluster", "tags", "user data: no NodeConfig"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("CLUSTER}"), "user data may hold secrets: {error}");
}

#[tokio::test]
async fn without_a_metadata_service_the_sentence_says_so() {
    let silent = TestServer::start(|_| Reply::Stall(Vec::new())).await;
    let started = std::time::Instant::now();
    let error = found(&silent, absent()).await.unwrap_err().to_string();
    assert!(error.contains("instance metadata service"), "{error}");
    assert!(started.elapsed() < METADATA_TIMEOUT + Duration::from_millis(500), "asked once: {:?}", started.elapsed());
}
