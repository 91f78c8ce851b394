//! The stacks of event loops, which forget before they rest.
use std::hint::black_box;

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
