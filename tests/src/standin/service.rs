//! The two endpoints: EKS Auth's call, and the test's control of it.
use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, body::Incoming};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;

use super::{
    answer::{Failure, granted, json_response},
    control::{Association, Effect, Rule},
    state::State,
    tokens,
};
use crate::{
    sigv4::{AccessKey, hex},
    token::Subject,
};

type Answer = Response<Full<Bytes>>;

#[derive(Deserialize)]
struct Call {
    token: String,
}

/// Answers a call to EKS Auth. An error drops the connection.
pub(super) async fn answer(state: Arc<State>, request: Request<Incoming>) -> io::Result<Answer> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let call = match read_call(&state, &head, &body) {
        Ok(call) => call,
        Err(failure) => return Ok(refuse(&state, &failure)),
    };
    let uid = tokens::unverified_pod_uid(&call.token).unwrap_or_else(|| "none".to_owned());
    let digest = hex(ring::digest::digest(&ring::digest::SHA256, call.token.as_bytes()).as_ref());
    let _in_flight = state.counters.begin(&uid, &digest);
    match state.nodes.verify(&head, &body).and_then(|()| state.verifier.verify(&call.token)) {
        Ok(subject) => obey(&state, subject).await,
        Err(failure) => Ok(refuse(&state, &failure)),
    }
}

fn read_call(state: &State, head: &hyper::http::request::Parts, body: &[u8]) -> Result<Call, Failure> {
    let cluster = head
        .uri
        .path()
        .strip_prefix("/clusters/")
        .and_then(|path| path.strip_suffix("/assume-role-for-pod-identity"))
        .filter(|_| head.method == Method::POST)
        .ok_or_else(|| Failure::new(404, "UnknownOperationException", "No such operation"))?;
    if cluster != state.cluster {
        let message = format!("No cluster found for name: {cluster}.");
        return Err(Failure::new(404, "ResourceNotFoundException", &message));
    }
    serde_json::from_slice(body).map_err(|_| Failure::new(400, "InvalidRequestException", "The body cannot be read"))
}

/// Answers for a verified token, as the test's rules say.
async fn obey(state: &State, subject: Subject) -> io::Result<Answer> {
    let rule = state.rules.take(&format!("{}/{}", subject.namespace, subject.service_account)).unwrap_or_default();
    tokio::time::sleep(Duration::from_millis(rule.delay_ms)).await;
    let mut expires_in = None;
    match rule.effect {
        None => {}
        Some(Effect::Error { status, code, message }) => {
            return Ok(refuse(state, &Failure { status, code, message }));
        }
        Some(Effect::Drop) => {
            state.counters.outcome("drop");
            return Err(io::Error::other("dropped, as a rule says"));
        }
        Some(Effect::Hang) => {
            state.counters.outcome("hang");
            std::future::pending::<()>().await;
        }
        Some(Effect::Nonsense) => {
            state.counters.outcome("nonsense");
            return Ok(Response::new(Full::new(Bytes::from_static(b"<html>It works!</html>"))));
        }
        Some(Effect::ExpiresIn(seconds)) => expires_in = Some(seconds),
        Some(Effect::WrongSubject) => {
            // The association is the right one: only the answer lies.
            let answer = grant(state, &subject, None, Some("somebody-else"));
            return Ok(answer);
        }
    }
    Ok(grant(state, &subject, expires_in, None))
}

fn grant(state: &State, subject: &Subject, expires_in: Option<u64>, answer_for: Option<&str>) -> Answer {
    match try_grant(state, subject, expires_in, answer_for) {
        Ok(answer) => {
            state.counters.outcome("ok");
            answer
        }
        Err(failure) => refuse(state, &failure),
    }
}

fn try_grant(
    state: &State,
    subject: &Subject,
    expires_in: Option<u64>,
    answer_for: Option<&str>,
) -> Result<Answer, Failure> {
    let internal = |error: anyhow::Error| Failure::new(500, "InternalServerException", &format!("{error:#}"));
    let found = state.associations.find(&state.cluster, subject).map_err(internal)?.ok_or_else(|| {
        let message = format!(
            "No association found for service account {} in namespace {}",
            subject.service_account, subject.namespace
        );
        Failure::new(404, "ResourceNotFoundException", &message)
    })?;
    let mut issued = state.source.issue(&state.cluster, &found, subject).map_err(internal)?;
    if let Some(seconds) = expires_in {
        issued.expiration = crate::time::now() + seconds;
    }
    let mut answered = subject.clone();
    if let Some(name) = answer_for {
        name.clone_into(&mut answered.service_account);
    }
    Ok(granted(&answered, &found, &issued))
}

fn refuse(state: &State, failure: &Failure) -> Answer {
    state.counters.outcome(&failure.code);
    failure.response()
}

/// Answers the test.
pub(super) async fn control(state: Arc<State>, request: Request<Incoming>) -> io::Result<Answer> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(match (head.method.as_str(), head.uri.path()) {
        ("POST", "/rules") => told(read::<Rule>(&body).map(|rule| state.rules.add(rule))),
        ("DELETE", "/rules") => {
            state.rules.clear();
            told(Ok(()))
        }
        ("POST", "/associations") => told(read::<Association>(&body).and_then(|association| {
            state.associations.add(&state.cluster, association).map_err(|error| error.to_string())
        })),
        ("POST", "/keys") => told(state.verifier.replace_keys(&body).map_err(|error| format!("{error:#}"))),
        ("POST", "/node-key") => told(read::<AccessKey>(&body).map(|key| state.nodes.replace_key(key))),
        ("GET", "/counters") => json_response(200, &json!(state.counters.read())),
        (method, path) => json_response(404, &json!({"message": format!("no {method} {path} here")})),
    })
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn told(outcome: Result<(), String>) -> Answer {
    match outcome {
        Ok(()) => json_response(200, &json!({})),
        Err(message) => json_response(400, &json!({"message": message})),
    }
}
