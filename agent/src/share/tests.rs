use super::*;

const MS: Duration = Duration::from_millis(1);
const US: Duration = Duration::from_micros(1);

fn share() -> (Share, Instant) {
    let now = Instant::now();
    (Share::new(DEFAULT_PERCENT, now), now)
}

/// Spends in pieces of `piece` for `time` whenever it may, and says how much that was.
fn spend_greedily(share: &Share, from: Instant, time: Duration, piece: Duration) -> Duration {
    let (mut now, mut spent) = (from, Duration::ZERO);
    while now < from + time {
        if let Some(wait) = share.debt(now) {
            now += wait;
        } else {
            now += piece;
            spent += piece;
            share.spend(piece, now);
        }
    }
    spent
}

#[test]
fn in_the_long_run_it_is_a_tenth_of_the_time_whatever_the_pieces() {
    for piece in [US, 35 * US, 300 * US, MOST_FOR_ONE] {
        let (share, start) = share();
        let spent = spend_greedily(&share, start, Duration::from_secs(10), piece);
        let most = Duration::from_secs(1) + BURST + 2 * piece;
        assert!(spent <= most && spent >= Duration::from_millis(990), "{piece:?}: {spent:?}");
    }
}

#[test]
fn a_quiet_pod_may_take_its_burst_and_no_more() {
    let (share, start) = share();
    for later in [start, start + Duration::from_secs(100)] {
        let mut spent = Duration::ZERO;
        while share.debt(later).is_none() {
            share.spend(50 * US, later);
            spent += 50 * US;
        }
        assert!(spent >= BURST && spent <= BURST + 50 * US, "{spent:?}");
    }
}

#[test]
fn beyond_a_little_of_it_turns_are_taken_and_beyond_all_of_it_the_clock_decides() {
    let (share, start) = share();
    for (spent, must_wait, in_debt) in [(1, false, false), (3, true, false), (99, true, false), (101, true, true)] {
        let share = Share::new(DEFAULT_PERCENT, start);
        (0..spent * 10).for_each(|_| share.spend(100 * US, start));
        assert_eq!((share.must_wait(start), share.debt(start).is_some()), (must_wait, in_debt), "{spent} ms");
    }
    assert!(!share.must_wait(start));
    let _turn = Arc::clone(&share.turn).try_acquire_owned().unwrap();
    assert!(share.must_wait(start), "others were first");
}

#[test]
fn a_preempted_thread_puts_nobody_into_debt() {
    let (share, start) = share();
    let later = start + Duration::from_secs(5);
    for _ in 0..100 {
        share.spend(Duration::from_secs(3), later);
        assert_eq!(share.debt(later), None);
    }
}

#[test]
fn debts_end_soon_after_the_spending() {
    let (share, start) = share();
    for _ in 0..1000 {
        share.spend(MS, start);
    }
    assert_eq!(share.debt(start), Some(LONGEST_DEBT));
    assert_eq!(share.debt(start + LONGEST_DEBT), None);
}

#[test]
fn a_hundred_percent_is_no_limit() {
    let start = Instant::now();
    let share = Share::new(NonZeroU8::new(100).unwrap(), start);
    for _ in 0..1000 {
        share.spend(MS, start);
        assert_eq!((share.debt(start), share.must_wait(start)), (None, false));
    }
}

#[test]
fn a_clock_that_stands_pays_for_nothing() {
    let (share, start) = share();
    while share.debt(start).is_none() {
        share.spend(MS, start);
    }
    let before = start.checked_sub(MS).unwrap_or(start);
    assert!(share.debt(before) >= share.debt(start));
}
