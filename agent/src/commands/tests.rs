use std::time::UNIX_EPOCH;

use super::*;
use crate::operator::Served;

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
    let refused = Failure { reason: "eks_auth_refused".to_owned(), message: "no association".to_owned() };
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
            },
            PodStatus {
                pod: unnamed,
                state: PodState::Unavailable,
                credentials: None,
                last_request: None,
                last_failure: Some(refused),
            },
        ],
    };
    let table = status_table(&status, UNIX_EPOCH + Duration::from_secs(62));
    let lines: Vec<Vec<&str>> =
        table.lines().map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect();
    assert_eq!(lines[1], ["web-0", "shop/reader", "valid", "ASIA1", "5h 58m", "2h 50m", "1m 1s ago", "-"], "{table}");
    let refused = "eks_auth_refused: no association";
    let unnamed = "00000000-0000-4000-8000-000000000002";
    assert_eq!(lines[2], [unnamed, "-", "refused", "-", "-", "-", "never", refused], "{table}");
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
