//! One clock for all that is done now and then.
//!
//! Chores with timers of their own wake an idle node once each, and those of an event loop several times: it keeps far
//! timers in coarse slots, and each finer slot that a timer is moved to is a wake-up. This is a timer of the kernel's: one
//! wake-up for a tick, in which everything is done that is due.
use std::{convert::Infallible, fs::File, io, io::Read as _, time::Duration};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::{io::unix::AsyncFd, sync::watch};

use crate::sys;

/// From one tick to the next: what somebody does to the programs is to be noticed within 15 s.
pub const TICK: Duration = Duration::from_secs(13);

/// The clock. Nothing ticks before it runs.
#[derive(Debug)]
pub struct SlowClock {
    timer: AsyncFd<File>,
    chores: Vec<(u64, watch::Sender<()>)>,
}

/// Tells one chore that it is due. What was missed while the chore was at work is told once.
#[derive(Debug)]
pub struct Ticks(watch::Receiver<()>);

impl SlowClock {
    /// Runs in a tokio runtime; the first tick comes after one period.
    pub fn new() -> io::Result<Self> {
        Self::with(TICK)
    }

    fn with(period: Duration) -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let period = Timespec::try_from(period).map_err(|_| io::ErrorKind::InvalidInput)?;
        let ticking = Itimerspec { it_interval: period, it_value: period };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &ticking)?;
        Ok(Self { timer: sys::readable(File::from(timer))?, chores: Vec::new() })
    }

    /// A chore that is due with every n-th tick, and is not woken by others.
    pub fn every(&mut self, ticks: u64) -> Ticks {
        let (due, told) = watch::channel(());
        self.chores.push((ticks, due));
        Ticks(told)
    }

    /// Ticks until it cannot any more.
    pub async fn run(mut self) -> io::Result<Infallible> {
        let mut now = 0;
        loop {
            let mut ready = self.timer.readable_mut().await?;
            let mut expired = [0; 8];
            match ready.try_io(|timer| timer.get_ref().read(&mut expired)) {
                // How often it expired since it was read: more than once if the machine slept or is very busy.
                Ok(read) => drop(read?),
                Err(_would_block) => continue,
            }
            now += 1;
            for (every, due) in &self.chores {
                if now % every == 0 {
                    // Whoever does not listen any more has ended.
                    let _ = due.send(());
                }
            }
        }
    }
}

impl Ticks {
    /// Waits until the chore is due; for ever when the clock has ended.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn chores_are_due_with_every_nth_tick() {
        let mut clock = SlowClock::with(Duration::from_millis(20)).unwrap();
        let (mut each, mut third) = (clock.every(1), clock.every(3));
        let (mut ticks, mut thirds) = (0, 0);
        let counting = async {
            loop {
                tokio::select! {
                    () = each.next() => ticks += 1,
                    () = third.next() => thirds += 1,
                }
            }
        };
        let ran = async { timeout(Duration::from_millis(230), counting).await.is_err() };
        tokio::select! {
            ended = clock.run() => panic!("the clock has ended: {ended:?}"),
            in_time = ran => assert!(in_time),
        }
        // The machine may be busy: what was missed is missing from both.
        assert!((3..=11).contains(&ticks), "{ticks}");
        assert!(thirds <= ticks / 3 + 1 && thirds >= 1, "{thirds} of {ticks}");
    }

    #[tokio::test]
    async fn a_clock_that_has_ended_makes_nothing_due() {
        let mut clock = SlowClock::new().unwrap();
        let mut ticks = clock.every(1);
        drop(clock);
        assert!(timeout(Duration::from_millis(50), ticks.next()).await.is_err());
    }
}
