//! Certificates of an authority that nobody knows, and a server that uses them.
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

/// A server's certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// A server's files, and what clients need to trust it.
#[derive(Clone, Debug)]
pub struct Issued {
    /// File with the authority's certificate.
    pub authority: PathBuf,
    /// The server's.
    pub files: Files,
}

impl Issued {
    /// Makes an authority, lets it issue a certificate for these names and addresses, and forgets the authority's key.
    pub fn make(dir: &Path, names: &[&str]) -> Result<Self> {
        let mut params = CertificateParams::new([])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        let written = |name: &str, pem: String| {
            let path = dir.join(name);
            fs::write(&path, pem).map(|()| path)
        };
        Ok(Self {
            authority: written("authority.pem", authority.pem())?,
            files: Files {
                certificate: written("certificate.pem", certificate.pem())?,
                key: written("key.pem", key.serialize_pem())?,
            },
        })
    }
}

impl Files {
    /// The server's side of TLS with them.
    pub fn acceptor(&self) -> Result<TlsAcceptor> {
        let certificate = CertificateDer::from_pem_file(&self.certificate).context("cannot read the certificate")?;
        let key = PrivateKeyDer::from_pem_file(&self.key).context("cannot read the certificate's key")?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
