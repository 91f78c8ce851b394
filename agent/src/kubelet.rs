//! The service account tokens that the kubelet keeps on the node for its pods, as it writes and rotates them.
//!
//! The kubelet's directory shows every pod's secret volumes, so this is the only module that opens it, and all it gives
//! out are token files, by pod UID, and the kubelet's own kubeconfig. What a file says is not proof of anything by itself: whoever takes a token from
//! here must check that it names the UID it came with, and that the pod exists, which only its cgroup can tell.
//!
//! Events alone drive it, there is no poll of pods. The kubelet makes the volume's directory, mounts a tmpfs over it and
//! writes into that; a watch on the directory as it was before the mount sees nothing. So the mount table says when
//! there is something to watch, and inotify says when it is written.
use std::{
    collections::HashMap,
    convert::Infallible,
    fmt, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    task::yield_now,
    time::{self, sleep_until},
};
use zeroize::Zeroizing;

use crate::{pod_uid::PodUid, token::TokenDigest};

mod files;
mod mounts;
#[cfg(test)]
mod tests;
mod watches;

pub use files::{TokenFileError, TokenFiles, kubeconfig};
use mounts::Mounts;
use watches::{Change, Watches};

/// The volume's path below the directory of its pod. Its name is fixed by the EKS webhook that injects it, and
/// `kubernetes.io~projected` is the kubelet's spelling of the plugin's name.
const VOLUME: &str = "volumes/kubernetes.io~projected/eks-pod-identity-token";

/// The least time between two looks at the mount table. A pod start is a burst of mounts, and a token is of no use
/// before its container runs, tens of milliseconds later.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// After a look at the mount table, so many times its duration must pass before the next: on a node with ten thousand
/// mounts, where the kernel takes milliseconds to write the table, a storm of mounts costs a tenth of one CPU.
const LOOK_RESTS: u32 = 9;

/// Why the kubelet's tokens cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The kubelet's directory cannot be opened.
    #[error(
        "cannot open the kubelet's pods directory {path}: {error} (mount the node's kubelet root into this container with \
         mountPropagation HostToContainer, and name it with --kubelet-root)"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// The kernel, or a seccomp profile, has no `openat2`.
    #[error(
        "openat2 does not work here ({0}): tokens below the kubelet's directory cannot be opened safely (it needs Linux \
         5.6, and a seccomp profile that allows the call)"
    )]
    NoOpenat2(#[source] io::Error),
    /// The mount table cannot be read or waited on.
    #[error("cannot follow the mounts of token volumes in /proc/self/mountinfo: {0} (/proc must be mounted)")]
    Mounts(#[source] io::Error),
    /// inotify does not work.
    #[error("cannot follow the kubelet's token files: {0} (fs.inotify.max_user_instances may be too low)")]
    Watches(#[source] io::Error),
}

/// What happened to a pod's token file.
pub enum TokenEvent {
    /// There is a token, or a newer one than the last that was told.
    Token {
        /// Whose directory it lies in; the token itself has not been read.
        uid: PodUid,
        /// The file's text, at most [`MAX_TOKEN_BYTES`](crate::token::MAX_TOKEN_BYTES), without the newline at its end.
        token: Zeroizing<String>,
    },
    /// The volume of a pod whose token was told is there no more.
    Gone {
        /// Whose it was.
        uid: PodUid,
    },
}

impl fmt::Debug for TokenEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token { uid, token: _ } => f.debug_struct("Token").field("uid", uid).finish_non_exhaustive(),
            Self::Gone { uid } => f.debug_struct("Gone").field("uid", uid).finish(),
        }
    }
}

#[derive(Debug)]
enum Command {
    Watch(PodUid),
    Forget(PodUid),
}

/// Tells a [`TokenWatch`] of pods that come and go.
#[derive(Clone, Debug)]
pub struct TokenWatchHandle(mpsc::UnboundedSender<Command>);

impl TokenWatchHandle {
    /// A pod is there: its token is told now if it has one, even if it was told before, and again when it changes.
    ///
    /// So nobody has to keep tokens of pods that they do not know (yet). It also finds a volume that is no mount of its
    /// own, if its directory is there already.
    pub fn watch(&self, uid: PodUid) {
        let _ = self.0.send(Command::Watch(uid));
    }

    /// A pod has ended: nothing more is told of its volume, not its end either. Its directory may stay for a while.
    pub fn forget(&self, uid: PodUid) {
        let _ = self.0.send(Command::Forget(uid));
    }
}

/// Follows the token files of all pods.
///
/// It keeps no token and no descriptor below a pod's directory: an open file in a volume would make the kubelet's
/// unmount of it fail with `EBUSY`, as this mount namespace's copy of the mount counts too, and so hold up the pod's
/// end. An inotify watch holds the inode, not the mount.
#[derive(Debug)]
pub struct TokenWatch {
    files: Arc<TokenFiles>,
    mounts: Mounts,
    watches: Watches,
    /// Pods whose volume is there, and what was told last.
    told: HashMap<PodUid, Option<TokenDigest>>,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::UnboundedSender<TokenEvent>,
}

impl TokenWatch {
    /// Looks at nothing yet: [`run`](Self::run) does. Must be called in a tokio runtime that has I/O and time.
    pub fn new(
        files: Arc<TokenFiles>,
    ) -> Result<(Self, TokenWatchHandle, mpsc::UnboundedReceiver<TokenEvent>), KubeletError> {
        let mounts = Mounts::open(files.pods_directory()).map_err(KubeletError::Mounts)?;
        let watches = Watches::new().map_err(KubeletError::Watches)?;
        let (handle, commands) = mpsc::unbounded_channel();
        let (events, told) = mpsc::unbounded_channel();
        let watch = Self { files, mounts, watches, told: HashMap::new(), commands, events };
        Ok((watch, TokenWatchHandle(handle), told))
    }

    /// Tells of every token that is there, then of what changes. Returns only when it cannot go on.
    ///
    /// Idle, it sets no timer.
    pub async fn run(mut self) -> Result<Infallible, KubeletError> {
        let mut look_due = true;
        let mut not_before = time::Instant::now();
        loop {
            tokio::select! {
                changed = self.mounts.changed() => {
                    changed.map_err(KubeletError::Mounts)?;
                    look_due = true;
                }
                () = sleep_until(not_before), if look_due => {
                    look_due = false;
                    not_before = time::Instant::now() + self.look_at_mounts()?;
                }
                changes = self.watches.changes() => {
                    for change in changes.map_err(KubeletError::Watches)? {
                        self.change(change);
                    }
                }
                Some(command) = self.commands.recv() => {
                    match command {
                        Command::Watch(uid) => self.look(uid, Tell::Always),
                        Command::Forget(uid) => {
                            self.watches.forget(uid);
                            self.told.remove(&uid);
                        }
                    }
                    // At the start there is one for each pod of the node, and whoever asks whether the agent is ready
                    // waits for this thread too.
                    yield_now().await;
                }
            }
        }
    }

    /// Finds volumes that were mounted and unmounted. Returns how long to wait before it is asked again.
    fn look_at_mounts(&mut self) -> Result<Duration, KubeletError> {
        let start = Instant::now();
        let difference = self.mounts.compare().map_err(KubeletError::Mounts)?;
        let rest = LOOK_INTERVAL.max(start.elapsed() * LOOK_RESTS);
        for uid in difference.vanished {
            self.gone(uid);
        }
        for uid in difference.appeared {
            self.look(uid, Tell::News);
        }
        Ok(rest)
    }

    fn change(&mut self, change: Change) {
        match change {
            // The kernel dropped the watch: the directory was removed or unmounted. If there is another under its name
            // (or the one that was mounted over) that one is watched now, else the pod's volume is gone.
            Change::Written(uid) | Change::Dropped(uid) => self.look(uid, Tell::News),
            Change::Overflow => {
                let pods: Vec<PodUid> = self.told.keys().copied().collect();
                for uid in pods {
                    self.look(uid, Tell::News);
                }
            }
        }
    }

    /// Watches a pod's volume as it is now, then reads its token: whatever is written after the read is an event.
    fn look(&mut self, uid: PodUid, tell: Tell) {
        let volume = match self.files.volume(uid) {
            Ok(Some(volume)) => volume,
            Ok(None) => return self.gone(uid),
            Err(error) => return tracing::warn!(pod_uid = %uid, %error, "cannot open a pod's token volume"),
        };
        if let Err(error) = self.watches.add(uid, &volume) {
            tracing::error!(
                pod_uid = %uid, %error,
                "the rotation of a pod's token will not be noticed: fs.inotify.max_user_watches may be too low"
            );
        }
        let last = self.told.entry(uid).or_default();
        match volume.token() {
            Ok(Some(token)) => {
                let digest = TokenDigest::of(&token);
                if tell == Tell::Always || *last != Some(digest) {
                    *last = Some(digest);
                    // Nobody listens any more: the agent is about to end.
                    let _ = self.events.send(TokenEvent::Token { uid, token });
                }
            }
            // Not written yet, or read in the moment of a rotation between `..data`'s old target and its removal. What
            // the kubelet did before that removal is an event that is still to come.
            Ok(None) => {}
            Err(error) => tracing::warn!(pod_uid = %uid, %error, "cannot read a pod's token"),
        }
    }

    fn gone(&mut self, uid: PodUid) {
        self.watches.forget(uid);
        if self.told.remove(&uid).flatten().is_some() {
            let _ = self.events.send(TokenEvent::Gone { uid });
        }
    }
}

/// Whether a token that was told already is told again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tell {
    News,
    Always,
}
