//! An application in a pod: any program, with what EKS injects into the pods of associated service accounts.
use std::{env, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{Aws, clients::Clients};
use crate::{eks_auth::REGION, pod::Pod, process::binary};

/// Where a pod finds its token.
pub const TOKEN_FILE: &str = "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount/eks-pod-identity-token";

/// Of which family the cluster is, which decides what address is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// 169.254.170.23.
    V4,
    /// `fd00:ec2::23`.
    V6,
}

impl Family {
    /// What SDKs are told to ask.
    #[must_use]
    pub fn credentials_uri(self) -> &'static str {
        match self {
            Self::V4 => "http://169.254.170.23/v1/credentials",
            Self::V6 => "http://[fd00:ec2::23]/v1/credentials",
        }
    }
}

/// Programs in a pod's container `app`.
#[derive(Debug)]
pub struct Application<'a> {
    pod: &'a Pod,
    family: Family,
    clients: Clients,
    aws: Option<&'a Aws>,
}

impl<'a> Application<'a> {
    /// Programs in this pod of a cluster of this family, which look for AWS's services at `aws`.
    pub fn new(pod: &'a Pod, family: Family, aws: Option<&'a Aws>) -> Result<Self> {
        Ok(Self { pod, family, clients: Clients::find()?, aws })
    }

    /// A command with these variables and no others; the token lies where they say.
    pub fn command(&self, program: &Path) -> Result<Command> {
        let container = self.pod.container("app")?;
        let volume = self.pod.volume().context("this pod has no token volume")?;
        let pod_exec = binary("pod-exec")?;
        let mut command = container.command(pod_exec.to_str().context("a path that is no text")?)?;
        command.arg("--token-volume").arg(volume.dir()).arg("--").arg(program);
        command.env_clear().envs(self.environment());
        Ok(command)
    }

    /// What the programs find in their environment.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let programs = self.clients.programs().display().to_string();
        let path = env::var("PATH").unwrap_or_default();
        let mut all = vec![
            // What every image has. There is no home: no settings of a developer's own.
            ("PATH", format!("{programs}:{path}")),
            ("HOME", "/nonexistent".to_owned()),
            ("PYTHONDONTWRITEBYTECODE", "1".to_owned()),
            // What EKS injects.
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", self.family.credentials_uri().to_owned()),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", TOKEN_FILE.to_owned()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_DEFAULT_REGION", REGION.to_owned()),
            ("AWS_STS_REGIONAL_ENDPOINTS", "regional".to_owned()),
            // For fetch.mjs.
            ("NODE_MODULES_OF", self.clients.directory().display().to_string()),
        ];
        if let Some(aws) = self.aws {
            all.push(("AWS_ENDPOINT_URL_STS", aws.url_for_pods()));
            all.push(("AWS_ENDPOINT_URL_S3", aws.url_for_pods()));
        }
        all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The clients' programs.
    #[must_use]
    pub fn clients(&self) -> &Clients {
        &self.clients
    }
}
