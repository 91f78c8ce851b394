use std::time::UNIX_EPOCH;

use super::*;
use crate::{
    discovery::Listener,
    operator::{RefusedAt, Served},
};

fn name(name: &str) -> PodName {
    PodName {
        namespace: Some("shop".to_owned()),
        name: Some(name.to_owned()),
        service_account: Some("reader".to_owned()),
        uid: "00000000-0000-4000-8000-000000000001".to_owned(),
    }
}

#[test]
fn the_status_is_a_table_of_what_is_left() {
    let served = Served {
        access_key_id: "ASIA1".to_owned(),
        association_id: "a-1".to_owned(),
        issued_at: "1970-01-01T00:00:00Z".to_owned(),
        expires_at: "1970-01-01T06:00:00Z".to_owned(),
        renew_at: Some("1970-01-01T02:51:30.5Z".to_owned()),
    };
    let refused =
        Failure { reason: "eks_auth_refused".to_owned(), code: String::new(), message: "no association".to_owned() };
    let unnamed = PodName { uid: "00000000-0000-4000-8000-000000000002".to_owned(), ..PodName::default() };
    let status = Status {
        version: "1".to_owned(),
        pods: vec![
            PodStatus {
                pod: name("web-0"),
                state: PodState::Available,
                credentials: Some(served),
                last_request: Some("1970-01-01T00:00:01Z".to_owned()),
                last_failure: None,
                last_refusal: Some(RefusedAt { at: "1970-01-01T00:00:02Z".to_owned(), failure: refused.clone() }),
                place: Some(Place {
                    cgroup: "pod1".to_owned(),
                    cgroup_id: Some(4711),
                    listeners: vec![Listener { netns: 1, cookie: 2, port: 706, ipv6: true }],
                    failure: None,
                }),
            },
            PodStatus {
                pod: unnamed,
                state: PodState::Unavailable,
                credentials: None,
                last_request: None,
                last_failure: Some(refused),
                last_refusal: None,
                place: None,
            },
        ],
    };
    let table = status_table(&status, UNIX_EPOCH + Duration::from_secs(62), Screen::default());
    let lines: Vec<Vec<&str>> =
        table.lines().map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect();
    let last = "eks_auth_refused, 1m 0s ago";
    let served = ["web-0", "shop/reader", "4711", "706+v6", "valid", "ASIA1", "1m 2s", "5h 58m", "2h 50m", "1m 1s ago"];
    assert_eq!(lines[1], [&served[..], &["-", last]].concat(), "{table}");
    let refused = "eks_auth_refused: no association";
    let unnamed = "00000000-0000-4000-8000-000000000002";
    assert_eq!(lines[2], [unnamed, "-", "-", "-", "refused", "-", "-", "-", "-", "never", refused, "-"], "{table}");
    assert!(table.lines().all(|line| line == line.trim_end()));
}

#[test]
fn spans_have_two_units() {
    let written = |seconds| span(Duration::from_secs(seconds));
    assert_eq!([written(0), written(59), written(3600)], ["0s", "59s", "1h 0m"]);
    assert_eq!([written(86_399), written(86_400 * 2 + 7200)], ["23h 59m", "2d 2h"]);
}

#[test]
fn what_is_not_200_is_an_error() {
    let answered = |status, body: &str| good(Answer { status, body: body.to_owned() });
    assert_eq!(answered(200, "[]").unwrap(), "[]");
    assert!(matches!(answered(404, "[]"), Err(CommandError::NoSuchPod)));
    assert!(matches!(answered(404, "not found\n"), Err(CommandError::Refused { status: 404, .. })));
    let starting = answered(503, "the agent is starting, try again\n").unwrap_err().to_string();
    assert_eq!(starting, "the agent answered 503: the agent is starting, try again");
}
