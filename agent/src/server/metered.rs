//! Charges a pod for what the serving thread does for one of its connections, and lets a pod in debt wait.
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::share::Share;

type Turn = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

/// A connection's work, paid for by its pod.
///
/// While the pod is in debt nothing of it is run, so nothing is read: the sockets' buffers fill, and what the pod sends
/// beyond costs its own time only. Requests are served later instead of refused, as a refusal takes as long as an answer.
pub(super) struct Metered<F, D> {
    work: F,
    share: Arc<Share>,
    pod_ended: CancellationToken,
    delayed: D,
    /// The wait for the debt to be paid, if there is one.
    turn: Option<Turn>,
}

impl<F: Future + Unpin, D: Fn() + Unpin> Metered<F, D> {
    /// `delayed` is called when the work has to wait.
    pub(super) fn new(share: Arc<Share>, pod_ended: CancellationToken, work: F, delayed: D) -> Self {
        Self { work, share, pod_ended, delayed, turn: None }
    }
}

impl<F: Future + Unpin, D: Fn() + Unpin> Future for Metered<F, D> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let share = &this.share;
        let mut now = Instant::now();
        let mut permit = None;
        if this.turn.is_some() || share.must_wait(now) {
            let turn = this.turn.get_or_insert_with(|| {
                if share.debt(now).is_some() {
                    (this.delayed)();
                }
                let (share, ended) = (Arc::clone(share), this.pod_ended.clone());
                Box::pin(async move {
                    tokio::select! {
                        turn = share.turn() => turn,
                        // The end of a pod is not put off: its connections are reset at once.
                        () = ended.cancelled() => None,
                    }
                })
            });
            permit = ready!(turn.as_mut().poll(cx));
            now = Instant::now();
        }
        this.turn = None;
        let polled = Pin::new(&mut this.work).poll(cx);
        let then = Instant::now();
        share.spend(then - now, then);
        if let Some(permit) = permit {
            // The next one's turn comes when everything else that can run now has run: many connections of a pod may be
            // among that, and each of them is to find the turn taken.
            tokio::spawn(async move { drop(permit) });
        }
        polled
    }
}

#[cfg(test)]
mod tests;
