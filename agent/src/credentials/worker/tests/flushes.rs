//! What an operator's flush does and is told.
use super::*;

#[tokio::test(start_paused = true)]
async fn a_flush_fetches_anew_and_serves_the_old_until_then() {
    let world = world(Duration::from_millis(50));
    world.obtain("t1").await.unwrap();
    let old = Arc::downgrade(&world.cached("t1").unwrap());
    let meanwhile = async {
        sleep(Duration::from_millis(25)).await;
        assert_eq!(world.cached("t1").unwrap().access_key_id, "ASIA1");
    };
    let (flushed, ()) = tokio::join!(world.credentials.flush(), meanwhile);
    assert!(matches!(flushed, Flushed::Renewed(issued) if issued.access_key_id == "ASIA2"));
    assert_eq!(world.cached("t1").unwrap().access_key_id, "ASIA2");
    assert!(old.upgrade().is_none(), "the old ones are wiped");
}

#[tokio::test(start_paused = true)]
async fn a_flush_takes_away_what_eks_auth_refuses_and_nothing_else() {
    let world = world(Duration::ZERO);
    world.obtain("t1").await.unwrap();
    for outage in [
        Refusal::EksAuthUnavailable(Outage::Transport),
        Refusal::EksAuthThrottled { retry_after: 1 },
        Refusal::NodeCredentials,
    ] {
        let said = outage.clone();
        world.script.answer(move |_| Err(said.clone()));
        assert!(matches!(world.credentials.flush().await, Flushed::Kept(refusal) if refusal == outage));
        assert!(world.cached("t1").is_some());
    }
    world.script.answer(|_| Err(denied()));
    assert!(matches!(world.credentials.flush().await, Flushed::Refused(refusal) if refusal == denied()));
    assert!(world.cached("t1").is_none());
    assert_eq!(world.obtain("t1").await.unwrap_err(), denied());
    // The association is repaired: a second flush asks at once, whatever is remembered.
    world.script.answer(|_| Ok(LIFE));
    assert!(matches!(world.credentials.flush().await, Flushed::Renewed(_)));
    assert!(world.cached("t1").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_flush_is_told_of_the_end_of_its_own_fetch_and_of_nothing_before() {
    const LATENCY: Duration = Duration::from_secs(1);
    let outcomes = [Ok(LIFE), Err(Refusal::EksAuthUnavailable(Outage::Transport)), Err(denied())];
    for (expected, under_way) in outcomes.iter().flat_map(|outcome| [(outcome, false), (outcome, true)]) {
        let world = world(LATENCY);
        world.obtain("t1").await.unwrap();
        let answer = expected.clone();
        world.script.answer(move |_| answer.clone());
        let mut begins = Instant::now();
        if under_way {
            // The call is half over when the operator comes: the flush's own begins when it ends.
            tokio::time::timeout(LATENCY / 2, world.obtain("t2")).await.unwrap_err();
            begins += LATENCY;
        }
        let calls = world.script.calls();
        let flushed = world.credentials.flush().await;
        let running = world.script.running.load(Ordering::SeqCst);
        assert_eq!((Instant::now() - begins, running), (LATENCY, 0), "{expected:?}, told {flushed:?}");
        assert_eq!(world.script.calls(), calls + 1);
        let is_told = match expected {
            Ok(_) => {
                matches!(&flushed, Flushed::Renewed(issued) if issued.access_key_id == format!("ASIA{}", calls + 1))
            }
            Err(Refusal::EksAuthRefused(_)) => matches!(flushed, Flushed::Refused(_)),
            Err(_) => matches!(flushed, Flushed::Kept(_)),
        };
        assert!(is_told, "{expected:?}: {flushed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_during_a_fetch_begins_one_of_its_own() {
    let world = world(Duration::from_millis(50));
    let flush = async {
        sleep(Duration::from_millis(10)).await;
        world.credentials.flush().await
    };
    let (first, flushed) = tokio::join!(world.obtain("t1"), flush);
    assert_eq!(first.unwrap().access_key_id, "ASIA1");
    assert!(matches!(flushed, Flushed::Renewed(issued) if issued.access_key_id == "ASIA2"));
    assert_eq!(world.script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_flush_of_nothing_asks_nothing() {
    let world = world(Duration::ZERO);
    assert!(matches!(world.credentials.flush().await, Flushed::Nothing));
    assert_eq!(world.script.calls(), 0);
    world.ended.cancel();
    assert!(matches!(world.credentials.flush().await, Flushed::Ended));
}
