//! The node's own credentials and region.
//!
//! The chain is built by hand: environment → shared file → instance metadata. The SDK's own chain would try the
//! container provider, which aims at 169.254.170.23 and would be steered back to this agent.
use std::{env, time::Duration};

use aws_config::{
    Region,
    environment::{EnvironmentVariableCredentialsProvider, EnvironmentVariableRegionProvider},
    imds::{self, credentials::ImdsCredentialsProvider, region::ImdsRegionProvider},
    meta::{credentials::CredentialsProviderChain, region::ProvideRegion as _},
    profile::ProfileFileRegionProvider,
    provider_config::ProviderConfig,
};
use aws_credential_types::provider::{ProvideCredentials, error::CredentialsError, future};
use tokio::time::timeout;

use super::http::HttpClients;

mod kept;
mod shared_file;

pub(super) use kept::NodeCredentials;
pub(super) use shared_file::Watched;

use shared_file::SharedFile;

/// Variables that are meant for pods; the agent may have inherited them from its own pod's mutation.
const IGNORED_PREFIXES: [&str; 2] = ["AWS_CONTAINER_", "AWS_WEB_IDENTITY_"];

/// A metadata service that does not answer (a hop limit of 1, another cloud) holds a fetch no longer than this. It
/// answers within milliseconds otherwise.
pub(super) const METADATA_TIMEOUT: Duration = Duration::from_secs(2);

/// The region and who tells it: environment, shared file, instance metadata.
pub(super) async fn region(http: &HttpClients) -> Option<(Region, &'static str)> {
    let config = ProviderConfig::without_region().with_http_client(http.services.clone());
    if let Some(region) = told(EnvironmentVariableRegionProvider::new().region().await) {
        return Some((region, "the environment"));
    }
    // The SDK stops at AWS_REGION even when that is set to nothing, as a chart's unfilled value sets it.
    if let Some(region) = told(env::var("AWS_DEFAULT_REGION").ok().map(Region::new)) {
        return Some((region, "the environment"));
    }
    if let Some(region) = told(ProfileFileRegionProvider::builder().configure(&config).build().region().await) {
        return Some((region, "the shared configuration file"));
    }
    let config = config.with_http_client(http.metadata.clone());
    let region = told(ImdsRegionProvider::builder().configure(&config).build().region().await)?;
    Some((region, "the instance metadata service"))
}

/// A region that is not empty.
fn told(region: Option<Region>) -> Option<Region> {
    region.filter(|region| !region.as_ref().trim().is_empty())
}

/// The credentials that calls are signed with. With `rotate` the shared files are looked at for each call.
pub(super) fn chain(http: &HttpClients, region: &Region, rotate: bool) -> NodeCredentials {
    for (name, _) in env::vars_os() {
        if let Some(name) = name.to_str().filter(|name| IGNORED_PREFIXES.iter().any(|p| name.starts_with(p))) {
            tracing::warn!(variable = name, "ignored: the agent calls EKS Auth with the node's own credentials");
        }
    }
    let shared_file = SharedFile::new(http.services.clone(), region.clone());
    let config = ProviderConfig::without_region().with_http_client(http.metadata.clone());
    let metadata = Metadata::new(&config, imds::Client::builder());
    let watched = if rotate { Watched::shared_files(|name| env::var_os(name)) } else { Watched::nothing() };
    NodeCredentials::new(
        CredentialsProviderChain::first_try("Environment", EnvironmentVariableCredentialsProvider::new())
            .or_else("SharedFile", shared_file)
            .or_else("InstanceMetadata", metadata),
        watched,
    )
}

/// The instance metadata service, given up after [`METADATA_TIMEOUT`]: the SDK's own bounds add up to much more.
#[derive(Debug)]
struct Metadata(ImdsCredentialsProvider);

impl Metadata {
    fn new(config: &ProviderConfig, client: imds::client::Builder) -> Self {
        let client = client.configure(config).max_attempts(2).build();
        Self(ImdsCredentialsProvider::builder().configure(config).imds_client(client).build())
    }
}

impl ProvideCredentials for Metadata {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let answer = timeout(METADATA_TIMEOUT, self.0.provide_credentials()).await;
            answer.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(METADATA_TIMEOUT)))
        })
    }
}

#[cfg(test)]
mod tests;
