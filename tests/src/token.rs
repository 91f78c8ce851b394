//! Service account tokens as the API server signs them for EKS Pod Identity, and tokens it would never sign.
use std::{process::Command, sync::OnceLock, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    hmac,
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, PublicKeyComponents},
    signature::RSA_PKCS1_SHA256,
};
use serde_json::{Value, json};

use crate::time;

mod forged;

pub use forged::Forgery;

/// Who signs the tests' tokens.
pub const ISSUER_URL: &str = "https://oidc.eks.eu-central-1.amazonaws.com/id/0123456789ABCDEF0123456789ABCDEF";

/// Who the tokens are for.
pub const AUDIENCE: &str = "pods.eks.amazonaws.com";

/// For how long the kubelet asks.
pub const LIFETIME: u64 = 86_400;

/// Signs tokens with an RSA key.
#[derive(Debug)]
pub struct Issuer {
    key: RsaKeyPair,
    key_id: String,
}

/// What a token says. Each field may be changed before it is signed.
#[derive(Clone, Debug)]
pub struct Claims(pub Value);

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The pod's namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its name.
    pub pod_name: String,
    /// Its UID.
    pub pod_uid: String,
}

impl Issuer {
    /// The issuer of this process's tests: its key is made once, and kept nowhere.
    pub fn of_this_process() -> Result<&'static Self> {
        static ISSUER: OnceLock<Result<Issuer, String>> = OnceLock::new();
        let issuer = ISSUER.get_or_init(|| Self::generate().map_err(|error| format!("{error:#}")));
        issuer.as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// Makes a key. Neither `ring` nor the standard library makes RSA keys.
    pub fn generate() -> Result<Self> {
        let output = Command::new("openssl")
            .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-outform", "DER"])
            .output()
            .context("cannot run openssl, which makes the test issuer's key: install it")?;
        ensure!(output.status.success(), "openssl genpkey: {}", String::from_utf8_lossy(&output.stderr));
        let key = RsaKeyPair::from_pkcs8(&output.stdout)
            .or_else(|_| RsaKeyPair::from_der(&output.stdout))
            .map_err(|error| anyhow!("openssl's key cannot be used: {error}"))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public().as_ref());
        let key_id = BASE64_URL_SAFE_NO_PAD.encode(digest.as_ref().get(..20).unwrap_or_default());
        Ok(Self { key, key_id })
    }

    /// Its public key, as an OIDC issuer publishes it.
    #[must_use]
    pub fn jwks(&self) -> Value {
        let parts: PublicKeyComponents<Vec<u8>> = PublicKeyComponents::from(self.key.public());
        let encode = |number: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(number);
        json!({"keys": [{
            "use": "sig", "kty": "RSA", "alg": "RS256", "kid": self.key_id, "n": encode(&parts.n), "e": encode(&parts.e)
        }]})
    }

    /// Signs claims as the API server does.
    pub fn sign(&self, claims: &Claims) -> Result<String> {
        self.sign_with_header(&json!({"alg": "RS256", "kid": self.key_id}), claims)
    }

    /// Signs claims under a header of one's own.
    fn sign_with_header(&self, header: &Value, claims: &Claims) -> Result<String> {
        let input = signing_input(header, &claims.0);
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input.as_bytes(), &mut signature)
            .map_err(|_| anyhow!("cannot sign"))?;
        Ok(format!("{input}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Signs claims with a shared secret under the RSA key's id.
    fn sign_hs256(&self, claims: &Claims) -> String {
        let input = signing_input(&json!({"alg": "HS256", "kid": self.key_id}), &claims.0);
        // The classic mistake: the verifier takes the public key for the secret.
        let secret = hmac::Key::new(hmac::HMAC_SHA256, self.key.public().as_ref());
        format!("{input}.{}", BASE64_URL_SAFE_NO_PAD.encode(hmac::sign(&secret, input.as_bytes())))
    }
}

fn signing_input(header: &Value, claims: &Value) -> String {
    let encode = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    format!("{}.{}", encode(header), encode(claims))
}

impl Claims {
    /// What the kubelet's token for EKS Pod Identity says about this pod, issued now.
    #[must_use]
    pub fn of(subject: &Subject) -> Self {
        let now = time::now();
        Self(json!({
            "aud": [AUDIENCE],
            "exp": now + LIFETIME,
            "iat": now,
            "iss": ISSUER_URL,
            "jti": random_uid(),
            "kubernetes.io": {
                "namespace": subject.namespace,
                "node": {"name": "ip-10-88-0-1.eu-central-1.compute.internal", "uid": "2f0f7c5e-7d3d-4d8c-9d1e-3a7a3c1f0b11"},
                "pod": {"name": subject.pod_name, "uid": subject.pod_uid},
                "serviceaccount": {"name": subject.service_account, "uid": "8d2f8c66-3f3c-4c09-8b1b-6b0f7f1d2c33"},
            },
            "nbf": now,
            "sub": format!("system:serviceaccount:{}:{}", subject.namespace, subject.service_account),
        }))
    }

    /// Expiring so long after now.
    #[must_use]
    pub fn lasting(self, lifetime: Duration) -> Self {
        self.with("exp", json!(time::now() + lifetime.as_secs()))
    }

    /// Changes a claim; a path of names is separated by slashes, as `kubernetes.io/pod/uid`. `Value::Null` removes it.
    #[must_use]
    pub fn with(mut self, path: &str, value: Value) -> Self {
        let mut names = path.split('/').peekable();
        let mut place = &mut self.0;
        while let Some(name) = names.next() {
            let Some(object) = place.as_object_mut() else { break };
            if names.peek().is_none() {
                if value.is_null() {
                    object.remove(name);
                } else {
                    object.insert(name.to_owned(), value);
                }
                break;
            }
            place = object.entry(name).or_insert_with(|| json!({}));
        }
        self
    }
}

/// A UID as the API server makes them: a random UUID.
#[must_use]
pub fn random_uid() -> String {
    let hex = random_hex(16);
    let part = |from, to| hex.get(from..to).unwrap_or_default();
    // Version 4, variant 1.
    format!("{}-{}-4{}-a{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}

/// So many random bytes, in hexadecimal digits.
#[must_use]
pub fn random_hex(bytes: usize) -> String {
    use ring::rand::SecureRandom as _;
    use std::fmt::Write as _;
    let mut random = vec![0_u8; bytes];
    // The kernel's generator fails only before it is seeded, long before any test.
    let _ = SystemRandom::new().fill(&mut random);
    random.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
