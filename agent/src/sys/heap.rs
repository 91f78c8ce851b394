//! The heap, which forgets: memory is wiped when it is freed.
//!
//! Secrets pass through libraries that do not wipe them: hyper's read buffers hold tokens, those of TLS and the SDK hold
//! credentials, a string that grows leaves its former self behind. What they free lies in the process until somebody
//! happens to be given the same memory. Here it does not. `cargo bench --bench heap` says what it costs.
use std::alloc::{GlobalAlloc, Layout, System};

#[global_allocator]
static HEAP: WipedOnFree = WipedOnFree;

struct WipedOnFree;

// SAFETY: every call goes to `System` with the arguments as they came, so its guarantees are ours; memory is written to
// only while it is still the caller's to free. `realloc` is the trait's own: it allocates, copies and frees, so no copy
// stays behind where the system's would have moved the block.
unsafe impl GlobalAlloc for WipedOnFree {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` has `layout.size()` bytes that nobody uses any more. A plain `write_bytes` could be left out
        // by the compiler, which knows that nothing reads freed memory; this is a call that it may not leave out.
        unsafe { libc::explicit_bzero(block.cast(), layout.size()) };
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[cfg(test)]
mod tests {
    use std::alloc::{Layout, alloc, dealloc, realloc};

    /// Whether memory that has been freed still says `SECRET`. What the heap's own bookkeeping wrote over it (the first
    /// words of a free block) is left out. Allocates nothing: it could be given the very block.
    fn remembers(freed: *const u8, size: usize) -> bool {
        // SAFETY: glibc keeps small blocks mapped after they are freed, and no other thread allocates here meanwhile
        // within the few instructions; whatever bytes are there are valid bytes.
        (32..size - 6).any(|at| (0..6).all(|n| unsafe { freed.add(at + n).read_volatile() } == b"SECRET"[n]))
    }

    fn filled(layout: Layout) -> *mut u8 {
        // SAFETY: the layout is not empty, and the block is written within its size.
        unsafe {
            let block = alloc(layout);
            for at in 0..layout.size() {
                block.add(at).write(b"SECRET"[at % 6]);
            }
            block
        }
    }

    #[test]
    fn freed_memory_is_wiped_and_so_is_what_a_growing_block_leaves_behind() {
        for size in [64, 100, 1500, 16 * 1024] {
            let layout = Layout::from_size_align(size, 8).unwrap();
            let block = filled(layout);
            assert!(remembers(block, size), "the test sees nothing");
            // SAFETY: allocated above with the same layout.
            unsafe { dealloc(block, layout) };
            assert!(!remembers(block, size), "{size} bytes were freed as they were");

            let block = filled(layout);
            // SAFETY: allocated above with the same layout; the new size is not 0.
            let moved = unsafe { realloc(block, layout, size * 4) };
            assert!(moved == block || !remembers(block, size), "{size} bytes were moved and left where they were");
            // SAFETY: what realloc returned has the new size.
            unsafe { dealloc(moved, Layout::from_size_align(size * 4, 8).unwrap()) };
        }
    }
}
