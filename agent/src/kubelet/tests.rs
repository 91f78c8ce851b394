use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;

pub(super) const POD_A: &str = "0c2ad6e1-5d1b-4f5e-9a37-77d0f0a4be01";
pub(super) const POD_B: &str = "6a4d7b1e-0c7b-4b43-9f0e-1d6f3b1f2a77";

pub(super) fn uid(text: &str) -> PodUid {
    text.parse().unwrap()
}

/// A kubelet's directory, and its way of writing into it.
pub(super) struct FakeKubelet {
    root: TempDir,
    writes: AtomicUsize,
}

impl FakeKubelet {
    pub(super) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("pods")).unwrap();
        Self { root, writes: AtomicUsize::new(0) }
    }

    pub(super) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(super) fn volume(&self, pod: &str) -> PathBuf {
        self.root().join("pods").join(pod).join(VOLUME)
    }

    pub(super) fn make_volume(&self, pod: &str) -> PathBuf {
        let volume = self.volume(pod);
        fs::create_dir_all(&volume).unwrap();
        volume
    }

    /// As the kubelet does it: a new directory, one rename of the link to it, the link to the token, the old directory
    /// removed.
    pub(super) fn write(&self, pod: &str, token: &str) {
        let volume = self.make_volume(pod);
        let data = format!("..2026_03_17_22_27_34.{}", self.writes.fetch_add(1, Ordering::Relaxed));
        fs::create_dir(volume.join(&data)).unwrap();
        fs::write(volume.join(&data).join("eks-pod-identity-token"), token).unwrap();
        let old = fs::read_link(volume.join("..data"));
        symlink(&data, volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        match old {
            Ok(old) => fs::remove_dir_all(volume.join(old)).unwrap(),
            Err(_) => symlink("..data/eks-pod-identity-token", volume.join("eks-pod-identity-token")).unwrap(),
        }
    }
}

struct Running {
    handle: TokenWatchHandle,
    events: UnboundedReceiver<TokenEvent>,
}

impl Running {
    fn start(kubelet: &FakeKubelet) -> Self {
        let (watch, handle, events) = new_watch(kubelet);
        tokio::spawn(watch.run());
        Self { handle, events }
    }

    /// The next event, as `pod=token`, or `pod` alone when it is gone.
    async fn next(&mut self) -> String {
        let event = time::timeout(Duration::from_secs(10), self.events.recv()).await;
        told(event.expect("an event within ten seconds").unwrap())
    }
}

fn new_watch(kubelet: &FakeKubelet) -> (TokenWatch, TokenWatchHandle, UnboundedReceiver<TokenEvent>) {
    TokenWatch::new(Arc::new(TokenFiles::open(kubelet.root()).unwrap())).unwrap()
}

fn told(event: TokenEvent) -> String {
    match event {
        TokenEvent::Token { uid, token } => format!("{uid}={}", *token),
        TokenEvent::Gone { uid } => uid.to_string(),
    }
}

#[tokio::test]
async fn a_pods_token_is_told_and_its_rotations_follow() {
    let kubelet = FakeKubelet::new();
    kubelet.write(POD_A, "first");
    let mut running = Running::start(&kubelet);
    running.handle.watch(uid(POD_A));
    assert_eq!(running.next().await, format!("{POD_A}=first"));
    for rotation in 0..5 {
        let token = format!("token-{rotation}");
        kubelet.write(POD_A, &token);
        assert_eq!(running.next().await, format!("{POD_A}={token}"));
    }
}

#[tokio::test]
async fn a_token_written_after_its_volume_was_seen_is_told_once() {
    let kubelet = FakeKubelet::new();
    kubelet.make_volume(POD_A);
    kubelet.write(POD_B, "b");
    let mut running = Running::start(&kubelet);
    running.handle.watch(uid(POD_A));
    running.handle.watch(uid(POD_B));
    assert_eq!(running.next().await, format!("{POD_B}=b"), "A's volume is watched by now");
    kubelet.write(POD_A, "a");
    assert_eq!(running.next().await, format!("{POD_A}=a"));
    kubelet.write(POD_A, "a");
    kubelet.write(POD_B, "b2");
    assert_eq!(running.next().await, format!("{POD_B}=b2"), "the same token again is no news");
}

#[tokio::test]
async fn a_pod_that_is_announced_again_is_told_again() {
    let kubelet = FakeKubelet::new();
    kubelet.write(POD_A, "a");
    let mut running = Running::start(&kubelet);
    for _ in 0..3 {
        running.handle.watch(uid(POD_A));
        assert_eq!(running.next().await, format!("{POD_A}=a"));
    }
}

#[tokio::test]
async fn of_a_forgotten_pod_nothing_is_told() {
    let kubelet = FakeKubelet::new();
    kubelet.write(POD_A, "a");
    kubelet.write(POD_B, "b");
    let mut running = Running::start(&kubelet);
    running.handle.watch(uid(POD_A));
    running.handle.forget(uid(POD_A));
    running.handle.watch(uid(POD_B));
    assert_eq!(running.next().await, format!("{POD_A}=a"));
    assert_eq!(running.next().await, format!("{POD_B}=b"));
    kubelet.write(POD_A, "a2");
    fs::remove_dir_all(kubelet.volume(POD_A)).unwrap();
    kubelet.write(POD_B, "b2");
    assert_eq!(running.next().await, format!("{POD_B}=b2"));
    kubelet.write(POD_A, "a3");
    running.handle.watch(uid(POD_A));
    assert_eq!(running.next().await, format!("{POD_A}=a3"));
}

#[tokio::test]
async fn the_end_of_a_volume_is_told_if_its_token_was() {
    let kubelet = FakeKubelet::new();
    kubelet.write(POD_A, "a");
    kubelet.make_volume(POD_B);
    let mut running = Running::start(&kubelet);
    running.handle.watch(uid(POD_B));
    running.handle.watch(uid(POD_A));
    assert_eq!(running.next().await, format!("{POD_A}=a"));
    fs::remove_dir_all(kubelet.root().join("pods").join(POD_B)).unwrap();
    fs::remove_dir_all(kubelet.root().join("pods").join(POD_A)).unwrap();
    assert_eq!(running.next().await, POD_A);
    // The same pod anew: nothing of the old watch is left to mistake for the new one.
    kubelet.write(POD_A, "anew");
    running.handle.watch(uid(POD_A));
    assert_eq!(running.next().await, format!("{POD_A}=anew"));
    kubelet.write(POD_A, "rotated");
    assert_eq!(running.next().await, format!("{POD_A}=rotated"));
}

#[tokio::test]
async fn a_directory_that_takes_the_place_of_the_watched_one_is_watched_instead() {
    let kubelet = FakeKubelet::new();
    let first = kubelet.make_volume(POD_A);
    let (mut watch, _handle, mut events) = new_watch(&kubelet);
    watch.look(uid(POD_A), Tell::News);
    // As when a tmpfs is mounted over it: the old directory is still there, but not under its name.
    let hidden = first.with_file_name("hidden");
    fs::rename(&first, &hidden).unwrap();
    kubelet.write(POD_A, "a");
    watch.look(uid(POD_A), Tell::News);
    assert_eq!(told(events.try_recv().unwrap()), format!("{POD_A}=a"));
    tokio::spawn(watch.run());
    fs::remove_dir(&hidden).unwrap();
    kubelet.write(POD_A, "a2");
    assert_eq!(told(events.recv().await.unwrap()), format!("{POD_A}=a2"), "and not that it is gone");
}

#[tokio::test]
async fn lost_events_make_it_read_everything_again() {
    let kubelet = FakeKubelet::new();
    kubelet.write(POD_A, "a");
    kubelet.write(POD_B, "b");
    let (mut watch, _handle, mut events) = new_watch(&kubelet);
    watch.look(uid(POD_A), Tell::News);
    watch.look(uid(POD_B), Tell::News);
    kubelet.write(POD_A, "a2");
    fs::remove_dir_all(kubelet.volume(POD_B)).unwrap();
    watch.change(Change::Overflow);
    let mut all: Vec<String> = std::iter::from_fn(|| events.try_recv().ok()).map(told).skip(2).collect();
    all.sort();
    assert_eq!(all, [format!("{POD_A}=a2"), POD_B.to_owned()]);
}

#[tokio::test]
async fn a_volume_that_is_not_as_the_kubelet_writes_it_stops_nobody() {
    let kubelet = FakeKubelet::new();
    symlink("/etc/passwd", kubelet.make_volume(POD_A).join("eks-pod-identity-token")).unwrap();
    kubelet.write(POD_B, "b");
    let mut running = Running::start(&kubelet);
    running.handle.watch(uid(POD_A));
    running.handle.watch(uid(POD_B));
    assert_eq!(running.next().await, format!("{POD_B}=b"));
}

#[tokio::test]
async fn no_descriptor_below_a_pods_directory_stays_open() {
    let kubelet = FakeKubelet::new();
    kubelet.write(POD_A, "a");
    let (mut watch, _handle, _events) = new_watch(&kubelet);
    watch.look(uid(POD_A), Tell::News);
    let pod = kubelet.root().canonicalize().unwrap().join("pods").join(POD_A);
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    assert_eq!(open.filter(|path| path.starts_with(&pod)).count(), 0, "it would keep the kubelet from unmounting");
}

#[test]
fn a_token_is_not_printed() {
    let token = Zeroizing::new("planted".to_owned());
    let event = TokenEvent::Token { uid: uid(POD_A), token };
    assert_eq!(format!("{event:?}"), format!("Token {{ uid: {POD_A}, .. }}"));
}
