//! A comparison for people.
use std::fmt::Write as _;

use crate::{report::Comparison, spread::Spread};

/// Prints it.
pub(crate) fn print(comparison: &Comparison) {
    print!("{}", written(comparison));
}

/// As a table of Markdown.
fn written(comparison: &Comparison) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    };
    line("| | | req/s | p50 µs | p99 µs | CPU s / 100k | switches | p50 ratio | CPU ratio |".to_owned());
    line("|---|---|---|---|---|---|---|---|---|".to_owned());
    for case in &comparison.cases {
        for contestant in &case.contestants {
            line(format!(
                "| {} | {} | {:.0} | {} | {:.0} | {} | {:.2} | {} | {} |",
                case.case,
                contestant.name,
                contestant.requests_per_second.median,
                range(contestant.p50_us, 1),
                contestant.p99_us.median,
                range(contestant.cpu_seconds_per_100k, 2),
                contestant.switches_per_request.median,
                range(contestant.p50_ratio, 2),
                range(contestant.cpu_ratio, 2),
            ));
        }
    }
    line("\n| memory, kB | PSS idle | anonymous idle | PSS after load | anonymous after load |".to_owned());
    line("|---|---|---|---|---|".to_owned());
    for kept in &comparison.memory {
        line(format!(
            "| {} | {} | {} | {} | {} |",
            kept.name, kept.idle.pss_kb, kept.idle.anonymous_kb, kept.after_load.pss_kb, kept.after_load.anonymous_kb
        ));
    }
    line("\n| target | at most | measured | |".to_owned());
    line("|---|---|---|---|".to_owned());
    for target in &comparison.targets {
        let verdict = if target.met { "met" } else { "MISSED" };
        line(format!("| {} | {} | {} | {verdict} |", target.what, target.at_most, range(target.measured, 2)));
    }
    text
}

/// The median, and in brackets the outermost.
pub(crate) fn range(spread: Spread, digits: usize) -> String {
    format!("{:.digits$} ({:.digits$}–{:.digits$})", spread.median, spread.min, spread.max)
}
