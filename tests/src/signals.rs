//! Signals that end a program by the way that cleans up.
use std::{
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    thread,
};

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

/// Whether one has arrived.
#[derive(Clone, Debug, Default)]
pub struct Signals(Arc<AtomicI32>);

impl Signals {
    /// From now on a signal ends nothing by itself; it is noted.
    pub fn listen() -> Result<Self> {
        let signals = Self::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (mut interrupt, mut terminate, mut hang_up) = {
            let _entered = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
        };
        let arrived = Arc::clone(&signals.0);
        thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    let number = tokio::select! {
                        _ = interrupt.recv() => SignalKind::interrupt(),
                        _ = terminate.recv() => SignalKind::terminate(),
                        _ = hang_up.recv() => SignalKind::hangup(),
                    };
                    arrived.store(number.as_raw_value(), Ordering::Relaxed);
                }
            });
        });
        Ok(signals)
    }

    /// The number of the last one.
    #[must_use]
    pub fn arrived(&self) -> Option<i32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|number| *number != 0)
    }
}
