use std::time::Duration;

use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::*;

mod schedules;
mod storms;

const SECOND: Duration = Duration::from_secs(1);

fn gate(concurrency: usize, background_per_second: u32) -> Gate {
    let background_per_second = NonZeroU32::new(background_per_second).unwrap();
    let limits = GateLimits { concurrency, background_per_second };
    Gate::new(limits, fastrand::Rng::with_seed(7), &Handle::current())
}

/// The permit, if the turn has come up already.
async fn now(turn: &mut Turn) -> Option<Permit> {
    timeout(Duration::ZERO, turn.admitted()).await.ok()
}

/// Enters and makes the call, in order of the list.
async fn order_of(gate: &Gate, turns: Vec<(&'static str, Turn)>) -> Vec<&'static str> {
    let came = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    for (name, mut turn) in turns {
        let came = Arc::clone(&came);
        tasks.spawn(async move {
            let permit = turn.admitted().await;
            came.lock().unwrap().push(name);
            sleep(SECOND).await;
            permit.finish(Outcome::Answered);
        });
    }
    tasks.join_all().await;
    assert_eq!(gate.snapshot().in_flight, 0);
    Arc::try_unwrap(came).unwrap().into_inner().unwrap()
}

#[tokio::test(start_paused = true)]
async fn as_many_calls_as_there_are_places_and_each_end_lets_in_one() {
    let gate = gate(2, 3);
    let mut turns: Vec<Turn> = (0..4).map(|_| gate.enter(Priority::Waiting)).collect();
    let [first, second, third, fourth] = &mut turns[..] else { unreachable!() };
    let (first, second) = (now(first).await.unwrap(), now(second).await.unwrap());
    assert!(now(third).await.is_none() && now(fourth).await.is_none());
    first.finish(Outcome::Answered);
    let third = now(third).await.unwrap();
    assert!(now(fourth).await.is_none());
    drop(second);
    let fourth = now(fourth).await.unwrap();
    assert_eq!(gate.snapshot().in_flight, 2);
    drop((third, fourth));
    assert_eq!(gate.snapshot().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn the_more_urgent_go_first_and_in_a_line_who_came_first() {
    let gate = gate(1, 100);
    let enter = |name, priority| (name, gate.enter(priority));
    let busy = now(&mut gate.enter(Priority::Waiting)).await.unwrap();
    let turns = vec![
        enter("renewal 1", Priority::Renewal),
        enter("prefetch 1", Priority::Prefetch),
        enter("renewal 2", Priority::Renewal),
        enter("retry", Priority::Retry),
        enter("waiting 1", Priority::Waiting),
        enter("prefetch 2", Priority::Prefetch),
        enter("waiting 2", Priority::Waiting),
    ];
    assert_eq!(gate.snapshot().queued, Queued { waiting: 2, retry: 1, prefetch: 2, renewal: 2 });
    busy.finish(Outcome::Answered);
    let came = order_of(&gate, turns).await;
    assert_eq!(came, ["waiting 1", "waiting 2", "retry", "prefetch 1", "prefetch 2", "renewal 1", "renewal 2"]);
}

#[tokio::test(start_paused = true)]
async fn a_raised_turn_goes_to_the_end_of_its_new_line() {
    let gate = gate(1, 100);
    let busy = now(&mut gate.enter(Priority::Waiting)).await.unwrap();
    let (mut raised, mut not_lowered) = (gate.enter(Priority::Prefetch), gate.enter(Priority::Waiting));
    let (other, retry) = (gate.enter(Priority::Prefetch), gate.enter(Priority::Retry));
    raised.raise(Priority::Waiting);
    not_lowered.raise(Priority::Renewal);
    not_lowered.raise(Priority::Waiting);
    assert_eq!((raised.priority(), not_lowered.priority()), (Priority::Waiting, Priority::Waiting));
    let turns = vec![("raised", raised), ("waited", not_lowered), ("prefetch", other), ("retry", retry)];
    busy.finish(Outcome::Answered);
    assert_eq!(order_of(&gate, turns).await, ["waited", "raised", "retry", "prefetch"]);
}

#[tokio::test(start_paused = true)]
async fn a_raised_turn_waits_for_no_token() {
    let gate = gate(64, 1);
    let _first = now(&mut gate.enter(Priority::Prefetch)).await.unwrap();
    let mut second = gate.enter(Priority::Prefetch);
    assert!(now(&mut second).await.is_none());
    second.raise(Priority::Waiting);
    let permit = now(&mut second).await.unwrap();
    second.raise(Priority::Waiting);
    drop(second);
    assert_eq!(gate.snapshot().in_flight, 2, "the permit outlives its turn");
    drop(permit);
}

#[tokio::test(start_paused = true)]
async fn raising_a_turn_that_has_come_up_changes_nothing() {
    let gate = gate(1, 3);
    let mut turn = gate.enter(Priority::Renewal);
    assert_eq!(gate.snapshot().in_flight, 1);
    turn.raise(Priority::Waiting);
    assert_eq!(turn.priority(), Priority::Renewal);
    drop(now(&mut turn).await.unwrap());
    turn.raise(Priority::Waiting);
    assert_eq!((gate.snapshot().in_flight, gate.snapshot().queued), (0, Queued::default()));
}

#[tokio::test(start_paused = true)]
async fn clients_that_wait_are_bounded_by_places_only() {
    let gate = gate(64, 1);
    let mut turns: Vec<Turn> = (0..65).map(|_| gate.enter(Priority::Waiting)).collect();
    assert_eq!((gate.snapshot().in_flight, gate.snapshot().queued.waiting), (64, 1));
    assert!(now(turns.last_mut().unwrap()).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn prefetch_and_renewal_share_one_rate_that_is_spread_evenly() {
    let gate = gate(64, 3);
    let start = Instant::now();
    let mut times = Vec::new();
    for turn in 0..12 {
        let priority = if turn % 2 == 0 { Priority::Prefetch } else { Priority::Renewal };
        gate.enter(priority).admitted().await.finish(Outcome::Answered);
        times.push(start.elapsed().as_millis());
    }
    // Whole milliseconds are what tokio's timers have; their rounding does not add up.
    assert_eq!(times, [0, 0, 0, 334, 667, 1000, 1334, 1667, 2000, 2334, 2667, 3000]);
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_renewals_is_exact() {
    let gate = gate(64, 3);
    let start = Instant::now();
    let mut admitted = 0;
    while start.elapsed() < Duration::from_hours(1) {
        drop(gate.enter(Priority::Renewal).admitted().await);
        admitted += 1;
    }
    assert_eq!((admitted, start.elapsed()), (3 + 3 * 3600, Duration::from_hours(1)));
}

#[tokio::test(start_paused = true)]
async fn whoever_gives_up_leaves_no_trace() {
    let gate = gate(1, 3);
    let up = gate.enter(Priority::Waiting);
    let mut queued = [Priority::Waiting, Priority::Retry, Priority::Prefetch, Priority::Renewal].map(|p| gate.enter(p));
    for turn in &mut queued {
        assert!(now(turn).await.is_none(), "a wait that is given up keeps the place");
    }
    let [_, _, prefetch, _] = &mut queued;
    prefetch.raise(Priority::Retry);
    assert_eq!(gate.snapshot().queued, Queued { waiting: 1, retry: 2, prefetch: 0, renewal: 1 });
    drop(queued);
    assert_eq!(gate.snapshot().queued, Queued::default());
    drop(up);
    assert_eq!(gate.snapshot().in_flight, 0, "one that had come up, never awaited, frees its place");
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_awaited_again_queues_anew() {
    let gate = gate(1, 3);
    let mut turn = gate.enter(Priority::Waiting);
    let permit = now(&mut turn).await.unwrap();
    assert!(now(&mut turn).await.is_none());
    permit.finish(Outcome::Answered);
    assert!(now(&mut turn).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn throttling_stops_everybody_for_a_while_and_then_half_go_on() {
    let gate = gate(4, 100);
    now(&mut gate.enter(Priority::Waiting)).await.unwrap().finish(Outcome::Throttled);
    let state = gate.snapshot();
    let pause = state.paused_until.unwrap() - Instant::now();
    assert!(state.limit == 2 && pause > SECOND / 2 && pause < SECOND, "{state:?}");
    let mut turns: Vec<Turn> = (0..4).map(|_| gate.enter(Priority::Waiting)).collect();
    sleep(pause.saturating_sub(Duration::from_millis(2))).await;
    assert_eq!(gate.snapshot().in_flight, 0);
    sleep(Duration::from_millis(4)).await;
    let state = gate.snapshot();
    assert_eq!((state.in_flight, state.queued.waiting, state.paused_until), (2, 2, None));
    let permits = (now(&mut turns[0]).await.unwrap(), now(&mut turns[1]).await.unwrap());
    permits.0.finish(Outcome::Answered);
    permits.1.finish(Outcome::Answered);
    assert_eq!(gate.snapshot().limit, 3, "two answers at a limit of two");
}

#[tokio::test(start_paused = true)]
async fn failures_slow_down_nobody_else() {
    let gate = gate(64, 3);
    for _ in 0..1000 {
        now(&mut gate.enter(Priority::Waiting)).await.unwrap().finish(Outcome::Failed);
    }
    for _ in 0..1000 {
        gate.enter(Priority::Retry).admitted().await.finish(Outcome::Failed);
    }
    let _failing = gate.enter(Priority::Retry);
    assert!(now(&mut gate.enter(Priority::Waiting)).await.is_some());
    assert_eq!((gate.snapshot().limit, gate.snapshot().paused_until), (64, None));
}

#[tokio::test(start_paused = true)]
async fn failing_retries_are_ten_a_second_and_answered_ones_as_many_as_come() {
    let gate = gate(64, 3);
    let start = Instant::now();
    for _ in 0..(10 + 600) {
        gate.enter(Priority::Retry).admitted().await.finish(Outcome::Failed);
    }
    assert_eq!(start.elapsed(), Duration::from_mins(1));
    for _ in 0..1000 {
        gate.enter(Priority::Retry).admitted().await.finish(Outcome::Answered);
    }
    assert_eq!(start.elapsed(), Duration::from_mins(1) + SECOND / 10, "the first waited for its token");
}

#[tokio::test(start_paused = true)]
async fn clients_that_are_answered_pay_for_no_retries() {
    let gate = gate(64, 3);
    for _ in 0..10 {
        now(&mut gate.enter(Priority::Retry)).await.unwrap().finish(Outcome::Failed);
    }
    let mut retry = gate.enter(Priority::Retry);
    now(&mut gate.enter(Priority::Waiting)).await.unwrap().finish(Outcome::Answered);
    now(&mut gate.enter(Priority::Renewal)).await.unwrap().finish(Outcome::Answered);
    assert!(now(&mut retry).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn whose_token_comes_sooner_does_not_wait_for_the_others() {
    let gate = gate(64, 1);
    let start = Instant::now();
    drop(now(&mut gate.enter(Priority::Renewal)).await.unwrap());
    for _ in 0..10 {
        now(&mut gate.enter(Priority::Retry)).await.unwrap().finish(Outcome::Failed);
    }
    let mut renewal = gate.enter(Priority::Renewal);
    sleep(Duration::from_millis(1)).await;
    // The alarm is set for the renewal now; the retry brings it forward.
    let mut retry = gate.enter(Priority::Retry);
    drop(retry.admitted().await);
    assert!(start.elapsed() < Duration::from_millis(150), "{:?}", start.elapsed());
    drop(renewal.admitted().await);
    assert!(start.elapsed() > Duration::from_millis(950), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn calls_that_hang_leave_half_of_the_places_to_clients() {
    let gate = gate(8, 100);
    let _hanging: Vec<Turn> =
        (0..6).flat_map(|_| [Priority::Retry, Priority::Renewal]).map(|p| gate.enter(p)).collect();
    assert_eq!(gate.snapshot().in_flight, 4);
    sleep(SECOND).await;
    assert_eq!(gate.snapshot().in_flight, 4);
    let _clients: Vec<Turn> = (0..4).map(|_| gate.enter(Priority::Waiting)).collect();
    assert_eq!((gate.snapshot().in_flight, gate.snapshot().queued.waiting), (8, 0));
}

#[tokio::test(start_paused = true)]
async fn renewals_go_on_while_clients_queue_without_end() {
    let gate = gate(1, 100);
    let (mut clients, mut renewed) = (JoinSet::new(), 0);
    for mut turn in (0..10).map(|_| gate.enter(Priority::Waiting)).collect::<Vec<_>>() {
        clients.spawn(async move {
            loop {
                let permit = turn.admitted().await;
                sleep(SECOND).await;
                permit.finish(Outcome::Answered);
            }
        });
    }
    let start = Instant::now();
    while start.elapsed() < SECOND * 900 {
        drop(gate.enter(Priority::Renewal).admitted().await);
        renewed += 1;
    }
    // Eight calls pass a renewal over; a ninth begins before the next renewal has come.
    assert!((100..=101).contains(&renewed), "{renewed}");
}

#[tokio::test(start_paused = true)]
async fn whoever_is_not_polled_holds_up_only_a_place() {
    let gate = gate(2, 1);
    drop(now(&mut gate.enter(Priority::Renewal)).await.unwrap());
    let (asleep, mut behind) = (gate.enter(Priority::Renewal), gate.enter(Priority::Waiting));
    drop(now(&mut behind).await.unwrap());
    assert_eq!(gate.snapshot().in_flight, 0);
    sleep(SECOND * 2).await;
    assert_eq!((gate.snapshot().in_flight, gate.snapshot().queued), (1, Queued::default()));
    drop(asleep);
}

#[tokio::test(start_paused = true)]
async fn the_time_keeper_goes_with_the_last_who_needs_it() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let gate = gate(2, 1);
    let (mut first, mut second) = (gate.enter(Priority::Renewal), gate.enter(Priority::Renewal));
    drop(gate);
    drop(now(&mut first).await.unwrap());
    let permit = second.admitted().await;
    drop((first, second));
    sleep(SECOND).await;
    assert_eq!(tasks(), before + 1);
    drop(permit);
    sleep(SECOND).await;
    assert_eq!(tasks(), before);
}
