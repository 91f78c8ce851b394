use std::time::Duration;

use super::*;
use crate::refusal::{Outage, UpstreamError};

const SECOND: Duration = Duration::from_secs(1);

fn digest(name: &str) -> TokenDigest {
    TokenDigest::of(name)
}

fn denied() -> Refusal {
    Refusal::EksAuthRefused(UpstreamError::new(400, "id", "AccessDeniedException", "no"))
}

fn down() -> Refusal {
    Refusal::EksAuthUnavailable(Outage::Server)
}

#[test]
fn a_refusal_of_a_proven_token_is_repeated_for_five_seconds() {
    let now = Instant::now();
    let mut restraint = Restraint::new(now);
    assert_eq!(restraint.objection(&digest("a"), true, now), None);
    restraint.refused(digest("a"), true, &denied(), now);
    let then = now + policy::REFUSAL_HOLDS;
    assert_eq!(restraint.objection(&digest("a"), true, then - Duration::from_millis(1)), Some(denied()));
    assert_eq!(restraint.objection(&digest("a"), true, then), None);
    assert_eq!(restraint.objection(&digest("b"), true, now), None, "it says nothing about other tokens");
}

#[test]
fn a_refusal_of_another_token_is_repeated_until_it_may_be_asked_about() {
    let now = Instant::now();
    let mut restraint = Restraint::new(now);
    restraint.refused(digest("a"), false, &denied(), now);
    restraint.spent_on_unproven(now);
    let then = now + policy::UNPROVEN_INTERVAL;
    assert_eq!(restraint.objection(&digest("a"), false, then - Duration::from_millis(1)), Some(denied()));
    assert_eq!(restraint.objection(&digest("b"), false, then - Duration::from_millis(1)), Some(Refusal::PodLimit));
    assert_eq!(restraint.objection(&digest("b"), true, now), None, "what is proven does not wait");
    assert_eq!(restraint.objection(&digest("a"), false, then), None);
}

#[test]
fn the_last_four_refused_tokens_are_remembered() {
    let now = Instant::now();
    let mut restraint = Restraint::new(now);
    for name in ["a", "b", "c", "d", "a", "e"] {
        restraint.refused(digest(name), true, &denied(), now);
    }
    let remembered: Vec<bool> =
        ["a", "b", "c", "d", "e"].map(|name| restraint.objection(&digest(name), true, now).is_some()).into();
    assert_eq!(remembered, [true, false, true, true, true]);
    restraint.answered(&digest("c"));
    assert_eq!(restraint.objection(&digest("c"), true, now), None, "an answer is newer than a refusal");
    assert!(restraint.objection(&digest("d"), true, now).is_some());
}

#[test]
fn failures_hold_back_every_token_and_longer_each_time() {
    let now = Instant::now();
    let mut restraint = Restraint::new(now);
    assert_eq!(restraint.failed(&down(), 0.0, now), now + SECOND);
    assert_eq!(restraint.objection(&digest("a"), true, now), Some(down()));
    assert_eq!(restraint.objection(&digest("a"), true, now + SECOND), None);
    assert_eq!(restraint.failed(&down(), 0.0, now), now + 2 * SECOND);
    restraint.answered(&digest("a"));
    assert_eq!(restraint.objection(&digest("a"), true, now), None);
    assert_eq!(restraint.failed(&down(), 0.0, now), now + SECOND);
}

#[test]
fn a_missing_token_is_looked_for_less_often_each_time_and_holds_nobody_back() {
    let now = Instant::now();
    let mut restraint = Restraint::new(now);
    assert_eq!(restraint.without_token(0.0, now), now + SECOND);
    assert_eq!(restraint.without_token(0.0, now), now + 2 * SECOND);
    assert_eq!(restraint.without_token(1.0, now), now + SECOND * 44 / 10);
    assert_eq!((restraint.objection(&digest("a"), true, now), restraint.priority()), (None, Priority::Waiting));
    restraint.answered(&digest("a"));
    assert_eq!(restraint.without_token(0.0, now), now + SECOND);
}

#[test]
fn the_file_is_looked_at_in_vain_once_a_second() {
    let now = Instant::now();
    let mut restraint = Restraint::new(now);
    assert!(restraint.may_look_into_file(now));
    restraint.looked_in_vain(now);
    let then = now + policy::FILE_LOOK_INTERVAL;
    assert!(!restraint.may_look_into_file(then - Duration::from_millis(1)) && restraint.may_look_into_file(then));
}

#[test]
fn a_verdict_backs_off_what_nobody_asked_for_but_no_other_token() {
    let now = Instant::now();
    let mut restraint = Restraint::new(now);
    assert_eq!(restraint.failed(&denied(), 0.0, now), now + SECOND);
    assert_eq!(restraint.objection(&digest("other"), true, now), None);
}

#[test]
fn whoever_is_throttled_is_told_how_long() {
    let now = Instant::now();
    let mut restraint = Restraint::new(now);
    for _ in 0..4 {
        restraint.failed(&Refusal::EksAuthThrottled { retry_after: 2 }, 0.0, now);
    }
    let told = restraint.objection(&digest("a"), true, now + SECOND).and_then(|refusal| refusal.retry_after());
    assert_eq!(told, Some(7));
}

#[test]
fn only_what_failed_by_itself_stands_behind() {
    let now = Instant::now();
    let mut restraint = Restraint::new(now);
    assert_eq!(restraint.priority(), Priority::Waiting);
    restraint.failed(&Refusal::EksAuthThrottled { retry_after: 2 }, 0.0, now);
    assert_eq!(restraint.priority(), Priority::Waiting);
    restraint.failed(&down(), 0.0, now);
    assert_eq!(restraint.priority(), Priority::Retry);
    restraint.answered(&digest("a"));
    assert_eq!(restraint.priority(), Priority::Waiting);
    restraint.failed(&denied(), 0.0, now);
    assert_eq!(restraint.priority(), Priority::Retry);
}

#[test]
fn an_operator_lifts_everything() {
    let now = Instant::now();
    let mut restraint = Restraint::new(now);
    restraint.refused(digest("a"), false, &denied(), now);
    restraint.spent_on_unproven(now);
    restraint.failed(&down(), 0.0, now);
    restraint.lift(now);
    assert_eq!(restraint.objection(&digest("a"), false, now), None);
    assert_eq!(restraint.priority(), Priority::Waiting);
}
