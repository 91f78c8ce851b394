//! What the kubelet's file holds, and when it is looked into.
use super::*;

/// A kubelet's file that can be read at times.
struct File {
    holds: Mutex<Result<Option<&'static str>, Unreadable>>,
    looks: AtomicUsize,
    clock: Clock,
}

impl File {
    fn with(token: &'static str) -> Arc<Self> {
        let clock = Clock::virtual_from(UNIX_EPOCH + START);
        Arc::new(Self { holds: Mutex::new(Ok(Some(token))), looks: AtomicUsize::new(0), clock })
    }

    fn set(&self, holds: Result<Option<&'static str>, Unreadable>) {
        *self.holds.lock().unwrap() = holds;
    }
}

impl TokenSource for Arc<File> {
    fn newest(&self, _: PodUid) -> Result<Option<PresentedToken>, Unreadable> {
        assert!(self.looks.fetch_add(1, Ordering::SeqCst) < 10_000, "looked at without end");
        self.holds.lock().unwrap().map(|raw| raw.map(|raw| presented(raw, &self.clock)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_waits_for_a_token_file_that_cannot_be_read() {
    let file = File::with("file");
    let world = world_over(Duration::ZERO, 24 * HOUR, Arc::new(Arc::clone(&file)));
    world.credentials.vouch(&world.token("file"));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.script.calls(), 1, "prefetched");
    assert!(world.cached("file").is_some());
    file.set(Err(Unreadable));
    assert!(matches!(world.credentials.flush().await, Flushed::TokenUnreadable));
    sleep(3 * HOUR).await;
    assert_eq!(world.script.calls(), 1);
    file.set(Ok(Some("file")));
    sleep(Duration::from_mins(1)).await;
    assert_eq!(world.script.calls(), 2, "renewed as soon as the back-off allows");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_without_a_good_token_is_tried_again_until_the_kubelet_has_written_one() {
    let file = File::with("file");
    let world = world_over(Duration::ZERO, 24 * HOUR, Arc::new(Arc::clone(&file)));
    world.credentials.vouch(&world.token("file"));
    world.obtain("file").await.unwrap();
    file.set(Ok(None));
    sleep(4 * HOUR).await;
    assert_eq!(world.script.calls(), 1);
    let now = world.clock.now();
    assert!(matches!(&*world.credentials.state(), State::Available { renew_at, .. } if *renew_at > now));
    file.set(Ok(Some("newer")));
    sleep(Duration::from_mins(1)).await;
    assert_eq!(world.script.calls(), 2, "renewed, though nobody has told of the new token");
    assert!(world.cached("newer").is_some());
    // With none until the end of what is served, nothing is tried beyond it.
    file.set(Ok(None));
    sleep(7 * HOUR).await;
    assert!(matches!(&*world.credentials.state(), State::Empty));
    file.set(Ok(Some("newest")));
    sleep(HOUR).await;
    assert_eq!(world.script.calls(), 2, "the pod's next request fetches");
    assert_eq!(world.obtain("newest").await.unwrap().access_key_id, "ASIA3");
}

#[tokio::test(start_paused = true)]
async fn a_request_with_a_rotated_token_may_overtake_the_news_of_it() {
    let file = File::with("old");
    let world = world_over(Duration::ZERO, 24 * HOUR, Arc::new(Arc::clone(&file)));
    world.obtain("old").await.unwrap();
    world.script.answer(|_| Err(Refusal::EksAuthUnavailable(Outage::Transport)));
    file.set(Ok(Some("new")));
    assert_eq!(world.obtain("new").await.unwrap().access_key_id, "ASIA1");
    assert!(world.cached("new").is_some() && world.cached("old").is_some());
    // Vain looks are rare, so that what is made up keeps nobody busy; after a while the file counts again.
    world.obtain("made up").await.unwrap_err();
    file.set(Ok(Some("newer")));
    world.obtain("newer").await.unwrap_err();
    sleep(policy::FILE_LOOK_INTERVAL).await;
    assert_eq!(world.obtain("newer").await.unwrap().access_key_id, "ASIA1");
    assert_eq!(world.script.calls(), 2, "the first fetch, and one for what was made up");
}
