use std::{fs, path::Path, time::Instant};

use aws_config::imds::Client;

use super::{
    super::{
        TIMEOUTS,
        test_process::{is_alone_with, variable},
        test_server::{Reply, TestServer},
    },
    *,
};

fn write(path: &Path, key: &str) {
    let new = path.with_extension("new");
    fs::write(&new, format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")).unwrap();
    fs::rename(&new, path).unwrap();
}

async fn key(credentials: &NodeCredentials) -> String {
    credentials.provide_credentials().await.unwrap().access_key_id().to_owned()
}

#[tokio::test]
async fn a_rotated_credentials_file_is_used_by_the_next_call() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("credentials");
    let variables: [(&str, &Path); 2] = [("AWS_SHARED_CREDENTIALS_FILE", &file), ("HOME", Path::new("/nonexistent"))];
    if !is_alone_with(&variables, module_path!(), "a_rotated_credentials_file_is_used_by_the_next_call") {
        return;
    }
    let file = &variable("AWS_SHARED_CREDENTIALS_FILE");
    let http = HttpClients::from_env(
        crate::eks_auth::Trust::read(Some("http://localhost")),
        TIMEOUTS,
        crate::eks_auth::Names::unconfined(),
    )
    .unwrap();
    let region = Region::new("eu-west-1");
    let (rotated, fixed) = (chain(&http, &region, true), chain(&http, &region, false));
    write(file, "AKID1");
    assert_eq!((&*key(&rotated).await, &*key(&fixed).await), ("AKID1", "AKID1"));
    for number in 2..5 {
        let new = format!("AKID{number}");
        write(file, &new);
        assert_eq!((&*key(&rotated).await, &*key(&fixed).await), (&*new, "AKID1"));
    }
    // A writer that does not rename: half of it is there for a moment.
    fs::write(file, "[default]\naws_access_key_id = AK").unwrap();
    assert_eq!(key(&rotated).await, "AKID4");
    write(file, "AKID5");
    assert_eq!(key(&rotated).await, "AKID5");
    fs::remove_file(file).unwrap();
    assert_eq!(key(&rotated).await, "AKID5");
}

#[tokio::test]
async fn the_files_are_found_below_the_home_directory_too() {
    let home = tempfile::tempdir().unwrap();
    if !is_alone_with(&[("HOME", home.path())], module_path!(), "the_files_are_found_below_the_home_directory_too") {
        return;
    }
    let directory = variable("HOME").join(".aws");
    fs::create_dir(&directory).unwrap();
    let http = HttpClients::from_env(
        crate::eks_auth::Trust::read(Some("http://localhost")),
        TIMEOUTS,
        crate::eks_auth::Names::unconfined(),
    )
    .unwrap();
    let credentials = chain(&http, &Region::new("eu-west-1"), true);
    for new in ["AKID1", "AKID2"] {
        write(&directory.join("credentials"), new);
        assert_eq!(key(&credentials).await, new);
    }
    fs::write(directory.join("config"), "[default]\nregion = eu-central-1\n").unwrap();
    assert_eq!(region(&http).await.unwrap().0, Region::new("eu-central-1"));
}

#[tokio::test]
async fn the_container_provider_is_never_asked() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config");
    let variables: [(&str, &Path); 3] = [
        ("AWS_CONFIG_FILE", &config),
        ("HOME", Path::new("/nonexistent")),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", Path::new("http://127.0.0.1:9/v1/credentials")),
    ];
    if !is_alone_with(&variables, module_path!(), "the_container_provider_is_never_asked") {
        return;
    }
    fs::write(
        variable("AWS_CONFIG_FILE"),
        "[default]\nrole_arn = arn:aws:iam::1:role/x\ncredential_source = EcsContainer\n",
    )
    .unwrap();
    let http = HttpClients::from_env(
        crate::eks_auth::Trust::read(Some("http://localhost")),
        TIMEOUTS,
        crate::eks_auth::Names::unconfined(),
    )
    .unwrap();
    let error = chain(&http, &Region::new("eu-west-1"), false).provide_credentials().await.unwrap_err();
    let said = super::super::causes::of(&error);
    assert!(said.contains("EcsContainer cannot be used by the agent"), "{said}");
}

#[tokio::test]
async fn a_metadata_service_that_does_not_answer_holds_nobody_for_long() {
    let silent = TestServer::start(|_| Reply::Stall(Vec::new())).await;
    let http = HttpClients::without_environment(TIMEOUTS);
    let config = ProviderConfig::without_region().with_http_client(http.metadata);
    let client = Client::builder().endpoint(silent.url()).unwrap();
    let start = Instant::now();
    assert!(Metadata::new(&config, client).provide_credentials().await.is_err());
    assert!(silent.connections() > 0);
    assert!(start.elapsed() < METADATA_TIMEOUT + Duration::from_millis(500), "{:?}", start.elapsed());
}

#[tokio::test]
async fn the_metadata_service_is_asked_for_the_nodes_role() {
    let metadata = TestServer::start(|request| {
        let body = match request.head.split(' ').nth(1).unwrap() {
            "/latest/api/token" => "metadata-token",
            "/latest/meta-data/iam/security-credentials/" => "node",
            _ => {
                r#"{"Code": "Success", "LastUpdated": "2026-01-01T00:00:00Z", "Type": "AWS-HMAC", "AccessKeyId": "ASIANODE",
                    "SecretAccessKey": "secret", "Token": "session", "Expiration": "2096-01-01T00:00:00Z"}"#
            }
        };
        Reply::answer(200, &[("x-aws-ec2-metadata-token-ttl-seconds", "21600")], body)
    })
    .await;
    let http = HttpClients::without_environment(TIMEOUTS);
    let config = ProviderConfig::without_region().with_http_client(http.metadata);
    let client = Client::builder().endpoint(metadata.url()).unwrap();
    let credentials = NodeCredentials::new(Metadata::new(&config, client), Watched::nothing());
    for _ in 0..3 {
        assert_eq!(key(&credentials).await, "ASIANODE");
    }
    assert_eq!(metadata.requests().len(), 3, "token, role, credentials: each once");
}
