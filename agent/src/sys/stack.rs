//! The stacks of event loops, which forget before they rest.
use std::{
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// How deep: futures are polled within some kilobytes, TLS and hash functions included; without optimization it is more.
const DEPTH: usize = if cfg!(debug_assertions) { 256 * 1024 } else { 32 * 1024 };

/// Overwrites the stack below the caller's frame. As `on_thread_park` of a runtime it is called at the bottom of the event
/// loop, when nothing is left to do: what tasks' functions left in their frames goes, at the cost of half a microsecond
/// when nobody waits for it.
///
/// Hash functions keep the last block of what they hash in a local variable, parsers the bytes that they looked at last:
/// without this the end of a token stays on the stack until other calls happen to reach the same place.
#[inline(never)]
#[expect(clippy::large_stack_arrays, reason = "the stack is what it is about")]
pub fn scrub() {
    black_box(&mut [0_u8; DEPTH]);
}

/// Between two scrubs of a loop that is busy.
const AT_MOST_EVERY: Duration = Duration::from_millis(100);

/// Scrubs, but not at every rest of a loop that rests after each request: 32 KiB are all of a processor's first cache, and
/// to fill it with zeros costs the next request more than the writing itself.
///
/// What is left at a rest that came too soon after the last scrub goes at the next one, so the loop must not rest for ever:
/// the serving thread wakes for its pulse ([`crate::server::PULSE_TICKS`]) at the latest.
pub fn scrub_at_times() -> impl Fn() + Send + Sync + 'static {
    let (start, scrubbed) = (Instant::now(), AtomicU64::new(0));
    move || {
        let now = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        if u128::from(now.saturating_sub(scrubbed.load(Ordering::Relaxed))) >= AT_MOST_EVERY.as_millis() {
            scrubbed.store(now, Ordering::Relaxed);
            scrub();
        }
    }
}
