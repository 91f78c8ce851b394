//! EKS's webhook: it sets up the pods of service accounts that have an association, as EKS does.
use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use super::keys::Keys;
use crate::{
    aws::application::{Family, TOKEN_FILE},
    eks_auth::REGION,
    node::Node,
    token::{AUDIENCE, LIFETIME},
};

/// Where it serves, in the node's namespace.
const ADDRESS: &str = "127.0.0.1:9443";

/// The volume's name in every pod of EKS, and the file's in it.
const TOKEN: &str = "eks-pod-identity-token";

/// Namespaces and service accounts.
type Associated = Arc<Mutex<BTreeSet<(String, String)>>>;

/// The webhook's server. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Webhook {
    _server: Runtime,
    associated: Associated,
    authority: Vec<u8>,
}

impl Webhook {
    /// Starts it in a node's namespace.
    pub(super) fn start(node: &Node, keys: &Keys) -> Result<Self> {
        let listener = node.netns().within(|| TcpListener::bind(ADDRESS))?.context("cannot serve the webhook")?;
        listener.set_nonblocking(true)?;
        let acceptor = keys.serving.files.acceptor()?;
        let associated = Associated::default();
        let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        server.spawn(serve(listener, acceptor, Arc::clone(&associated)));
        Ok(Self { _server: server, associated, authority: fs::read(&keys.serving.authority)? })
    }

    /// What the API server has to be told to ask it. EKS's own may fail without a word; here that would be the end of a
    /// test for another reason.
    pub(super) fn configuration(&self) -> Value {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "pod-identity-webhook"},
            "webhooks": [{
                "name": "pod-identity-webhook.amazonaws.com",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "clientConfig": {
                    "url": format!("https://{ADDRESS}/"), "caBundle": BASE64_STANDARD.encode(&self.authority),
                },
                "rules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]},
                ],
            }],
        })
    }

    /// Pods of this service account are set up from now on.
    pub(super) fn associate(&self, namespace: &str, service_account: &str) {
        let mut associated = self.associated.lock().unwrap_or_else(PoisonError::into_inner);
        associated.insert((namespace.to_owned(), service_account.to_owned()));
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, associated: Associated) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, associated) = (acceptor.clone(), Arc::clone(&associated));
        tokio::spawn(async move {
            // Who hangs up has gone.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| answer(request, Arc::clone(&associated)));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, associated: Associated) -> Result<Response<Full<Bytes>>> {
    let body = request.into_body().collect().await?.to_bytes();
    let review: Value = serde_json::from_slice(&body)?;
    let answer = review_of(&review["request"], &associated.lock().unwrap_or_else(PoisonError::into_inner));
    let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
    response.headers_mut().insert("content-type", "application/json".parse()?);
    Ok(response)
}

fn review_of(request: &Value, associated: &BTreeSet<(String, String)>) -> Value {
    let mut response = json!({"uid": request["uid"], "allowed": true});
    let spec = &request["object"]["spec"];
    let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if associated.contains(&(name(&request["namespace"]), name(&spec["serviceAccountName"]))) {
        let patch = json!([{"op": "replace", "path": "/spec", "value": set_up(spec.clone())}]);
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(BASE64_STANDARD.encode(patch.to_string()));
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

/// With what EKS injects.
fn set_up(mut spec: Value) -> Value {
    let directory = TOKEN_FILE.rsplit_once('/').map_or("", |(directory, _)| directory);
    let environment = [
        ("AWS_STS_REGIONAL_ENDPOINTS", "regional"),
        ("AWS_DEFAULT_REGION", REGION),
        ("AWS_REGION", REGION),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", Family::V4.credentials_uri()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", TOKEN_FILE),
    ];
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            for (name, value) in environment {
                push(&mut container["env"], json!({"name": name, "value": value}));
            }
            push(&mut container["volumeMounts"], json!({"name": TOKEN, "mountPath": directory, "readOnly": true}));
        }
    }
    push(
        &mut spec["volumes"],
        json!({"name": TOKEN, "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {
            "audience": AUDIENCE, "expirationSeconds": LIFETIME, "path": TOKEN,
        }}]}}),
    );
    spec
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        nothing => *nothing = json!([item]),
    }
}
