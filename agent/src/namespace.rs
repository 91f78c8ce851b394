//! A network namespace that the agent serves.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    attestation::diag::DiagSocket,
    share::{self, Share},
};

/// Connections of unattested callers in one namespace at the same time.
const UNATTESTED: usize = 32;

/// One network namespace, shared by its listeners and their connections. Pods of the host network share one.
#[derive(Debug)]
pub struct Namespace {
    /// Tells apart namespaces that were served one after the other, whatever their cookie.
    pub serial: u64,
    /// The kernel's cookie of the namespace.
    pub cookie: u64,
    /// Whether it is the host netns.
    pub is_host: bool,
    /// Attests callers in this namespace.
    pub diag: DiagSocket,
    /// Pays for callers that are nobody's.
    pub strangers: Arc<Share>,
    /// Who pays for the next connection that is accepted: whose the last one was; strangers in the host netns.
    payer: ArcSwap<Share>,
    /// Connections of callers that are nobody's, which are only told so. Beyond these they are reset.
    pub unattested: Arc<Semaphore>,
    /// Cancelled when no pod uses the namespace any more: its listeners close.
    pub closed: CancellationToken,
}

impl Namespace {
    /// `diag` was opened in the namespace.
    #[must_use]
    pub fn new(cookie: u64, is_host: bool, diag: DiagSocket) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let strangers = Arc::new(Share::new(share::DEFAULT_PERCENT, Instant::now()));
        Self {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            cookie,
            is_host,
            diag,
            payer: ArcSwap::from(Arc::clone(&strangers)),
            strangers,
            unattested: Arc::new(Semaphore::new(UNATTESTED)),
            closed: CancellationToken::new(),
        }
    }

    /// Says who pays for the connections that follow. In the host netns they are anybody's: what cannot be told to be one
    /// pod's must not put another into debt.
    pub fn bill(&self, share: &Arc<Share>) {
        if !self.is_host && !Arc::ptr_eq(&self.payer.load(), share) {
            self.payer.store(Arc::clone(share));
        }
    }

    /// Charges for what was done since `since` for a connection of which nothing is known yet, or ever.
    pub fn pay(&self, since: Instant) {
        let now = Instant::now();
        self.payer.load().spend(now.saturating_duration_since(since), now);
    }

    /// Waits until the next connection may be accepted: while its pod is in debt, connections queue in the kernel, which
    /// bounds them. Not in the host netns, whose listener is everybody's: there each connection is attested first.
    pub async fn may_accept(&self) {
        if self.is_host {
            return;
        }
        let payer = self.payer.load_full();
        if payer.must_wait(Instant::now()) {
            drop(payer.turn().await);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn namespace(is_host: bool) -> Namespace {
        Namespace::new(1, is_host, DiagSocket::open().unwrap())
    }

    /// In debt for half a second.
    fn indebted() -> Arc<Share> {
        let share = Share::new(share::DEFAULT_PERCENT, Instant::now());
        for _ in 0..1000 {
            share.spend(Duration::from_millis(1), Instant::now());
        }
        Arc::new(share)
    }

    async fn accepts(namespace: &Namespace) -> bool {
        timeout(Duration::from_millis(50), namespace.may_accept()).await.is_ok()
    }

    #[tokio::test]
    async fn nothing_is_accepted_from_a_pod_in_debt_until_that_is_paid() {
        let namespace = namespace(false);
        assert!(accepts(&namespace).await);
        namespace.bill(&indebted());
        assert!(!accepts(&namespace).await);
        let start = Instant::now();
        namespace.may_accept().await;
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[tokio::test]
    async fn in_the_host_netns_nobody_waits_or_pays_for_another() {
        let namespace = namespace(true);
        let share = indebted();
        namespace.bill(&share);
        assert!(accepts(&namespace).await);
        assert!(!Arc::ptr_eq(&namespace.payer.load(), &share));
    }

    #[tokio::test]
    async fn strangers_pay_for_themselves() {
        let namespace = namespace(false);
        namespace.bill(&indebted());
        namespace.bill(&namespace.strangers);
        assert!(accepts(&namespace).await);
    }
}
