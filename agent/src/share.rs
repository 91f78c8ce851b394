//! What one pod may take of the serving thread.
//!
//! All pods share that thread, and what it does for one it does not do for another meanwhile. So its time is the
//! currency, whatever it is spent on (accepting, attesting, reading, parsing, hashing, answering, logging): a limit on
//! requests would have to guess the price of the worst one, and one on bytes that of the shortest.
use std::{
    num::NonZeroU8,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

#[cfg(test)]
mod tests;

/// Of the thread's time, in percent, for one pod: some 5 000 cached answers a second, 2 000 with a new connection each.
/// That is more than AWS's agent gives to all pods of a node (1 000), so no pod that lives with that one is slowed down.
pub const DEFAULT_PERCENT: NonZeroU8 = NonZeroU8::MIN.saturating_add(9);

/// What a pod may take after it was quiet, beyond which it is in debt: two thousand clients that start together.
const BURST: Duration = Duration::from_millis(100);

/// What it may take of that without regard to others. Beyond, its connections run one at a time, each behind what others
/// have to do: nobody waits for more than this and then for one of them. A connection or two never get here.
const AT_ONCE: Duration = Duration::from_millis(2);

/// Nothing is charged more: what takes longer was not running (the thread was preempted), and a hundred such accidents in
/// a row must not put a pod into debt.
const MOST_FOR_ONE: Duration = Duration::from_micros(500);

/// However much was spent, in debt for so long at most: who stops is soon served as everybody, and nobody waits for more
/// than an SDK's patience on account of what is over.
const LONGEST_DEBT: Duration = Duration::from_millis(500);

/// One payer's account with the serving thread.
#[derive(Debug)]
pub struct Share {
    opened: Instant,
    /// `None` without a limit.
    percent: Option<NonZeroU8>,
    /// Nanoseconds since the opening at which what was spent is paid for. Only the serving thread writes it.
    paid_at: AtomicU64,
    /// Of all that wait one at a time has its turn, in the order in which they came: run or woken together they would keep
    /// others waiting, and spend more than is there.
    turn: Arc<Semaphore>,
}

impl Share {
    /// A share of so many percent; 100 is no limit.
    #[must_use]
    pub fn new(percent: NonZeroU8, now: Instant) -> Self {
        let percent = (percent.get() < 100).then_some(percent);
        Self { opened: now, percent, paid_at: AtomicU64::new(0), turn: Arc::new(Semaphore::new(1)) }
    }

    /// For how long it is in debt; `None` when it may go on.
    #[must_use]
    pub fn debt(&self, now: Instant) -> Option<Duration> {
        let left = self.paid_at.load(Ordering::Relaxed).saturating_sub(self.axis(now, self.percent?));
        (left > 0).then(|| Duration::from_nanos(left))
    }

    /// Charges what was spent.
    pub fn spend(&self, spent: Duration, now: Instant) {
        let Some(percent) = self.percent else { return };
        let now = self.axis(now, percent);
        let earliest = now.saturating_sub(time_for(BURST, percent));
        let from = self.paid_at.load(Ordering::Relaxed).max(earliest);
        let paid_at = (from + time_for(spent.min(MOST_FOR_ONE), percent)).min(now + nanoseconds(LONGEST_DEBT));
        self.paid_at.store(paid_at, Ordering::Relaxed);
    }

    /// Whether it has taken so much that one has to wait for a turn, or others wait for one already.
    #[must_use]
    pub fn must_wait(&self, now: Instant) -> bool {
        let Some(percent) = self.percent else { return false };
        let taken = self.paid_at.load(Ordering::Relaxed) + time_for(BURST, percent);
        taken > self.axis(now, percent) + time_for(AT_ONCE, percent) || self.turn.available_permits() == 0
    }

    /// Waits for a turn, which come in the order of the calls and not before the debt is paid. The next one comes when
    /// this one is dropped.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // Turns are never closed.
        let turn = Arc::clone(&self.turn).acquire_owned().await.ok();
        while let Some(debt) = self.debt(Instant::now()) {
            sleep(debt).await;
        }
        turn
    }

    /// Nanoseconds since the opening, shifted by the burst, which is there before any time has passed.
    fn axis(&self, now: Instant, percent: NonZeroU8) -> u64 {
        nanoseconds(now.saturating_duration_since(self.opened)) + time_for(BURST, percent)
    }
}

/// How many nanoseconds must pass for something to be paid with a share of so many percent.
fn time_for(spent: Duration, percent: NonZeroU8) -> u64 {
    nanoseconds(spent) * 100 / u64::from(percent.get())
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
