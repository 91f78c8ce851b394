//! Memory that is given back.
use std::ptr;

use procfs::process::{MMPermissions, MMapPath, Process};
use rustix::mm::{Advice, madvise};

/// Larger blocks are pages of their own, which go back when they are freed.
const LARGE: libc::c_int = 128 * 1024;

/// Keeps the allocator from taking large blocks that come and go for a habit: once one was freed it would keep as much for
/// the next, twice over, at the end of each thread's heap, where trimming does not reach. Before anything large is there.
pub fn return_large_blocks() {
    // SAFETY: no pointers; glibc takes its own locks.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}

/// Gives freed heap pages back to the system: a start, and a burst of calls, leave behind what is not needed again for hours.
pub(crate) fn trim_heap() {
    // SAFETY: no arguments that could be invalid; glibc takes its own locks.
    unsafe { libc::malloc_trim(0) };
}

/// Takes this program's code out of the process's memory, until it is run again: what a start runs through is not run again,
/// and pages that nobody has mapped are the first that the system takes back when it is short of them.
///
/// What is needed comes back sixteen pages at a time, without a disk as long as the system was not short of memory.
pub(crate) fn unmap_code() {
    let Ok(program) = std::env::current_exe() else { return };
    let Ok(maps) = Process::myself().and_then(|process| process.maps()) else { return };
    let (readable, wanted) = (MMPermissions::READ | MMPermissions::EXECUTE, MMapPath::Path(program));
    for map in maps.into_iter().filter(|map| map.pathname == wanted) {
        // Never what can be written, or could be before relocation: that is in no file.
        if map.perms.difference(MMPermissions::PRIVATE) != readable {
            continue;
        }
        let (Ok(start), Ok(end)) = (usize::try_from(map.address.0), usize::try_from(map.address.1)) else { continue };
        let start = ptr::with_exposed_provenance_mut(start);
        // SAFETY: pages of a file that were never written to: whoever reads or runs them next is given the same again.
        let _ = unsafe { madvise(start, end.saturating_sub(start.addr()), Advice::LinuxDontNeed) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kilobytes of this program's code that are mapped.
    fn code() -> u64 {
        let program = MMapPath::Path(std::env::current_exe().unwrap());
        let maps = Process::myself().unwrap().smaps().unwrap().into_iter();
        let code = maps.filter(|map| map.pathname == program && map.perms.contains(MMPermissions::EXECUTE));
        code.filter_map(|map| map.extension.map.get("Rss").copied()).sum::<u64>() / 1024
    }

    #[test]
    fn code_goes_and_comes_back() {
        // Something of what other tests run may come back at once.
        let before = code();
        unmap_code();
        let after = code();
        assert!(after < before, "{after} kB of {before}");
    }
}
