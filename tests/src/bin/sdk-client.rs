//! The AWS SDK for Rust as a pod's application uses it: the default chain, nothing configured in code.
//!
//! Does and prints what `tests/clients/fetch.py` does and prints, but for listing buckets: the SDK's S3 client would
//! cost every build more than it shows.
use std::io::stdin;

use anyhow::Result;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider, error::CredentialsError};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use clap::Parser;
use serde_json::{Value, json};

/// Fetches credentials, then, when a line arrives on standard input, asks STS whose they are
#[derive(Debug, Parser)]
struct Args {
    /// How often to fetch the credentials
    #[arg(long, default_value_t = 1)]
    fetches: u32,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    // The SDK's own client, with the cryptography that this workspace builds.
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let config = aws_config::defaults(BehaviorVersion::latest()).http_client(http).load().await;
    for _ in 0..args.fetches {
        let fetched = fetch(&config).await;
        println!("{}", fetched.as_ref().unwrap_or_else(|error| error));
        if fetched.is_err() {
            std::process::exit(1);
        }
    }
    if stdin().read_line(&mut String::new())? == 0 {
        return Ok(());
    }
    let identity = aws_sdk_sts::Client::new(&config).get_caller_identity().send().await?;
    println!("{}", json!({"step": "identity", "arn": identity.arn(), "account": identity.account()}));
    Ok(())
}

/// What to print: of the credentials, or of their refusal.
async fn fetch(config: &SdkConfig) -> Result<Value, Value> {
    let failed = |error: &CredentialsError| {
        let error = anyhow::Chain::new(error).map(ToString::to_string).collect::<Vec<_>>().join(": ");
        json!({"step": "credentials", "error": error})
    };
    let provider: SharedCredentialsProvider =
        config.credentials_provider().ok_or_else(|| failed(&CredentialsError::not_loaded("no provider")))?;
    let credentials = provider.provide_credentials().await.map_err(|error| failed(&error))?;
    Ok(json!({
        "step": "credentials",
        "access_key_id": credentials.access_key_id(),
        "secret_access_key": credentials.secret_access_key(),
        "session_token": credentials.session_token(),
    }))
}
