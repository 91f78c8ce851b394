//! Memory for secrets that are kept for hours: in no swap space, in no dump, and wiped at its end.
//!
//! Answers are a kilobyte or two, pages four: several share one. They are the same process's on pages of their own, and no
//! page has another protection than the next, so nothing that can read one answer was kept from reading another before.
//! What a page for each did better is that its end was unmapped; here it is wiped, and a pointer to it that outlived it
//! would meet zeros or the next answer. There is none: an answer's memory is freed by its last owner (`Bytes`).
use std::{
    ops::Deref,
    ptr::{self, NonNull},
    slice,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::Zeroize as _;

/// Bytes that are mapped together and cut into places of one size.
const BLOCK: usize = 16 * 1024;
/// Sizes of places are multiples of this.
const GRAIN: usize = 256;
/// Longer bytes have pages of their own.
const LONGEST: usize = 4096;

/// Bytes on pages that are never written to a disk.
///
/// The kernel locks as much as `RLIMIT_MEMLOCK` allows (8 MiB by default since Linux 5.16, which is some 4 000 pods'
/// credentials); beyond that the bytes are kept all the same, on pages that may be swapped.
pub(crate) struct Locked {
    start: NonNull<u8>,
    len: usize,
    /// Where there were no pages to be had.
    heap: Vec<u8>,
}

// SAFETY: the bytes belong to this value alone, and are only read once it is made.
unsafe impl Send for Locked {}
// SAFETY: as above.
unsafe impl Sync for Locked {}

static PLACES: Mutex<Places> = Mutex::new(Places { blocks: Vec::new() });

fn places() -> MutexGuard<'static, Places> {
    PLACES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Locked {
    /// Copies the bytes. The caller wipes its own.
    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        let len = bytes.len();
        let start = if len > LONGEST { map(len) } else { places().take(len) };
        let Some(start) = start else {
            return Self { start: NonNull::dangling(), len: 0, heap: bytes.to_vec() };
        };
        // SAFETY: the place has `len` bytes at least, is nobody else's, and stays until the drop.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start.as_ptr(), len) };
        Self { start, len, heap: Vec::new() }
    }
}

impl Deref for Locked {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.len == 0 {
            return &self.heap;
        }
        // SAFETY: the place has `len` initialized bytes and is this value's as long as it lives, which gives out shared
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
        // SAFETY: the place is this value's, and nothing refers to it any more.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len).zeroize() };
        if self.len > LONGEST {
            unmap(self.start, self.len);
        } else {
            places().give_back(self.start);
        }
    }
}

/// Locked blocks, each cut into places of one size.
struct Places {
    blocks: Vec<Block>,
}

struct Block {
    start: NonNull<u8>,
    place: usize,
    /// A bit for each place that is taken.
    taken: u64,
}

// SAFETY: a block is the memory itself, not some thread's; whoever holds `Places` may map and unmap it.
unsafe impl Send for Block {}

const _: () = assert!(BLOCK / GRAIN <= u64::BITS as usize);

impl Block {
    /// How many bytes into the block a place begins that is free.
    fn free(&self) -> Option<usize> {
        let first = self.taken.trailing_ones() as usize;
        (first < BLOCK / self.place).then_some(first)
    }

    fn holds(&self, start: NonNull<u8>) -> bool {
        (self.start.as_ptr().addr()..self.start.as_ptr().addr() + BLOCK).contains(&start.as_ptr().addr())
    }
}

impl Places {
    /// A place for so many bytes; none if there is no memory to be had, or nothing to be kept.
    fn take(&mut self, len: usize) -> Option<NonNull<u8>> {
        let place = len.next_multiple_of(GRAIN);
        if place == 0 {
            return None;
        }
        let roomy = self.blocks.iter().position(|block| block.place == place && block.free().is_some());
        let at = if let Some(at) = roomy {
            at
        } else {
            self.blocks.push(Block { start: map(BLOCK)?, place, taken: 0 });
            self.blocks.len() - 1
        };
        let block = self.blocks.get_mut(at)?;
        let free = block.free()?;
        block.taken |= 1 << free;
        // SAFETY: a free place lies within its block.
        Some(unsafe { block.start.add(free * place) })
    }

    /// The place has been wiped. Blocks that nobody uses any more are given back.
    fn give_back(&mut self, start: NonNull<u8>) {
        let Some(at) = self.blocks.iter().position(|block| block.holds(start)) else { return };
        let Some(block) = self.blocks.get_mut(at) else { return };
        let place = (start.as_ptr().addr() - block.start.as_ptr().addr()) / block.place;
        block.taken &= !(1 << place);
        if block.taken == 0 {
            let block = self.blocks.swap_remove(at);
            unmap(block.start, BLOCK);
        }
    }
}

/// New pages, locked and left out of dumps as far as that is to be had, before anything secret is there.
fn map(len: usize) -> Option<NonNull<u8>> {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new private mapping at a place that the kernel chooses overlaps nothing.
    let start = NonNull::new(unsafe { mmap_anonymous(ptr::null_mut(), len, protection, flags) }.ok()?.cast::<u8>())?;
    // SAFETY: the mapping is `len` bytes long.
    unsafe {
        let _ = mlock(start.as_ptr().cast(), len);
        let _ = madvise(start.as_ptr().cast(), len, Advice::LinuxDontDump);
    }
    Some(start)
}

/// The kernel unlocks what it unmaps.
fn unmap(start: NonNull<u8>, len: usize) {
    // SAFETY: a mapping that `map` made with this length, to which nothing refers any more.
    let _ = unsafe { munmap(start.as_ptr().cast(), len) };
}

#[cfg(test)]
mod tests {
    use procfs::process::{Process, VmFlags};

    use super::*;

    /// Whether the page of these bytes is locked and left out of dumps; `None` when it is not mapped.
    fn kept_in(start: *const u8) -> Option<bool> {
        let maps = Process::myself().unwrap().smaps().unwrap();
        let address = start.addr() as u64;
        let map = maps.into_iter().find(|map| (map.address.0..map.address.1).contains(&address))?;
        Some(map.extension.vm_flags.contains(VmFlags::LO | VmFlags::DD))
    }

    fn filled(byte: u8, len: usize) -> Locked {
        Locked::copy_of(&vec![byte; len])
    }

    #[test]
    fn bytes_of_every_length_are_kept_on_locked_pages() {
        let kept: Vec<_> = [1, 255, 256, 257, 1700, 4095, 4096, 4097, 20_000].map(|len| filled(7, len)).into();
        for kept in &kept {
            assert!(kept.iter().all(|byte| *byte == 7));
            assert_eq!(kept_in(kept.as_ptr()), Some(true), "{} bytes", kept.len());
        }
        assert!(Locked::copy_of(b"").is_empty());
    }

    #[test]
    fn what_is_long_is_unmapped_at_its_end() {
        let start = filled(1, 5000).as_ptr();
        // Somebody else's memory may be there by now.
        assert_ne!(kept_in(start), Some(true));
    }

    #[test]
    fn places_of_a_block_are_apart_and_used_again_and_the_last_one_takes_the_block_along() {
        let mut places = Places { blocks: Vec::new() };
        // Ten of 1 536 bytes in 16 KiB.
        let taken: Vec<_> = (0..25).map(|_| places.take(1500).unwrap()).collect();
        assert_eq!(places.blocks.len(), 3);
        let mut starts: Vec<_> = taken.iter().map(|start| start.as_ptr().addr()).collect();
        starts.sort_unstable();
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= 1500));
        // Of another length, in a block of its own.
        let other = places.take(200).unwrap();
        assert_eq!(places.blocks.len(), 4);
        places.give_back(taken[3]);
        assert_eq!(places.take(1400), Some(taken[3]));
        for start in taken {
            places.give_back(start);
        }
        assert_eq!(places.blocks.len(), 1);
        places.give_back(other);
        assert!(places.blocks.is_empty());
    }

    #[test]
    fn a_place_is_wiped_before_it_is_anybodys_again() {
        // Keeps the block.
        let _other = filled(1, 700);
        let secret = filled(9, 700);
        let start = secret.as_ptr();
        drop(secret);
        // SAFETY: the block is still there, and its bytes are initialized. Other tests write no nines.
        let left = unsafe { slice::from_raw_parts(start, 700) };
        assert!(!left.contains(&9));
    }
}
