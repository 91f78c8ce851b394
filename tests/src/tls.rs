//! EKS Auth over TLS, as it is at AWS: a front that takes the encryption off, on every address that names it.
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow};
use tokio::{io::copy_bidirectional, net::TcpStream, runtime::Runtime};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig, crypto,
        pki_types::{CertificateDer, PrivateKeyDer},
    },
};

use crate::{eks_auth, node::Ground};

/// Where it serves, in the node's namespace.
const ADDRESS: &str = "127.0.0.1:4443";

/// A TLS front of a node's EKS Auth, until it is dropped.
#[derive(Debug)]
pub struct TlsFront {
    runtime: Option<Runtime>,
    certificate: PathBuf,
    name: String,
}

impl TlsFront {
    /// Starts it with a certificate of its own for `name`.
    pub(crate) fn start(ground: &Arc<Ground>, name: &str) -> Result<Self> {
        let pair = rcgen::generate_simple_self_signed([name.to_owned()])?;
        let certificate = ground.dir.0.join("eks-auth.pem");
        fs::write(&certificate, pair.cert.pem())?;
        let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).map_err(|error| anyhow!(error))?;
        let chain: Vec<CertificateDer<'static>> = vec![pair.cert.der().clone()];
        let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = ground.netns.within(|| TcpListener::bind(ADDRESS))??;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let accepting = accept(listener, acceptor, Arc::clone(ground));
        runtime.spawn(async move {
            if let Err(error) = accepting.await {
                eprintln!("EKS Auth's TLS front has ended: {error:#}");
            }
        });
        Ok(Self { runtime: Some(runtime), certificate, name: name.to_owned() })
    }

    /// File of the certificate to trust.
    #[must_use]
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Its URL in the node's namespace.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}:{}", self.name, ADDRESS.rsplit(':').next().unwrap_or_default())
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, ground: Arc<Ground>) -> Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, ground) = (acceptor.clone(), Arc::clone(&ground));
        tokio::spawn(async move {
            // Either side may hang up: that is what some tests are about.
            let _ = forward(stream, &acceptor, ground).await;
        });
    }
}

async fn forward(stream: TcpStream, acceptor: &TlsAcceptor, ground: Arc<Ground>) -> Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let connect = move || ground.netns.within(|| std::net::TcpStream::connect(eks_auth::ADDRESS));
    let behind = tokio::task::spawn_blocking(connect).await??.context("EKS Auth's stand-in is gone")?;
    behind.set_nonblocking(true)?;
    copy_bidirectional(&mut stream, &mut TcpStream::from_std(behind)?).await?;
    Ok(())
}
