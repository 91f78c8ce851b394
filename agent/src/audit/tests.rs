use std::{
    os::unix::fs::PermissionsExt as _,
    time::{Duration, UNIX_EPOCH},
};

use super::*;
use crate::confinement::{Confinement, Seccomp};

fn granted(number: usize) -> Event {
    let names = Arc::new(CredentialNames { access_key_id: format!("ASIA{number}"), association_id: "a-1".to_owned() });
    let who = Evidence { user: u32::try_from(number).ok(), ..Evidence::default() };
    let decision = Decision::Granted { names, cached: true };
    Event { at: UNIX_EPOCH, who, subject: None, decision }
}

fn keys(batch: &Batch) -> Vec<&str> {
    batch.events.iter().filter_map(|line| line.access_key_id.as_deref()).collect()
}

#[test]
fn a_line_says_what_is_known_and_leaves_out_what_is_not() {
    let audit = Audit::default();
    audit.push(granted(1));
    let subject = Arc::new(OnceLock::new());
    let refused = Event {
        who: Evidence { pod: Some("00000000-0000-4000-8000-000000000001".parse().unwrap()), ..Evidence::default() },
        subject: Some(Arc::clone(&subject)),
        decision: Decision::Refused(Refusal::NoToken),
        ..granted(2)
    };
    audit.push(refused);
    // A name that a token tells later is told with what came before it.
    let (namespace, service_account) = ("shop".into(), "reader".into());
    subject.set(Subject { namespace, pod_name: None, service_account }).unwrap();
    let lines = audit.read(Cursor::default()).events;
    let written: Vec<String> = lines.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
    let first = r#"{"time":"1970-01-01T00:00:00Z","decision":"granted","uid":1,"access_key_id":"ASIA1","association_id":"a-1","cached":true}"#;
    let second = r#"{"time":"1970-01-01T00:00:00Z","decision":"refused","pod_uid":"00000000-0000-4000-8000-000000000001","namespace":"shop","service_account":"reader","reason":"no_token","message":"Service account token cannot be empty"}"#;
    assert_eq!(written, [first, second]);
}

#[test]
fn a_reader_goes_on_where_it_stood_and_is_told_what_it_missed() {
    let audit = Audit::default();
    (0..3).for_each(|n| audit.push(granted(n)));
    let first = audit.read(Cursor::default());
    assert_eq!((keys(&first), first.lost, first.more), (vec!["ASIA0", "ASIA1", "ASIA2"], 0, false));
    assert!(audit.read(first.cursor).events.is_empty());
    (3..4 + KEPT).for_each(|n| audit.push(granted(n)));
    let second = audit.read(first.cursor);
    assert_eq!((second.events.len(), second.lost, second.more), (BATCH, 1, true));
    assert_eq!(keys(&second).first(), Some(&"ASIA4"));
    let mut cursor = second.cursor;
    let mut rest = 0;
    loop {
        let batch = audit.read(cursor);
        rest += batch.events.len();
        cursor = batch.cursor;
        if !batch.more {
            break;
        }
    }
    assert_eq!(rest, KEPT - BATCH);
    // Of another agent, all that there is.
    let other = Cursor { run: audit.run.wrapping_add(1).max(1), next: 7, dropped: 0 };
    assert_eq!((audit.read(other).lost, audit.read(other).events.len()), (0, BATCH));
}

#[test]
fn a_reader_in_the_way_delays_events_and_the_first_ones_are_not_lost() {
    let audit = Audit::default();
    let reading = audit.ring.lock().unwrap();
    (0..WAITING + 2).for_each(|n| audit.push(granted(n)));
    drop(reading);
    audit.push(granted(1000));
    let batch = audit.read(Cursor::default());
    assert_eq!((batch.events.len(), batch.lost, audit.read(batch.cursor).lost), (WAITING + 1, 2, 0));
    assert_eq!((keys(&batch)[0], keys(&batch)[WAITING]), ("ASIA0", "ASIA1000"));
}

#[test]
fn the_file_has_every_event_and_is_rotated_before_it_is_too_long() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let audit = Arc::new(Audit::default());
    let confinement = Confinement { seccomp: Seccomp::Off, main_binds_low_ports: false };
    let write = |n: usize, most| {
        let file = AuditFile::start(Arc::clone(&audit), path.clone(), most, confinement).unwrap();
        (0..n).for_each(|n| audit.push(granted(n)));
        file.finish();
    };
    write(3, 1 << 20);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 3);
    assert!(text.lines().all(|line| serde_json::from_str::<Line>(line).is_ok()), "{text}");
    // A second agent begins with what the ring has, behind what is there.
    write(1, text.len() as u64 + 10);
    let (now, old) = (std::fs::read_to_string(&path).unwrap(), std::fs::read_to_string(path.with_extension("log.1")));
    assert_eq!((now.lines().count(), old.unwrap()), (4, text));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_that_cannot_be_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
    let audit = Arc::new(Audit::default());
    let error = AuditFile::start(audit, link, 1, Confinement::default()).unwrap_err().to_string();
    assert!(error.contains("--audit-log") && error.contains("link"), "{error}");
}

/// What the serving thread pays for an event; printed, as other machines have other numbers.
#[test]
fn an_event_costs_less_than_a_microsecond() {
    let audit = Audit::default();
    let event = granted(1);
    let started = std::time::Instant::now();
    for _ in 0..100_000 {
        audit.push(event.clone());
    }
    let each = started.elapsed() / 100_000;
    println!("{each:?} an event, {} bytes", size_of::<Event>());
    // Unoptimized, on a machine that may be busy: a lock that waits or an allocation for each shows all the same.
    assert!(each < Duration::from_micros(20), "{each:?}");
}
