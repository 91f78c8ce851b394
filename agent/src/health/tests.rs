use super::*;

#[test]
fn ready_when_the_last_reason_is_dropped() {
    let (readiness, start) = Readiness::new("the configuration");
    let scan = readiness.wait_for("the first scan");
    assert_eq!(readiness.reasons(), ["waiting for the configuration", "waiting for the first scan"]);
    drop(start);
    scan.now("the first scan: 3 of 8 namespaces");
    assert_eq!(readiness.clone().reasons(), ["waiting for the first scan: 3 of 8 namespaces"]);
    drop(scan);
    assert!(readiness.reasons().is_empty());
}

#[test]
fn what_stops_being_so_makes_the_agent_unready_again() {
    let (readiness, start) = Readiness::new("start");
    drop(start);
    let detached = readiness.wait_for("programs to be attached again");
    assert_eq!(readiness.reasons().len(), 1);
    drop(detached);
    assert!(readiness.reasons().is_empty());
}

#[test]
fn a_part_that_is_silent_for_too_long_is_named() {
    let (liveness, start) = (Liveness::default(), Instant::now());
    let pulse = liveness.expect("serving", Duration::from_secs(10), start);
    assert!(liveness.reasons(start + Duration::from_secs(10)).is_empty());
    assert_eq!(liveness.reasons(start + Duration::from_secs(11)), ["serving is silent for 11 s"]);
    pulse.beat(start + Duration::from_secs(11));
    assert!(liveness.reasons(start + Duration::from_secs(21)).is_empty());
}

#[test]
fn a_part_that_panicked_has_ended() {
    let (liveness, start) = (Liveness::default(), Instant::now());
    let pulse = liveness.expect("discovery", Duration::from_secs(10), start);
    let thread = std::thread::spawn(move || {
        let _held = pulse;
        std::panic::resume_unwind(Box::new("as a panic would, without its message"));
    });
    assert!(thread.join().is_err());
    assert_eq!(liveness.reasons(start), ["discovery has ended"]);
}

#[test]
fn a_verdict_tells_its_reasons_as_json_and_as_text() {
    assert_eq!(Verdict::from_reasons(vec![]).json(), r#"{"status":"ok"}"#);
    let bad = Verdict::from_reasons(vec!["a \"b\"".to_owned(), "c".to_owned()]);
    assert_eq!(bad.json(), r#"{"status":"unavailable","reasons":["a \"b\"","c"]}"#);
    assert_eq!(bad.to_string(), "a \"b\"; c");
}
