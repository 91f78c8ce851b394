//! The credential endpoint: the checks of a request, in the contract's order, and the answer.
use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, Uri,
    header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue},
};
use tokio::time::{Instant, timeout_at};

use super::{Context, host, record};
use crate::{
    attestation::Caller,
    credentials::{Issued, PresentedToken},
    metrics::Answer,
    namespace::Namespace,
    refusal::{Ambiguity, Refusal, TokenFault},
    token::{self, ServiceAccountToken, TokenDigest},
};

const PATH: &str = "/v1/credentials";
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Java, JS and PHP give up after a second: before that they are told to come again, and the fetch goes on.
const ANSWER_WITHIN: Duration = Duration::from_millis(900);

/// Answers one request of an attested caller.
pub(super) async fn answer<B>(
    context: &Context,
    namespace: &Namespace,
    caller: &Caller,
    request: Request<B>,
) -> Response<Full<Bytes>> {
    let started = Instant::now();
    match grant(context, caller, &request, started).await {
        Ok((issued, kind)) => {
            record::granted(context, caller, &issued, kind, started.elapsed());
            ok(issued.body.clone(), request)
        }
        Err(refusal) => {
            record::refused(context, namespace, caller.into(), &refusal, started.elapsed());
            context.metrics.responded(refusal.status());
            context.metrics.answered(Answer::Refused, started.elapsed());
            refusal.response()
        }
    }
}

/// The checks. That the caller is attested is known by its type, and that its pod is within its limits by the
/// connection it came through.
async fn grant<B>(
    context: &Context,
    caller: &Caller,
    request: &Request<B>,
    started: Instant,
) -> Result<(Arc<Issued>, Answer), Refusal> {
    check_alive(caller)?;
    check_path(request.uri())?;
    check_method(request.method())?;
    check_forwarded(request.headers())?;
    host::check(request.uri(), request.headers())?;
    let token = presented(request.headers())?;
    let granted = obtain(context, caller, token, started).await?;
    // The wait may have been long: the pod may have ended meanwhile.
    check_alive(caller)?;
    Ok(granted)
}

fn check_alive(caller: &Caller) -> Result<(), Refusal> {
    if caller.pod().is_alive() { Ok(()) } else { Err(Refusal::PodGone) }
}

fn check_path(uri: &Uri) -> Result<(), Refusal> {
    if uri.path() == PATH { Ok(()) } else { Err(Refusal::UnknownPath) }
}

fn check_method(method: &Method) -> Result<(), Refusal> {
    if matches!(*method, Method::GET | Method::HEAD) { Ok(()) } else { Err(Refusal::MethodNotAllowed) }
}

fn check_forwarded(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(X_FORWARDED_FOR) { Err(Refusal::Forwarded) } else { Ok(()) }
}

fn presented(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Err(Refusal::NoToken) };
    if values.next().is_some() {
        return Err(Refusal::AmbiguousRequest(Ambiguity::TwoAuthorizations));
    }
    // Bytes that are no ASCII text are no token either: let the parser say so.
    Ok(value.to_str().unwrap_or("�"))
}

/// Credentials for the token: from the cache when EKS Auth accepted this very token before, which passed every check
/// then; else it is read, held against the clock and the caller, and fetched with.
async fn obtain(
    context: &Context,
    caller: &Caller,
    raw: &str,
    started: Instant,
) -> Result<(Arc<Issued>, Answer), Refusal> {
    if raw.len() > token::MAX_TOKEN_BYTES {
        return Err(Refusal::MalformedToken(TokenFault::TooLong));
    }
    let digest = TokenDigest::of(raw);
    let credentials = caller.pod().credentials();
    if let Some(issued) = credentials.cached(&digest, context.clock.now()) {
        context.metrics.cache_hits.inc();
        return Ok((issued, Answer::Cached));
    }
    let claims = ServiceAccountToken::parse(raw)?.validate(context.clock.now())?;
    if claims.pod_uid != caller.pod().uid() {
        record::impersonation(context, caller, &claims);
        return Err(Refusal::ForeignToken);
    }
    let token_ends = claims.expires_at;
    context.metrics.cache_misses.inc();
    let fetched = credentials.obtain(PresentedToken::new(raw, digest, claims));
    match timeout_at(started + ANSWER_WITHIN, fetched).await {
        // The token may have ended while it was with EKS Auth.
        Ok(Ok(_)) if token::expired(token_ends, context.clock.now()) => Err(Refusal::TokenExpired),
        Ok(answer) => Ok((answer?, Answer::Fetched)),
        Err(_) => Err(Refusal::AnswerDeadline),
    }
}

/// The answer's headers take the place of the request's: the protocol keeps the table for the next request of the
/// connection, so that none is made for each.
fn ok<B>(body: Bytes, request: Request<B>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    let headers = response.headers_mut();
    *headers = request.into_parts().0.headers;
    headers.clear();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
