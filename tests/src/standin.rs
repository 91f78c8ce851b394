//! EKS Auth's stand-in: `AssumeRoleForPodIdentity`, with real verification and any misbehaviour on request.
//!
//! No emulator has this call. The token is verified as EKS Auth does (signature against the issuer's key set, issuer,
//! audience, validity), and so is the signature of the node; the association comes from a table of the stand-in's own
//! or from an EKS emulator, the credentials are made up or come from an STS.
use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
};
use tokio_rustls::TlsAcceptor;

use crate::{aws::call::Caller, sigv4::AccessKey, tls};

mod answer;
mod associations;
pub mod control;
mod credentials;
mod nodes;
mod service;
mod state;
mod tokens;

use associations::Associations;
use credentials::Source;
use state::State;

/// How the stand-in is to behave.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where EKS Auth's calls are served: `127.0.0.1:4430`.
    pub listen: String,
    /// Files with its certificate and key: TLS is spoken with them.
    pub tls: Option<tls::Files>,
    /// Unix socket for [`control`].
    pub control: PathBuf,
    /// The cluster whose pods are known.
    pub cluster: String,
    /// The region that requests must be signed for.
    pub region: String,
    /// The issuer's URL.
    pub issuer: String,
    /// File with the issuer's key set.
    pub jwks: PathBuf,
    /// The node's access key.
    pub node: AccessKey,
    /// URL of an EKS that knows the associations; without one, those that are told over [`control`].
    pub eks: Option<String>,
    /// URL of an STS that gives credentials; without one, they are made up.
    pub sts: Option<String>,
    /// The stand-in's own access key at those.
    pub service: AccessKey,
    /// Life of made-up credentials.
    pub lifetime: Duration,
}

/// Serves until SIGTERM or SIGINT.
pub async fn run(config: Config) -> Result<()> {
    let jwks = std::fs::read(&config.jwks).with_context(|| format!("cannot read {}", config.jwks.display()))?;
    let listener = TcpListener::bind(&config.listen).await.with_context(|| format!("cannot bind {}", config.listen))?;
    let acceptor = config.tls.as_ref().map(tls::Files::acceptor).transpose()?;
    let control = UnixListener::bind(&config.control)
        .with_context(|| format!("cannot bind the control socket {}", config.control.display()))?;
    let caller = Caller { key: config.service.clone(), region: config.region.clone() };
    let state = Arc::new(State {
        verifier: tokens::Verifier::new(&jwks, &config.issuer)?,
        nodes: nodes::Nodes::new(config.node.clone(), config.region.clone()),
        associations: match config.eks.clone() {
            Some(url) => Associations::of_eks(caller.clone(), url),
            None => Associations::told(),
        },
        source: match config.sts.clone() {
            Some(url) => Source::Sts { caller, url },
            None => Source::MadeUp { lifetime: config.lifetime },
        },
        cluster: config.cluster,
        rules: control::Rules::default(),
        counters: control::Counting::default(),
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        outcome = serve(listener, acceptor, Arc::clone(&state)) => outcome,
        outcome = serve_control(control, state) => outcome,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn serve(listener: TcpListener, acceptor: Option<TlsAcceptor>, state: Arc<State>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        state.counters.connection();
        let (state, acceptor) = (Arc::clone(&state), acceptor.clone());
        tokio::spawn(async move {
            match acceptor {
                None => converse(stream, state).await,
                // A client that trusts somebody else hangs up here.
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        converse(stream, state).await;
                    }
                }
            }
        });
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<State>) {
    let service = service_fn(move |request| service::answer(Arc::clone(&state), request));
    // A dropped connection is an error here, and what the test asked for.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn serve_control(listener: UnixListener, state: Arc<State>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(move |request| service::control(Arc::clone(&state), request));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
