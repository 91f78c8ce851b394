//! EKS Auth's stand-in as a process: see `pod_identity_tests::standin`.
use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Parser;
use pod_identity_tests::{
    sigv4::AccessKey,
    standin::{self, Config},
    tls,
    token::ISSUER_URL,
};

/// Stands in for EKS Auth: verifies tokens and signatures, and misbehaves on request
#[derive(Debug, Parser)]
struct Args {
    /// Address to serve on
    #[arg(long, default_value = "127.0.0.1:4430")]
    listen: String,
    /// File with the certificate to serve with; plain HTTP without one
    #[arg(long, requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// File with its key
    #[arg(long, requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Unix socket for the test's control
    #[arg(long)]
    control: PathBuf,
    /// Name of the cluster
    #[arg(long, default_value = "test")]
    cluster: String,
    /// Region that requests are signed for
    #[arg(long, default_value = "eu-central-1")]
    region: String,
    /// URL of the tokens' issuer
    #[arg(long, default_value = ISSUER_URL)]
    issuer: String,
    /// File with the issuer's key set
    #[arg(long)]
    jwks: PathBuf,
    /// Access key of the node
    #[arg(long)]
    node_access_key: String,
    /// Its secret
    #[arg(long)]
    node_secret: String,
    /// EKS that knows the associations (http://ADDRESS:PORT), instead of the control socket
    #[arg(long, visible_alias = "ministack")]
    eks: Option<String>,
    /// STS that gives credentials (http://ADDRESS:PORT), instead of made-up ones
    #[arg(long)]
    sts: Option<String>,
    /// The stand-in's own access key at EKS and STS
    #[arg(long, env = "AWS_ACCESS_KEY_ID", default_value = "test")]
    service_access_key: String,
    /// Its secret
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", default_value = "test")]
    service_secret: String,
    /// Life of made-up credentials in seconds
    #[arg(long, default_value_t = 6 * 3600)]
    lifetime_seconds: u64,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let args = Args::parse();
    standin::run(Config {
        listen: args.listen,
        tls: args.tls_certificate.zip(args.tls_key).map(|(certificate, key)| tls::Files { certificate, key }),
        control: args.control,
        cluster: args.cluster,
        region: args.region,
        issuer: args.issuer,
        jwks: args.jwks,
        node: AccessKey { id: args.node_access_key, secret: args.node_secret },
        eks: args.eks,
        sts: args.sts,
        service: AccessKey { id: args.service_access_key, secret: args.service_secret },
        lifetime: Duration::from_secs(args.lifetime_seconds),
    })
    .await
}
