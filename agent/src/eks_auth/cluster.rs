//! The cluster's name, where nobody gave it: the node knows which cluster it has joined.
use std::{fmt, io};

use aws_config::{imds, provider_config::ProviderConfig};
use tokio::time::timeout;

use super::{http::HttpClients, node_credentials::METADATA_TIMEOUT};
use crate::config;

mod documents;
#[cfg(test)]
mod tests;

/// Instance tags that hold it: of EKS's managed nodes, of EKS itself, of Karpenter's.
const TAGS: [&str; 3] = ["eks:cluster-name", "aws:eks:cluster-name", "eks:eks-cluster-name"];

/// Where a name was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// What the kubelet calls the API server with.
    Kubeconfig,
    /// A tag of the instance.
    Tags,
    /// What the instance was started with.
    UserData,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kubeconfig => "the kubelet's kubeconfig",
            Self::Tags => "the instance's tags",
            Self::UserData => "the instance's user data",
        })
    }
}

/// Nothing on this node tells it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the cluster's name is not known: set --cluster-name (or POD_IDENTITY_AGENT_CLUSTER_NAME). Looked for it in {}",
    .0.join("; in ")
)]
pub struct UnknownCluster(Vec<String>);

/// Asks one source after the other: what the kubelet uses comes first, as it is here and is what the node has joined.
pub(super) async fn find(
    http: &HttpClients,
    kubeconfig: io::Result<String>,
) -> Result<(String, Source), UnknownCluster> {
    let config = ProviderConfig::without_region().with_http_client(http.metadata.clone());
    let metadata = imds::Client::builder().configure(&config).max_attempts(2).build();
    find_with(&metadata, kubeconfig).await
}

async fn find_with(
    metadata: &imds::Client,
    kubeconfig: io::Result<String>,
) -> Result<(String, Source), UnknownCluster> {
    let mut failures = Vec::new();
    let mut note = |source: Source, why: &str| failures.push(format!("{source}: {why}"));
    match kubeconfig {
        Ok(text) => match documents::kubeconfig(&text).filter(|name| config::is_cluster_name(name)) {
            Some(name) => return Ok((name, Source::Kubeconfig)),
            None => note(Source::Kubeconfig, "it names no cluster to get tokens for"),
        },
        Err(error) => note(Source::Kubeconfig, &error.to_string()),
    }
    for tag in TAGS {
        match ask(metadata, &format!("/latest/meta-data/tags/instance/{tag}")).await {
            Ok(Some(name)) if config::is_cluster_name(&name) => return Ok((name, Source::Tags)),
            Ok(_) => {}
            // It will not answer the next question either.
            Err(why) => {
                note(Source::Tags, &why);
                note(Source::UserData, "not asked for");
                return Err(UnknownCluster(failures));
            }
        }
    }
    note(Source::Tags, "none of eks:cluster-name and its like (tags may be switched off in the instance's metadata)");
    match ask(metadata, "/latest/user-data").await {
        Ok(Some(text)) => {
            if let Some(name) = documents::user_data(&text).filter(|name| config::is_cluster_name(name)) {
                return Ok((name, Source::UserData));
            }
            note(Source::UserData, "no NodeConfig, bootstrap.sh or Bottlerocket settings with a cluster's name");
        }
        Ok(None) => note(Source::UserData, "there is none"),
        Err(why) => note(Source::UserData, &why),
    }
    Err(UnknownCluster(failures))
}

/// What the metadata service has at a path; `None` where it has nothing.
async fn ask(metadata: &imds::Client, path: &str) -> Result<Option<String>, String> {
    match timeout(METADATA_TIMEOUT, metadata.get(path)).await {
        Ok(Ok(text)) => Ok(Some(String::from(text).trim().to_owned()).filter(|text| !text.is_empty())),
        Ok(Err(imds::client::error::ImdsError::ErrorResponse(answer)))
            if answer.response().status().as_u16() == 404 =>
        {
            Ok(None)
        }
        Ok(Err(error)) => Err(format!("the instance metadata service: {}", super::causes::of(&error))),
        Err(_) => Err("the instance metadata service does not answer (hostNetwork, or a hop limit of 2)".to_owned()),
    }
}
