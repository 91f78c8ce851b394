//! Watches on the cgroup directories that hold pods and containers.
use std::{collections::HashMap, io, path::Path};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Room for a burst of events; the kernel keeps the rest until the next read.
const BUFFER_BYTES: usize = 16 * 1024;

/// Something happened below a watched directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A directory appeared.
    Appeared {
        /// Path of the watched directory, relative to the kubepods root (empty for the root itself).
        parent: String,
        /// Its name.
        name: String,
    },
    /// A directory is gone.
    Vanished {
        /// As above.
        parent: String,
        /// As above.
        name: String,
    },
    /// The watched directory itself is gone.
    Removed {
        /// Its path.
        directory: String,
    },
    /// Events were lost: everything must be looked at.
    Overflow,
}

/// inotify on directories, each known by its path relative to the kubepods root.
#[derive(Debug)]
pub(super) struct Watches {
    inotify: AsyncFd<Inotify>,
    paths: HashMap<WatchDescriptor, String>,
    by_path: HashMap<String, WatchDescriptor>,
}

impl Watches {
    /// Watches nothing yet. Runs in a tokio runtime.
    pub(super) fn new() -> io::Result<Self> {
        let inotify = sys::readable(Inotify::init()?)?;
        Ok(Self { inotify, paths: HashMap::new(), by_path: HashMap::new() })
    }

    /// Watches a directory for directories that come and go. What is there already must be listed after this call.
    pub(super) fn add(&mut self, path: &str, directory: &Path) -> io::Result<()> {
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::DELETE_SELF | WatchMask::ONLYDIR;
        let watch = self.inotify.get_ref().watches().add(directory, mask)?;
        // A directory that was removed and made again under its name has a new watch.
        if let Some(old) = self.by_path.insert(path.to_owned(), watch.clone()).filter(|old| *old != watch) {
            self.paths.remove(&old);
        }
        self.paths.insert(watch, path.to_owned());
        Ok(())
    }

    /// Forgets a directory that is gone. The kernel has dropped its watch.
    pub(super) fn forget(&mut self, path: &str) {
        if let Some(watch) = self.by_path.remove(path) {
            self.paths.remove(&watch);
        }
    }

    /// Waits for the next changes.
    pub(super) async fn changes(&mut self) -> io::Result<Vec<Change>> {
        loop {
            let mut guard = self.inotify.readable_mut().await?;
            let mut buffer = [0_u8; BUFFER_BYTES];
            let events = match guard.get_inner_mut().read_events(&mut buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    guard.clear_ready();
                    continue;
                }
                Err(error) => return Err(error),
            };
            let changes: Vec<Change> = events
                .filter_map(|event| {
                    if event.mask.contains(EventMask::Q_OVERFLOW) {
                        return Some(Change::Overflow);
                    }
                    let parent = self.paths.get(&event.wd)?.clone();
                    if event.mask.contains(EventMask::DELETE_SELF) {
                        return Some(Change::Removed { directory: parent });
                    }
                    let name = event.name.filter(|_| event.mask.contains(EventMask::ISDIR))?.to_str()?.to_owned();
                    if event.mask.contains(EventMask::CREATE) {
                        Some(Change::Appeared { parent, name })
                    } else if event.mask.contains(EventMask::DELETE) {
                        Some(Change::Vanished { parent, name })
                    } else {
                        None
                    }
                })
                .collect();
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }
}
