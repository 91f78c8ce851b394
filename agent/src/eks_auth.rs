//! EKS Auth, through AWS's SDK: one call exchanges a service account token for credentials.
use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_sdk_eksauth::{
    Client,
    config::{BehaviorVersion, IdentityCache, Region, retry::RetryConfig, timeout::TimeoutConfig},
    operation::assume_role_for_pod_identity::AssumeRoleForPodIdentityOutput,
};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use zeroize::Zeroizing;

use crate::{
    credentials::{Grant, PresentedToken, Upstream, UpstreamFuture},
    refusal::{Outage, Refusal},
};

mod causes;
mod cluster;
mod examination;
mod failure;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod http;
mod node_credentials;
#[cfg(test)]
mod test_process;
#[cfg(test)]
mod test_server;
#[cfg(test)]
mod tests;

pub use cluster::UnknownCluster;
pub use examination::{Examined, Outcome};
pub use http::{Names, ProxyError, Trust, TrustError};

use http::{HttpClients, Timeouts};
use node_credentials::NodeCredentials;

/// Longer than any healthy answer; no client waits for it (they are sent away after 0.9 s), only the cache does.
const TIMEOUTS: Timeouts =
    Timeouts { connect: Duration::from_secs(3), head: Duration::from_secs(8), call: Duration::from_secs(10) };

/// What the agent is told about EKS Auth.
#[derive(Debug)]
pub struct EksAuthSettings<'a> {
    /// How the cluster is known.
    pub cluster: ClusterName<'a>,
    /// Address that replaces the region's own.
    pub endpoint: Option<&'a str>,
    /// Whether the shared credentials file is read again as soon as it changes.
    pub rotate_credentials: bool,
}

/// How the cluster's name is known.
#[derive(Debug)]
pub enum ClusterName<'a> {
    /// It was given.
    Given(&'a str),
    /// It has to be found: here, if the kubelet's kubeconfig (which is handed over) tells it, or in what the instance
    /// metadata service knows.
    Unknown(io::Result<String>),
}

/// The cluster's EKS Auth.
#[derive(Clone, Debug)]
pub struct EksAuth {
    client: Client,
    cluster: Arc<str>,
    credentials: NodeCredentials,
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
    /// Nobody says which cluster this is.
    #[error(transparent)]
    NoCluster(#[from] UnknownCluster),
    /// A variable that names a proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The certificates that EKS Auth is checked against.
    #[error(transparent)]
    Trust(#[from] TrustError),
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
    /// Sets the client up; makes no call to EKS Auth. Reads proxies from the environment.
    pub async fn new(settings: EksAuthSettings<'_>, trust: Trust, names: Names) -> Result<Self, SetupError> {
        let http = HttpClients::from_env(trust, TIMEOUTS, names)?;
        let (region, region_from) = node_credentials::region(&http).await.ok_or(SetupError::NoRegion)?;
        let (cluster, cluster_from) = match settings.cluster {
            ClusterName::Given(name) => (name.to_owned(), "--cluster-name".to_owned()),
            ClusterName::Unknown(kubeconfig) => {
                let (name, source) = cluster::find(&http, kubeconfig).await?;
                (name, source.to_string())
            }
        };
        let credentials = node_credentials::chain(&http, &region, settings.rotate_credentials);
        let endpoint = settings.endpoint.unwrap_or("the region's own");
        tracing::info!(%region, region_from, cluster, cluster_from, endpoint, "EKS Auth is set up");
        Ok(Self::over(http.services, region, credentials, &cluster, settings.endpoint, TIMEOUTS))
    }

    /// Name of the cluster that it is asked for.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    fn over(
        http: SharedHttpClient,
        region: Region,
        credentials: NodeCredentials,
        cluster: &str,
        endpoint: Option<&str>,
        timeouts: Timeouts,
    ) -> Self {
        let mut config = aws_sdk_eksauth::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(region)
            .credentials_provider(credentials.clone())
            // They are kept by their provider.
            .identity_cache(IdentityCache::no_cache())
            .http_client(http)
            .timeout_config(TimeoutConfig::builder().operation_timeout(timeouts.call).build())
            // The pod's worker decides when to ask again: retries in here would multiply its calls.
            .retry_config(RetryConfig::disabled());
        if let Some(endpoint) = endpoint {
            config = config.endpoint_url(endpoint);
        }
        Self { client: Client::from_conf(config.build()), cluster: cluster.into(), credentials }
    }
}

impl Upstream for EksAuth {
    fn assume_role(&self, token: Arc<PresentedToken>) -> UpstreamFuture {
        let Self { client, cluster, credentials } = self.clone();
        Box::pin(async move {
            let call = client.assume_role_for_pod_identity().cluster_name(&*cluster).token(token.secret());
            let answer = match call.send().await {
                Ok(answer) => answer,
                Err(error) => {
                    let refusal = failure::refusal(&error);
                    if refusal == Refusal::NodeCredentials {
                        credentials.refused().await;
                    }
                    return Err(refusal);
                }
            };
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
    // Where the answer has no member the SDK puts an empty text, or the year 1970.
    if [&credentials.access_key_id, &credentials.secret_access_key, &credentials.session_token]
        .iter()
        .any(|s| s.is_empty())
    {
        return Err(Incomplete::Credentials);
    }
    let expires_at: SystemTime = credentials.expiration.try_into().map_err(|_| Incomplete::Expiration)?;
    if expires_at == UNIX_EPOCH {
        return Err(Incomplete::Expiration);
    }
    let role = answer.assumed_role_user.ok_or(Incomplete::Role)?;
    // arn:aws:sts::123456789012:assumed-role/NAME/SESSION
    let account_id = role.arn.split(':').nth(4).filter(|id| !id.is_empty()).ok_or(Incomplete::Role)?;
    Ok(Grant {
        access_key_id: credentials.access_key_id,
        secret_access_key: Zeroizing::new(credentials.secret_access_key),
        session_token: Zeroizing::new(credentials.session_token),
        account_id: account_id.to_owned(),
        association_id: answer.pod_identity_association.map(|a| a.association_id).unwrap_or_default(),
        expires_at,
    })
}
