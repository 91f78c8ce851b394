use std::{
    fs,
    sync::{Mutex as StdMutex, PoisonError},
};

use super::*;

/// Answers with what the test says, and counts.
#[derive(Clone, Debug, Default)]
struct Source(Arc<StdMutex<Script>>);

#[derive(Debug, Default)]
struct Script {
    asked: usize,
    key: &'static str,
    lasts: Option<Duration>,
    fails: bool,
}

impl Source {
    fn now(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn asked(&self) -> usize {
        self.0.lock().unwrap().asked
    }
}

impl ProvideCredentials for Source {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let mut script = self.0.lock().unwrap();
            script.asked += 1;
            if script.fails {
                return Err(CredentialsError::not_loaded("the source fails"));
            }
            let expiry = script.lasts.map(|lasts| SystemTime::now() + lasts);
            Ok(Credentials::new(script.key, "secret", None, expiry, "test"))
        })
    }
}

fn kept(watched: Watched) -> (NodeCredentials, Source) {
    let source = Source::default();
    source.now(|script| script.key = "first");
    (NodeCredentials::new(source.clone(), watched), source)
}

async fn key(credentials: &NodeCredentials) -> Result<String, String> {
    let answer = credentials.provide_credentials().await;
    answer.map(|credentials| credentials.access_key_id().to_owned()).map_err(|error| causes::of(&error))
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn a_hundred_callers_ask_once() {
    let (credentials, source) = kept(Watched::nothing());
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let credentials = credentials.clone();
            tokio::spawn(async move { key(&credentials).await })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().as_deref(), Ok("first"));
    }
    assert_eq!(source.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_callers_share_one_failure() {
    let (credentials, source) = kept(Watched::nothing());
    source.now(|script| script.fails = true);
    let start = Instant::now();
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let credentials = credentials.clone();
            tokio::spawn(async move { key(&credentials).await })
        })
        .collect();
    for caller in callers {
        assert!(caller.await.unwrap().unwrap_err().contains("the source fails"));
    }
    assert_eq!(source.asked(), 1);
    assert!(start.elapsed() < Duration::from_millis(250), "{:?}", start.elapsed());
    source.now(|script| script.fails = false);
    pass(PAUSE_WITHOUT).await;
    assert_eq!(key(&credentials).await.as_deref(), Ok("first"));
}

#[tokio::test(start_paused = true)]
async fn keys_without_an_expiration_are_asked_for_again_after_a_while() {
    let (credentials, source) = kept(Watched::nothing());
    assert_eq!(key(&credentials).await.as_deref(), Ok("first"));
    source.now(|script| script.key = "second");
    pass(UNDATED_AGE * 9 / 10).await;
    assert_eq!(key(&credentials).await.as_deref(), Ok("first"));
    pass(UNDATED_AGE / 10).await;
    assert_eq!(key(&credentials).await.as_deref(), Ok("second"));
    assert_eq!(source.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn credentials_that_are_about_to_expire_are_used_until_there_are_others() {
    // The wall clock does not stand still here, so: credentials whose early end has come, and a paused clock.
    let (credentials, source) = kept(Watched::nothing());
    source.now(|script| script.lasts = Some(EARLY * 3 / 4));
    assert_eq!(key(&credentials).await.as_deref(), Ok("first"));
    source.now(|script| script.fails = true);
    assert_eq!(key(&credentials).await.as_deref(), Ok("first"));
    assert_eq!(source.asked(), 1, "no asking during the pause");
    pass(PAUSE).await;
    assert_eq!(key(&credentials).await.as_deref(), Ok("first"));
    assert_eq!(source.asked(), 2, "a failure takes nothing away");
    assert_eq!(key(&credentials).await.as_deref(), Ok("first"));
    assert_eq!(source.asked(), 2, "nor does it make everybody ask");
    source.now(|script| *script = Script { asked: 2, key: "second", lasts: Some(2 * EARLY), fails: false });
    pass(PAUSE).await;
    assert_eq!(key(&credentials).await.as_deref(), Ok("second"));
    pass(PAUSE).await;
    assert_eq!(key(&credentials).await.as_deref(), Ok("second"));
    assert_eq!(source.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn expired_credentials_are_not_used_when_the_source_fails() {
    let (credentials, source) = kept(Watched::nothing());
    source.now(|script| script.lasts = Some(Duration::ZERO));
    assert_eq!(key(&credentials).await.as_deref(), Ok("first"));
    source.now(|script| script.fails = true);
    assert!(key(&credentials).await.unwrap_err().contains("the source fails"));
}

#[tokio::test(start_paused = true)]
async fn refused_credentials_are_asked_for_again_after_the_pause() {
    let (credentials, source) = kept(Watched::nothing());
    assert_eq!(key(&credentials).await.as_deref(), Ok("first"));
    source.now(|script| script.key = "second");
    credentials.refused().await;
    assert_eq!(key(&credentials).await.as_deref(), Ok("first"));
    pass(PAUSE).await;
    assert_eq!(key(&credentials).await.as_deref(), Ok("second"));
    assert_eq!(source.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_is_given_up() {
    #[derive(Debug)]
    struct Hanging;
    impl ProvideCredentials for Hanging {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::new(std::future::pending())
        }
    }
    let start = Instant::now();
    let credentials = NodeCredentials::new(Hanging, Watched::nothing());
    assert!(key(&credentials).await.is_err());
    assert_eq!(start.elapsed(), LOAD_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_a_watched_file_is_seen_by_the_next_call() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("credentials");
    let watched = Watched::shared_files(|name| (name == "AWS_SHARED_CREDENTIALS_FILE").then(|| path.clone().into()));
    let (credentials, source) = kept(watched);
    let change = |content: &str| {
        let new = directory.path().join("new");
        fs::write(&new, content).unwrap();
        fs::rename(&new, &path).unwrap();
    };
    for (number, content) in [(1, "a"), (2, "b"), (3, "c")] {
        change(content);
        for _ in 0..3 {
            assert_eq!(key(&credentials).await.as_deref(), Ok("first"));
        }
        assert_eq!(source.asked(), number);
    }
    // Half written, or gone for a moment: what was good is used, and the next change is seen all the same.
    source.now(|script| script.fails = true);
    fs::remove_file(&path).unwrap();
    assert_eq!(key(&credentials).await.as_deref(), Ok("first"));
    source.now(|script| (script.fails, script.key) = (false, "second"));
    assert_eq!(key(&credentials).await.as_deref(), Ok("first"));
    change("d");
    assert_eq!(key(&credentials).await.as_deref(), Ok("second"));
}
