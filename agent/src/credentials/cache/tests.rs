use std::time::{Duration, UNIX_EPOCH};

use super::*;

/// A pod whose worker can be told something, and what it was told.
struct Known {
    uid: PodUid,
    last_use: Arc<LastUse>,
    sender: mpsc::Sender<Message>,
    told: mpsc::Receiver<Message>,
}

fn pod(number: u32) -> Known {
    let uid = format!("00000000-0000-4000-8000-{number:012}").parse().unwrap();
    let (sender, told) = mpsc::channel(1);
    Known { uid, last_use: Arc::default(), sender, told }
}

impl Known {
    fn asked_at(&self, seconds: u64) {
        self.last_use.touch(UNIX_EPOCH + Duration::from_secs(seconds));
    }

    fn enter(&self, cache: &Cache) -> bool {
        cache.enter(self.uid, &self.last_use, &self.sender)
    }

    fn was_evicted(&mut self) -> bool {
        matches!(self.told.try_recv(), Ok(Message::Evict))
    }
}

#[test]
fn the_pod_that_asked_longest_ago_makes_room() {
    let cache = Cache::new(2);
    let (mut first, mut second, mut third) = (pod(1), pod(2), pod(3));
    first.asked_at(10);
    second.asked_at(20);
    assert!(!first.enter(&cache) && !second.enter(&cache));
    // Order of entry does not count, use does.
    first.asked_at(30);
    third.asked_at(25);
    assert!(third.enter(&cache));
    assert_eq!([first.was_evicted(), second.was_evicted(), third.was_evicted()], [false, true, false]);
    second.asked_at(40);
    assert!(second.enter(&cache));
    assert_eq!([first.was_evicted(), third.was_evicted()], [false, true]);
}

#[test]
fn who_never_asked_goes_first_and_the_newcomer_stays() {
    let cache = Cache::new(1);
    let (mut asked, mut never) = (pod(1), pod(2));
    asked.asked_at(10);
    assert!(!asked.enter(&cache));
    assert!(never.enter(&cache), "a newcomer is not turned away, however seldom it asks");
    assert!(asked.was_evicted() && !never.was_evicted());
    assert!(asked.enter(&cache));
    assert!(never.was_evicted());
}

#[test]
fn a_pod_is_counted_once_and_not_after_it_left() {
    let cache = Cache::new(2);
    let (mut first, second, third) = (pod(1), pod(2), pod(3));
    assert!(!first.enter(&cache) && !first.enter(&cache) && !second.enter(&cache));
    cache.leave(second.uid);
    assert!(!third.enter(&cache));
    assert!(!first.was_evicted());
}

#[test]
fn a_worker_that_cannot_be_told_is_not_counted_as_evicted() {
    let cache = Cache::new(1);
    let (gone, newcomer) = (pod(1), pod(2));
    gone.enter(&cache);
    let Known { told, .. } = gone;
    drop(told);
    assert!(!newcomer.enter(&cache));
}

#[test]
fn of_no_pods_nothing_is_kept() {
    assert!(!Cache::new(0).keeps_anything() && Cache::new(1).keeps_anything());
}
