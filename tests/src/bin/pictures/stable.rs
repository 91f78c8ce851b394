//! Replaces what differs from run to run: a transcript that is made again differs in what the product does.
use std::time::{Duration, SystemTime};

use pod_identity_tests::time;

/// As much of an id has to be there for what a table cut off to be known by it.
const CUT: usize = 4;

/// Access keys, associations and UUIDs in their order, each with what is to stand for it; UUIDs that begin with `known` are
/// the same in every run.
pub(crate) fn ids(text: &str, known: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-') {
        let (prefix, hex) =
            (word.get(..4).unwrap_or_default(), |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit()));
        let number = found.len() + 1;
        let shown = if word.len() == 20 && prefix == "ASIA" {
            format!("ASIA{:X}00EXAMPLE{number:06}", 10 + number % 6)
        } else if word.len() == 18 && word.strip_prefix("a-").is_some_and(hex) {
            format!("a-{number:016x}")
        } else if word.len() == 36 && word.split('-').map(str::len).eq([8, 4, 4, 4, 12]) && !word.starts_with(known) {
            format!("{number:08x}-0000-4000-8000-000000000000")
        } else {
            continue;
        };
        if !found.iter().any(|(other, _)| other == word) {
            found.push((word.to_owned(), shown));
        }
    }
    found
}

/// The text with an id replaced, also where its end was cut off.
pub(crate) fn replaced(text: &str, found: &str, shown: &str) -> String {
    let mut text = text.replace(found, shown);
    for length in (CUT..found.len()).rev() {
        let (found, shown) = (found.get(..length).unwrap_or_default(), shown.get(..length).unwrap_or_default());
        text = text.replace(&format!("{found}…"), &format!("{shown}…"));
    }
    text
}

/// The text with its instants as if `begun` had been `morning`, without fractions of a second.
pub(crate) fn shifted(text: &str, begun: SystemTime, morning: SystemTime) -> String {
    let mut moved = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = rest.get(DATE..).and_then(|after| after.find('Z')).map_or(0, |end| DATE + end + 1);
        let instant = rest.get(..end.min(LONGEST)).and_then(time::parse_rfc3339);
        let length = if instant.is_some() { end } else { first.len_utf8() };
        let (this, after) = rest.split_at(length);
        match instant.map(|instant| instant.duration_since(begun).unwrap_or_default()) {
            Some(since) => moved.push_str(&time::rfc3339(morning + Duration::from_secs(since.as_secs()))),
            None => moved.push_str(this),
        }
        rest = after;
    }
    moved
}

/// Bytes of a date, and at most of an instant.
const DATE: usize = "2026-11-24".len();
const LONGEST: usize = "2026-11-24T02:36:52.123456789Z".len();

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn what_differs_is_replaced_wherever_it_stands() {
        let key = "ASIARZPUZDIKEJW2BXYZ";
        let text = format!(
            "{key} a-b92cd15a9dad4734, [6641c684-8469-4b40-a52e-9fffe099280f] 6f1d3a52-0c4e-4b7a-9d21-000000000001"
        );
        let ids = ids(&format!("{text} {key}"), "6f1d3a52-");
        assert_eq!(ids.iter().map(|(id, _)| id.len()).collect::<Vec<_>>(), [20, 18, 36]);
        assert!(ids.iter().all(|(id, shown)| id.len() == shown.len()), "{ids:?}");
        assert_eq!(replaced("ASIARZPUZDIKEJ… x", key, "ASIA0123456789012345"), "ASIA0123456789… x");
    }

    #[test]
    fn instants_are_moved_and_nothing_else() {
        let begun = time::parse_rfc3339("2026-11-25T18:19:17Z").unwrap();
        let moved = |text| shifted(text, begun, UNIX_EPOCH);
        assert_eq!(
            moved("a 2026-11-25T18:19:18.5Z → 2026-11-26T18:19:17Z."),
            "a 1970-01-01T00:00:01Z → 1970-01-02T00:00:00Z."
        );
        assert_eq!(moved("…TZ 2026-11-25 x"), "…TZ 2026-11-25 x");
    }
}
