//! Watches on the cgroup directories that hold pods and containers.
use std::{collections::HashMap, io, path::Path};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;

use crate::{inotify_events, sys};

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
    /// Events were lost: everything must be looked at.
    Overflow,
}

/// inotify on directories, each known by its path relative to the kubepods root.
#[derive(Debug)]
pub(super) struct Watches {
    /// None where the node has no inotify instance left for the agent.
    inotify: Option<AsyncFd<Inotify>>,
    paths: HashMap<WatchDescriptor, String>,
    by_path: HashMap<String, WatchDescriptor>,
}

impl Watches {
    /// Watches nothing yet. Runs in a tokio runtime.
    ///
    /// A pod of the same user can use up the node's inotify instances. That must not keep the agent from serving: it is
    /// blind then, and its owner must look by itself.
    pub(super) fn new() -> Self {
        let inotify = Inotify::init().and_then(sys::readable);
        if let Err(error) = &inotify {
            tracing::error!(%error, "cannot watch for pods (raise fs.inotify.max_user_instances): looking every second");
        }
        Self { inotify: inotify.ok(), paths: HashMap::new(), by_path: HashMap::new() }
    }

    /// Whether nothing can be watched.
    pub(super) fn is_blind(&self) -> bool {
        self.inotify.is_none()
    }

    /// Watches a directory for directories that come and go. What is there already must be listed after this call.
    pub(super) fn add(&mut self, path: &str, directory: &Path) -> io::Result<()> {
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR;
        let Some(inotify) = &self.inotify else { return Ok(()) };
        let watch = inotify.get_ref().watches().add(directory, mask)?;
        if self.by_path.get(path) != Some(&watch) {
            // A directory that was removed and made again under its name has a new watch.
            self.forget(path);
            self.by_path.insert(path.to_owned(), watch.clone());
            self.paths.insert(watch, path.to_owned());
        }
        Ok(())
    }

    /// Forgets a directory that is gone. kernfs does not drop the watches of removed directories: each would stay, and
    /// count against the node's limit.
    pub(super) fn forget(&mut self, path: &str) {
        if let Some(watch) = self.by_path.remove(path) {
            self.paths.remove(&watch);
            if let Some(inotify) = &self.inotify {
                // Refused when the kernel did drop it.
                let _ = inotify.get_ref().watches().remove(watch);
            }
        }
    }

    /// Waits for the next changes.
    pub(super) async fn changes(&mut self) -> io::Result<Vec<Change>> {
        let Some(inotify) = &mut self.inotify else { return std::future::pending().await };
        loop {
            let changes: Vec<Change> = inotify_events::next(inotify)
                .await?
                .into_iter()
                .filter_map(|event| {
                    if event.mask.contains(EventMask::Q_OVERFLOW) {
                        return Some(Change::Overflow);
                    }
                    let parent = self.paths.get(&event.wd)?.clone();
                    let name = event.name.filter(|_| event.mask.contains(EventMask::ISDIR))?.into_string().ok()?;
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
