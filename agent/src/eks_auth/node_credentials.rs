//! The node's own credentials and region.
//!
//! The chain is built by hand: environment → shared file → instance metadata. The SDK's own chain would try the
//! container provider, which aims at 169.254.170.23 and would be steered back to this agent.
use std::env;

use aws_config::{
    Region,
    environment::{EnvironmentVariableCredentialsProvider, EnvironmentVariableRegionProvider},
    imds::{credentials::ImdsCredentialsProvider, region::ImdsRegionProvider},
    meta::{credentials::CredentialsProviderChain, region::ProvideRegion as _},
    profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider},
    provider_config::ProviderConfig,
};
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, error::CredentialsError, future};
use aws_smithy_runtime_api::client::http::SharedHttpClient;

/// Variables that are meant for pods; the agent may have inherited them from its own pod's mutation.
const IGNORED_PREFIXES: [&str; 2] = ["AWS_CONTAINER_", "AWS_WEB_IDENTITY_"];

/// The region: environment, shared file, instance metadata.
pub(super) async fn region(http: &SharedHttpClient) -> Option<Region> {
    let config = ProviderConfig::without_region().with_http_client(http.clone());
    if let Some(region) = EnvironmentVariableRegionProvider::new().region().await {
        return Some(region);
    }
    if let Some(region) = ProfileFileRegionProvider::builder().configure(&config).build().region().await {
        return Some(region);
    }
    ImdsRegionProvider::builder().configure(&config).build().region().await
}

/// The credentials that calls are signed with.
pub(super) fn chain(http: &SharedHttpClient, region: &Region) -> SharedCredentialsProvider {
    for (name, _) in env::vars_os() {
        if let Some(name) = name.to_str().filter(|name| IGNORED_PREFIXES.iter().any(|p| name.starts_with(p))) {
            tracing::warn!(variable = name, "ignored: the agent calls EKS Auth with the node's own credentials");
        }
    }
    let config = ProviderConfig::without_region().with_http_client(http.clone()).with_region(Some(region.clone()));
    let profile = ProfileFileCredentialsProvider::builder()
        .configure(&config)
        // `credential_source = EcsContainer` in a shared file would lead back here too.
        .with_custom_provider("EcsContainer", NotFromPods)
        .build();
    let imds = ImdsCredentialsProvider::builder().configure(&config).build();
    SharedCredentialsProvider::new(
        CredentialsProviderChain::first_try("Environment", EnvironmentVariableCredentialsProvider::new())
            .or_else("SharedFile", profile)
            .or_else("InstanceMetadata", imds),
    )
}

/// Stands where the SDK has its container provider.
#[derive(Debug)]
struct NotFromPods;

impl ProvideCredentials for NotFromPods {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Err(CredentialsError::invalid_configuration(
            "credential_source = EcsContainer cannot be used by the agent that serves containers",
        )))
    }
}
