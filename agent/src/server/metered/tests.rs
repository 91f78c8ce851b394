use std::{
    future::poll_fn,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::*;
use crate::share;

const PIECE: Duration = Duration::from_micros(200);

/// Work without an end: a piece of it whenever it is run, and then it can run again. Says who ran.
fn work(name: usize, ran: Arc<Mutex<Vec<usize>>>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(poll_fn(move |cx| {
        let start = Instant::now();
        while start.elapsed() < PIECE {}
        ran.lock().unwrap().push(name);
        cx.waker().wake_by_ref();
        Poll::Pending
    }))
}

fn new_share() -> Arc<Share> {
    Arc::new(Share::new(share::DEFAULT_PERCENT, Instant::now()))
}

/// Runs so many connections of one pod for a while on a runtime as the serving thread's.
async fn run(connections: usize, time: Duration) -> Vec<usize> {
    let (share, ran) = (new_share(), Arc::default());
    let tasks: Vec<_> = (0..connections)
        .map(|name| {
            let work = work(name, Arc::clone(&ran));
            tokio::spawn(Metered::new(Arc::clone(&share), CancellationToken::new(), work, || {}))
        })
        .collect();
    tokio::time::sleep(time).await;
    for task in tasks {
        task.abort();
    }
    ran.lock().unwrap().clone()
}

#[tokio::test]
async fn all_connections_of_a_pod_together_have_its_share() {
    for connections in [1, 50] {
        let start = Instant::now();
        let ran = run(connections, Duration::from_millis(500)).await;
        let pieces = u32::try_from(ran.len()).unwrap();
        // A tenth of the time and the burst of 100 ms; each piece is charged what it took at least.
        let most = start.elapsed() / 10 + Duration::from_millis(100) + 2 * PIECE;
        assert!(PIECE * pieces <= most, "{connections}: {:?} of {:?}", PIECE * pieces, start.elapsed());
        assert!(pieces > 10, "{connections}: {pieces}");
    }
}

#[tokio::test]
async fn connections_of_a_pod_in_debt_have_their_turns_in_order() {
    let ran = run(8, Duration::from_millis(1500)).await;
    // After the burst.
    let counts: Vec<usize> = (0..8).map(|name| ran.iter().skip(600).filter(|ran| **ran == name).count()).collect();
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most - least <= 2, "{counts:?}");
}

#[tokio::test]
async fn others_run_between_the_connections_of_an_eager_pod() {
    let (share, ran) = (new_share(), Arc::<Mutex<Vec<usize>>>::default());
    (0..50).for_each(|_| share.spend(Duration::from_millis(1), Instant::now()));
    for name in 0..50 {
        let work = work(name, Arc::clone(&ran));
        tokio::spawn(Metered::new(Arc::clone(&share), CancellationToken::new(), work, || {}));
    }
    let mut most = 0;
    for _ in 0..20 {
        let (before, counted) = (ran.lock().unwrap().len(), Arc::clone(&ran));
        // Behind all that can run now.
        let other = tokio::spawn(async move { counted.lock().unwrap().len() });
        most = most.max(other.await.unwrap() - before);
    }
    assert!(most <= 2, "{most} connections of one pod ran before somebody else did");
}

#[tokio::test]
async fn the_end_of_a_pod_is_not_put_off() {
    let share = new_share();
    for _ in 0..1000 {
        share.spend(Duration::from_millis(1), Instant::now());
    }
    let (ended, delays) = (CancellationToken::new(), Arc::new(Mutex::new(0)));
    let (cancelled, counted) = (ended.clone(), Arc::clone(&delays));
    let work = Box::pin(async move { cancelled.cancelled().await });
    let metered = Metered::new(share, ended.clone(), work, move || *counted.lock().unwrap() += 1);
    let metered = tokio::spawn(metered);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!metered.is_finished());
    ended.cancel();
    // In debt for half a second.
    tokio::time::timeout(Duration::from_millis(200), metered).await.unwrap().unwrap();
    assert_eq!(*delays.lock().unwrap(), 1);
}
