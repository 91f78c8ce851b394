//! EKS Auth's answers, in its own shape (restJson1).
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::{associations::Found, credentials::Issued};
use crate::token::{AUDIENCE, Subject, random_uid};

/// An error that EKS Auth, or the front that checks signatures, answers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: u16,
    pub(super) code: String,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(status: u16, code: &str, message: &str) -> Self {
        Self { status, code: code.to_owned(), message: message.to_owned() }
    }

    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let mut response = json_response(self.status, &json!({"message": self.message}));
        if let Ok(code) = self.code.parse() {
            response.headers_mut().insert("x-amzn-errortype", code);
        }
        response
    }
}

/// The answer to a call that succeeded.
pub(super) fn granted(subject: &Subject, found: &Found, issued: &Issued) -> Response<Full<Bytes>> {
    json_response(
        200,
        &json!({
            "subject": {"namespace": subject.namespace, "serviceAccount": subject.service_account},
            "audience": AUDIENCE,
            "podIdentityAssociation": {"associationArn": found.arn, "associationId": found.id},
            "assumedRoleUser": {"arn": issued.assumed_role_arn, "assumeRoleId": issued.assumed_role_id},
            "credentials": {
                "sessionToken": issued.session_token,
                "secretAccessKey": issued.secret_access_key,
                "accessKeyId": issued.access_key_id,
                "expiration": issued.expiration,
            },
        }),
    )
}

/// Any answer in JSON, with the request id that AWS's services give.
pub(super) fn json_response(status: u16, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    if let Ok(id) = random_uid().parse() {
        headers.insert("x-amzn-requestid", id);
    }
    response
}
