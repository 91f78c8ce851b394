//! The shared credentials file, which others rewrite: on hybrid nodes an hourly session's keys are put there.
use std::{ffi::OsString, fs, os::unix::fs::MetadataExt as _, path::PathBuf};

use aws_config::{Region, profile::ProfileFileCredentialsProvider, provider_config::ProviderConfig};
use aws_credential_types::provider::{ProvideCredentials, error::CredentialsError, future};
use aws_smithy_runtime_api::client::http::SharedHttpClient;

/// The profile of the shared files, read anew each time. The SDK's provider reads them once in its life, and so do all
/// that are made from one `ProviderConfig`: each reading has a configuration of its own.
#[derive(Debug)]
pub(super) struct SharedFile {
    http: SharedHttpClient,
    region: Region,
}

impl SharedFile {
    /// `http` and `region` are for a role of the profile, which is assumed by a call to STS.
    pub(super) fn new(http: SharedHttpClient, region: Region) -> Self {
        Self { http, region }
    }
}

impl ProvideCredentials for SharedFile {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let config =
            ProviderConfig::without_region().with_region(Some(self.region.clone())).with_http_client(self.http.clone());
        let profile = ProfileFileCredentialsProvider::builder()
            .configure(&config)
            // `credential_source = EcsContainer` in a shared file would lead back to this agent.
            .with_custom_provider("EcsContainer", NotFromPods)
            .build();
        future::ProvideCredentials::new(async move { profile.provide_credentials().await })
    }
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

/// Files whose change makes credentials be read again.
#[derive(Debug)]
pub(in crate::eks_auth) struct Watched(Vec<PathBuf>);

/// What the watched files looked like at one moment; equal stamps mean equal contents. A file that does not exist (or
/// cannot be seen) has none.
///
/// A stamp is taken *before* the files are read: a change in between makes the next stamp another one. The change time
/// is part of it because the modification time can be set back, and the inode because files are replaced by renaming.
pub(super) type Stamp = Vec<Option<FileStamp>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Watched {
    /// For credentials that nobody rewrites.
    pub(in crate::eks_auth) fn nothing() -> Self {
        Self(Vec::new())
    }

    /// The shared files, where the SDK looks for them.
    pub(super) fn shared_files(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let home = variable("HOME").map(PathBuf::from);
        let files = [("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config")];
        let paths = files.map(|(name, default)| {
            let path = variable(name).map_or_else(|| PathBuf::from(default), PathBuf::from);
            match (path.strip_prefix("~"), &home) {
                (Ok(below), Some(home)) => home.join(below),
                _ => path,
            }
        });
        Self(paths.into())
    }

    /// Looks at the files; links are followed.
    pub(super) fn stamp(&self) -> Stamp {
        let stamp = |path: &PathBuf| {
            let file = fs::metadata(path).ok()?;
            Some(FileStamp {
                device: file.dev(),
                inode: file.ino(),
                bytes: file.size(),
                modified: (file.mtime(), file.mtime_nsec()),
                changed: (file.ctime(), file.ctime_nsec()),
            })
        };
        self.0.iter().map(stamp).collect()
    }
}
