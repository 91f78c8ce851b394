//! A fetch: a token, who waits for it, and how far it is.
use std::sync::Arc;

use tokio::{sync::oneshot, time::Instant};

use super::super::{
    Engine, Grant, UpstreamFuture,
    gate::{Outcome, Permit, Turn},
    handle::{Answer, Flushed, PresentedToken},
};
use crate::{metrics::EksAuthOutcome, refusal::Refusal};

/// A call to EKS Auth, and who waits for it.
pub(super) struct Fetch {
    pub(super) token: Arc<PresentedToken>,
    pub(super) waiters: Vec<oneshot::Sender<Answer>>,
    /// Operators who asked for it; none for every other fetch.
    pub(super) flushes: Vec<oneshot::Sender<Flushed>>,
    pub(super) stage: Stage,
    pub(super) started: Instant,
}

/// A fetch that has ended.
pub(super) struct Done {
    pub(super) token: Arc<PresentedToken>,
    pub(super) waiters: Vec<oneshot::Sender<Answer>>,
    pub(super) flushes: Vec<oneshot::Sender<Flushed>>,
    pub(super) started: Instant,
}

/// How far a fetch is.
pub(super) enum Stage {
    /// Before the gate.
    Queued(Turn),
    /// With EKS Auth.
    Calling { call: UpstreamFuture, permit: Permit },
}

/// A token that waits for its turn.
pub(super) struct Waiting {
    pub(super) token: Arc<PresentedToken>,
    pub(super) waiters: Vec<oneshot::Sender<Answer>>,
}

/// Adds a waiter. Those who hung up are thrown out as the list grows, so that it holds no more than twice the living.
pub(super) fn join(waiters: &mut Vec<oneshot::Sender<Answer>>, waiter: oneshot::Sender<Answer>) {
    if waiters.len() == waiters.capacity() {
        waiters.retain(|waiter| !waiter.is_closed());
    }
    waiters.push(waiter);
}

pub(super) fn answer(waiters: Vec<oneshot::Sender<Answer>>, answer: &Answer) {
    for waiter in waiters {
        // Whoever hung up is gone.
        let _ = waiter.send(answer.clone());
    }
}

pub(super) fn tell(operators: Vec<oneshot::Sender<Flushed>>, flushed: &Flushed) {
    for done in operators {
        // Whoever hung up is gone.
        let _ = done.send(flushed.clone());
    }
}

/// What the metrics are to know of a call.
pub(super) fn outcome_of(answer: &Answer) -> EksAuthOutcome {
    match answer {
        Ok(_) => EksAuthOutcome::Ok,
        Err(Refusal::EksAuthRefused(_)) => EksAuthOutcome::Refused,
        Err(Refusal::NodeCredentials) => EksAuthOutcome::NodeCredentials,
        Err(Refusal::EksAuthThrottled { .. }) => EksAuthOutcome::Throttled,
        Err(_) => EksAuthOutcome::Unavailable,
    }
}

/// What the gate is to know of a call.
fn reported(outcome: &Result<Grant, Refusal>) -> Outcome {
    match outcome {
        Ok(_) | Err(Refusal::EksAuthRefused(_) | Refusal::SubjectMismatch) => Outcome::Answered,
        Err(Refusal::EksAuthThrottled { .. }) => Outcome::Throttled,
        Err(_) => Outcome::Failed,
    }
}

/// Takes the fetch through the gate and to its end. May be dropped at any await and called again: all that is done so
/// far is in `fetch`.
pub(super) async fn next_outcome(engine: &Engine, fetch: &mut Option<Fetch>) -> (Done, Result<Grant, Refusal>) {
    let Some(running) = fetch.as_mut() else {
        return std::future::pending().await;
    };
    let outcome = loop {
        match &mut running.stage {
            Stage::Queued(turn) => {
                let permit = turn.admitted().await;
                let call = engine.upstream.assume_role(Arc::clone(&running.token));
                running.stage = Stage::Calling { call, permit };
            }
            Stage::Calling { call, .. } => break call.as_mut().await,
        }
    };
    match fetch.take() {
        Some(Fetch { token, waiters, flushes, stage, started }) => {
            if let Stage::Calling { permit, .. } = stage {
                permit.finish(reported(&outcome));
            }
            (Done { token, waiters, flushes, started }, outcome)
        }
        None => std::future::pending().await,
    }
}
