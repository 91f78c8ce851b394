//! EKS Auth, through AWS's SDK: one call exchanges a service account token for credentials.
use std::{sync::Arc, time::Duration};

use aws_sdk_eksauth::{
    Client,
    config::{BehaviorVersion, Region, SharedCredentialsProvider, retry::RetryConfig, timeout::TimeoutConfig},
    operation::assume_role_for_pod_identity::AssumeRoleForPodIdentityOutput,
};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use zeroize::Zeroizing;

use crate::{
    credentials::{Grant, PresentedToken, Upstream, UpstreamFuture},
    refusal::{Outage, Refusal},
};

mod failure;
mod node_credentials;

/// Longer than any healthy answer; no client waits for it (they are sent away after 0.9 s), only the cache does.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The cluster's EKS Auth.
#[derive(Clone, Debug)]
pub struct EksAuth {
    client: Client,
    cluster: Arc<str>,
}

/// EKS Auth cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Nobody says which region this is.
    #[error(
        "the AWS region is not known: set AWS_REGION, or let the agent reach the instance metadata service \
         (hostNetwork, or a hop limit of 2)"
    )]
    NoRegion,
}

/// EKS Auth's answer lacks something that it always has.
#[derive(Debug, thiserror::Error)]
enum Incomplete {
    #[error("it holds no credentials")]
    Credentials,
    #[error("its expiration is no date")]
    Expiration,
    #[error("it does not say which role was assumed")]
    Role,
}

impl EksAuth {
    /// Sets the client up; makes no call to EKS Auth. `endpoint` replaces the region's own.
    pub async fn new(cluster: &str, endpoint: Option<&str>) -> Result<Self, SetupError> {
        let http =
            aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let region = node_credentials::region(&http).await.ok_or(SetupError::NoRegion)?;
        let credentials = node_credentials::chain(&http, &region);
        tracing::info!(%region, endpoint = endpoint.unwrap_or("the region's own"), "EKS Auth is set up");
        Ok(Self { client: client(http, region, credentials, endpoint), cluster: cluster.into() })
    }
}

fn client(
    http: SharedHttpClient,
    region: Region,
    credentials: SharedCredentialsProvider,
    endpoint: Option<&str>,
) -> Client {
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_timeout(CALL_TIMEOUT).build();
    let mut config = aws_sdk_eksauth::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(region)
        .credentials_provider(credentials)
        .http_client(http)
        .timeout_config(timeouts)
        // The pod's worker decides when to ask again: retries in here would multiply its calls.
        .retry_config(RetryConfig::disabled());
    if let Some(endpoint) = endpoint {
        config = config.endpoint_url(endpoint);
    }
    Client::from_conf(config.build())
}

impl Upstream for EksAuth {
    fn assume_role(&self, token: Arc<PresentedToken>) -> UpstreamFuture {
        let Self { client, cluster } = self.clone();
        Box::pin(async move {
            let answer = client
                .assume_role_for_pod_identity()
                .cluster_name(&*cluster)
                .token(token.secret())
                .send()
                .await
                .map_err(|error| failure::refusal(&error))?;
            let answered_for_the_token = answer.subject().is_some_and(|subject| {
                *subject.namespace() == *token.claims().namespace
                    && *subject.service_account() == *token.claims().service_account
            });
            if !answered_for_the_token {
                tracing::error!(pod_uid = %token.claims().pod_uid, "EKS Auth answered for another service account");
                return Err(Refusal::SubjectMismatch);
            }
            grant(answer).map_err(|error| {
                tracing::error!(pod_uid = %token.claims().pod_uid, %error, "EKS Auth's answer cannot be used");
                Refusal::EksAuthUnavailable(Outage::Server)
            })
        })
    }
}

fn grant(answer: AssumeRoleForPodIdentityOutput) -> Result<Grant, Incomplete> {
    let credentials = answer.credentials.ok_or(Incomplete::Credentials)?;
    let role = answer.assumed_role_user.ok_or(Incomplete::Role)?;
    // arn:aws:sts::123456789012:assumed-role/NAME/SESSION
    let account_id = role.arn.split(':').nth(4).filter(|id| !id.is_empty()).ok_or(Incomplete::Role)?;
    Ok(Grant {
        access_key_id: credentials.access_key_id,
        secret_access_key: Zeroizing::new(credentials.secret_access_key),
        session_token: Zeroizing::new(credentials.session_token),
        account_id: account_id.to_owned(),
        association_id: answer.pod_identity_association.map(|a| a.association_id).unwrap_or_default(),
        expires_at: credentials.expiration.try_into().map_err(|_| Incomplete::Expiration)?,
    })
}
