//! Values of flags, durations and booleans as Go's flag packages write them: so existing configurations do.
use std::num::NonZeroU8;
use std::str::FromStr;
use std::time::Duration;

/// Units of a duration in nanoseconds. `µ` has two code points.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// The text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write it as 3h, 1h30m or 90s")]
pub(super) struct NotADuration;

/// Reads `3h`, `1h30m`, `1.5h`, `90s`, `0`. Negative durations mean nothing here and are refused.
pub(super) fn duration(text: &str) -> Result<Duration, NotADuration> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total: u64 = 0;
    loop {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(NotADuration)?;
        let (digits, after) = rest.split_at_checked(number).ok_or(NotADuration)?;
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (name, after) = after.split_at_checked(unit).ok_or(NotADuration)?;
        let &(_, unit) = UNITS.iter().find(|(unit, _)| *unit == name).ok_or(NotADuration)?;
        total = nanoseconds(digits, unit).and_then(|part| total.checked_add(part)).ok_or(NotADuration)?;
        if after.is_empty() {
            return Ok(Duration::from_nanos(total));
        }
        rest = after;
    }
}

/// A pause between two questions to the agent: a tenth of a second at least.
pub(super) fn pause(text: &str) -> Result<Duration, NotADuration> {
    duration(text).map(|pause| pause.max(Duration::from_millis(100)))
}

/// `digits` has digits and dots alone: one dot at most, a digit at least.
fn nanoseconds(digits: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut sum = whole.checked_mul(unit)?;
    let mut place = unit;
    for digit in fraction.chars() {
        place /= 10;
        sum = sum.checked_add(place.checked_mul(u64::from(digit.to_digit(10)?))?)?;
    }
    Some(sum)
}

/// The text is no boolean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use true or false")]
pub(super) struct NotABoolean;

/// Reads what `strconv.ParseBool` takes.
pub(super) fn boolean(text: &str) -> Result<bool, NotABoolean> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(NotABoolean),
    }
}

/// The text is no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use a port from 1 to 65535")]
pub(super) struct NotAPort;

/// Reads a port that can be connected to.
pub(super) fn port(text: &str) -> Result<u16, NotAPort> {
    text.parse().ok().filter(|&port| port != 0).ok_or(NotAPort)
}

/// The text is no share of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use a whole number from 1 to 100")]
pub(super) struct NotAPercentage;

/// Reads a share that is not nothing.
pub(super) fn percent(text: &str) -> Result<NonZeroU8, NotAPercentage> {
    text.parse().ok().filter(|percent: &NonZeroU8| percent.get() <= 100).ok_or(NotAPercentage)
}

/// The text is no number of things, or not one that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use a whole number that is not negative, nor 0 where that would stop everything")]
pub(super) struct NotACount;

/// Reads a number of things.
pub(super) fn count<N: FromStr>(text: &str) -> Result<N, NotACount> {
    text.parse().map_err(|_| NotACount)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let cases = [
            ("0", 0),
            ("0s", 0),
            ("3h", 10_800_000),
            ("3h0m0s", 10_800_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("5.s", 5_000),
            ("+90s", 90_000),
            ("1m1s1ms", 61_001),
            ("1000us", 1),
            ("1000µs", 1),
            ("1000μs", 1),
            ("1000000ns", 1),
        ];
        for (text, milliseconds) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in ["", "3", "h", "-3h", "3 h", "3hours", "3h ", ".s", "1.2.3s", "1d", "9999999999h", "٣h"] {
            assert_eq!(duration(text), Err(NotADuration), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[0-9.hmsuµn+-]{0,12}|\\PC{0,12}") {
            let _ = duration(&text);
        }
    }
}
