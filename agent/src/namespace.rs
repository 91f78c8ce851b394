//! A network namespace that the agent serves.
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::attestation::diag::DiagSocket;

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
        Self {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            cookie,
            is_host,
            diag,
            unattested: Arc::new(Semaphore::new(UNATTESTED)),
            closed: CancellationToken::new(),
        }
    }
}
