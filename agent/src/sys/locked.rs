//! Memory for secrets that are kept for hours: in no swap space, in no dump, and wiped at its end.
use std::{
    ops::Deref,
    ptr::{self, NonNull},
    slice,
};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::Zeroize as _;

/// Bytes on pages of their own, which are never written to a disk.
///
/// The kernel locks as much as `RLIMIT_MEMLOCK` allows (8 MiB by default since Linux 5.16, which is 2048 pods'
/// credentials); beyond that the bytes are kept all the same, on pages that may be swapped.
pub(crate) struct Locked {
    start: NonNull<u8>,
    len: usize,
    /// Where there were no pages to be had.
    heap: Vec<u8>,
}

// SAFETY: the pages belong to this value alone, and are only read once it is made.
unsafe impl Send for Locked {}
// SAFETY: as above.
unsafe impl Sync for Locked {}

impl Locked {
    /// Copies the bytes. The caller wipes its own.
    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        let len = bytes.len();
        // SAFETY: a new private mapping at a place that the kernel chooses overlaps nothing.
        let pages = unsafe {
            mmap_anonymous(ptr::null_mut(), len.max(1), ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        };
        let Some(start) = pages.ok().and_then(|pages| NonNull::new(pages.cast::<u8>())) else {
            return Self { start: NonNull::dangling(), len: 0, heap: bytes.to_vec() };
        };
        // SAFETY: the mapping is `len` bytes long at least, nobody else knows it, and stays until the drop.
        unsafe {
            // Before anything secret is there; what is not to be had is done without.
            let _ = mlock(start.as_ptr().cast(), len);
            let _ = madvise(start.as_ptr().cast(), len, Advice::LinuxDontDump);
            ptr::copy_nonoverlapping(bytes.as_ptr(), start.as_ptr(), len);
        }
        Self { start, len, heap: Vec::new() }
    }
}

impl Deref for Locked {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.len == 0 {
            return &self.heap;
        }
        // SAFETY: the mapping has `len` initialized bytes and lives as long as `self`, which gives out shared
        // references only.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Locked {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if self.len == 0 {
            return self.heap.zeroize();
        }
        // SAFETY: the mapping is this value's, and nothing refers to it any more. The kernel unlocks what it unmaps.
        unsafe {
            slice::from_raw_parts_mut(self.start.as_ptr(), self.len).zeroize();
            let _ = munmap(self.start.as_ptr().cast(), self.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kilobytes of this process that are locked.
    fn locked() -> u64 {
        procfs::process::Process::myself().unwrap().status().unwrap().vmlck.unwrap()
    }

    #[test]
    fn bytes_are_kept_on_locked_pages_and_given_back() {
        let before = locked();
        let kept: Vec<_> = (0..4).map(|n| Locked::copy_of(&[n; 5000])).collect();
        assert!(kept.iter().zip(0..).all(|(kept, n)| **kept == [n; 5000]));
        assert_eq!(locked() - before, 4 * 8, "two pages each");
        drop(kept);
        assert_eq!(locked(), before);
        assert!(Locked::copy_of(b"").is_empty());
    }
}
