//! What a heap that wipes what is freed costs over one that does not: allocating, writing and freeing a block.
//!
//! `cargo bench -p pod-identity-agent --bench heap`. The binary's heap is the agent's; the system's own is called past it.
#![expect(unsafe_code, reason = "calls the system's heap past the global one")]
#![expect(clippy::print_stdout, reason = "prints its result")]
use std::{
    alloc::{GlobalAlloc, Layout, System},
    hint::black_box,
    time::{Duration, Instant},
};

// The global heap is the library's.
use pod_identity_agent as _;

const ROUNDS: u32 = 200_000;

/// Nanoseconds for a round, the best of five runs.
fn measure(mut round: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        (0..ROUNDS).for_each(|_| round());
        best = best.min(started.elapsed());
    }
    best.as_secs_f64() * 1e9 / f64::from(ROUNDS)
}

/// A few cache lines are written, as most blocks are never filled.
fn touch(block: *mut u8, size: usize) {
    // SAFETY: the block has `size` bytes.
    unsafe { block.write_bytes(1, size.min(64)) };
    black_box(block);
}

fn main() {
    println!("{:>8} {:>12} {:>12} {:>12}", "bytes", "system ns", "wiped ns", "more ns");
    for size in [16, 64, 256, 1024, 2048, 4096, 8192, 16 * 1024, 64 * 1024] {
        let Ok(layout) = Layout::from_size_align(size, 8) else { continue };
        // SAFETY: the layout is not empty, and what is freed was allocated with it by the same heap.
        let system = measure(|| unsafe {
            let block = System.alloc(layout);
            touch(block, size);
            System.dealloc(block, layout);
        });
        // SAFETY: as above.
        let wiped = measure(|| unsafe {
            let block = std::alloc::alloc(layout);
            touch(block, size);
            std::alloc::dealloc(block, layout);
        });
        println!("{size:>8} {system:>12.1} {wiped:>12.1} {:>12.1}", wiped - system);
    }
    let string = measure(|| {
        let mut text = String::new();
        (0..100).for_each(|_| text.push_str("forty bytes, more or less, are added now"));
        black_box(&text);
    });
    println!("a string that grows to 4000 bytes, 9 moves: {string:.0} ns");
    let park = measure(pod_identity_agent::sys::stack::scrub);
    println!("an event loop that rests: {park:.0} ns");
}
