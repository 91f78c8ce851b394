//! inotify on the token volumes of pods.
use std::{collections::HashMap, io};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;

use super::files::{TOKEN_FILE, Volume};
use crate::{inotify_events, pod_uid::PodUid, sys};

/// The link that the kubelet puts in place with one rename when all files of a volume are written.
const DATA_LINK: &str = "..data";

/// Something happened to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Its files were replaced, or the token appeared.
    Written(PodUid),
    /// The kernel has dropped its watch: it was removed or unmounted.
    Dropped(PodUid),
    /// Events were lost: every volume must be looked at.
    Overflow,
}

/// inotify on directories, one for each pod.
#[derive(Debug)]
pub(super) struct Watches {
    inotify: AsyncFd<Inotify>,
    pods: HashMap<WatchDescriptor, PodUid>,
    by_pod: HashMap<PodUid, WatchDescriptor>,
}

impl Watches {
    /// Watches nothing yet. Runs in a tokio runtime.
    pub(super) fn new() -> io::Result<Self> {
        let inotify = sys::readable(Inotify::init()?)?;
        Ok(Self { inotify, pods: HashMap::new(), by_pod: HashMap::new() })
    }

    /// Watches this directory for the pod, in place of any other. Doing so again changes nothing.
    pub(super) fn add(&mut self, uid: PodUid, volume: &Volume) -> io::Result<()> {
        // When a volume is written for the first time the kubelet renames `..data_tmp` to `..data`, then makes the link
        // to the token: CREATE. From then on only `..data` is replaced: MOVED_TO.
        let mask = WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::ONLYDIR;
        let watch = self.inotify.get_ref().watches().add(volume.path(), mask)?;
        if self.by_pod.get(&uid) != Some(&watch) {
            // The directory that a tmpfs was mounted over meanwhile, or one that was removed and made again.
            self.forget(uid);
            self.pods.insert(watch.clone(), uid);
            self.by_pod.insert(uid, watch);
        }
        Ok(())
    }

    /// Watches the pod's volume no more. Events of it that are under way are passed over.
    pub(super) fn forget(&mut self, uid: PodUid) {
        if let Some(watch) = self.by_pod.remove(&uid) {
            self.pods.remove(&watch);
            // Fails when the kernel has dropped it already.
            let _ = self.inotify.get_ref().watches().remove(watch);
        }
    }

    /// Waits for the next changes. Loses none when it is cancelled.
    pub(super) async fn changes(&mut self) -> io::Result<Vec<Change>> {
        loop {
            let mut changes = Vec::new();
            for event in inotify_events::next(&mut self.inotify).await? {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    changes.push(Change::Overflow);
                } else if event.mask.contains(EventMask::IGNORED) {
                    if let Some(uid) = self.pods.remove(&event.wd) {
                        self.by_pod.remove(&uid);
                        changes.push(Change::Dropped(uid));
                    }
                } else if event.name.is_some_and(|name| name == DATA_LINK || name == TOKEN_FILE)
                    && let Some(uid) = self.pods.get(&event.wd)
                {
                    changes.push(Change::Written(*uid));
                }
            }
            // One replacement of a volume can be several events.
            changes.dedup();
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }
}
