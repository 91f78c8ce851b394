//! The certificates that servers are checked against.
use std::{
    env, fs, io,
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

use aws_smithy_http_client::tls::{TlsContext, TrustStore};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

/// There is nothing to check servers against.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The operator's file.
    #[error("cannot read the certificates in AWS_CA_BUNDLE={}: {error}", path.display())]
    Unreadable {
        /// The variable's value.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// The operator's file, with something else in it.
    #[error("AWS_CA_BUNDLE={} holds no certificate that can be used: it must be a PEM file of CA certificates", path.display())]
    NoCertificate {
        /// The variable's value.
        path: PathBuf,
    },
    /// An image without certificates.
    #[error(
        "there are no CA certificates to check EKS Auth's server against: mount the node's bundle at \
         /etc/ssl/certs/ca-certificates.crt, or set AWS_CA_BUNDLE to a PEM file of CA certificates"
    )]
    NoneInstalled,
}

/// What servers are checked against, on its way: some hundred files, which are read and parsed on a thread of its own, as a
/// start has other things to do meanwhile.
#[derive(Debug)]
pub struct Trust(JoinHandle<Result<TlsContext, TrustError>>);

impl Trust {
    /// Begins. Certificates are needed unless `endpoint` is plain http.
    #[must_use]
    pub fn read(endpoint: Option<&str>) -> Self {
        let needed = endpoint.is_none_or(|url| !url.starts_with("http://"));
        let bundle = env::var_os("AWS_CA_BUNDLE").filter(|value| !value.is_empty()).map(PathBuf::from);
        Self(thread::spawn(move || context(bundle.as_deref(), needed)))
    }

    /// Waits for it.
    pub(super) fn context(self) -> Result<TlsContext, TrustError> {
        self.0.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// What is trusted: the certificates of `bundle` and no others, or else those that are installed. Having none is an
/// error if they are `needed`.
pub(super) fn context(bundle: Option<&Path>, needed: bool) -> Result<TlsContext, TrustError> {
    if let Some(path) = bundle {
        let pem = fs::read(path).map_err(|error| TrustError::Unreadable { path: path.to_owned(), error })?;
        let certificates = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
        return trusting(certificates).ok_or_else(|| TrustError::NoCertificate { path: path.to_owned() });
    }
    let installed = rustls_native_certs::load_native_certs();
    for error in installed.errors {
        tracing::warn!(%error, "some installed CA certificates cannot be read");
    }
    match trusting(installed.certs.into_iter()) {
        Some(context) => Ok(context),
        None if needed => Err(TrustError::NoneInstalled),
        None => Ok(nobody()),
    }
}

/// Trusts nobody: for clients that speak no TLS.
pub(super) fn nobody() -> TlsContext {
    with(TrustStore::empty())
}

/// Trusts those of `certificates` that rustls can use, if any. The SDK's store panics about the others, which real
/// bundles hold, and it takes PEM only.
fn trusting<'a>(certificates: impl Iterator<Item = CertificateDer<'a>>) -> Option<TlsContext> {
    let (mut pem, mut unusable) = (String::new(), 0);
    for certificate in certificates {
        if RootCertStore::empty().add(certificate.clone()).is_err() {
            unusable += 1;
            continue;
        }
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        pem.push_str(&BASE64_STANDARD.encode(&certificate));
        pem.push_str("\n-----END CERTIFICATE-----\n");
    }
    if unusable > 0 {
        tracing::warn!(unusable, "some CA certificates are of a kind that cannot be used, and are left out");
    }
    (!pem.is_empty()).then(|| with(TrustStore::empty().with_pem_certificate(pem)))
}

#[expect(clippy::expect_used, reason = "the builder has no failing case; its result is for later ones")]
fn with(store: TrustStore) -> TlsContext {
    TlsContext::builder().with_trust_store(store).build().expect("a trust store is all it needs")
}
