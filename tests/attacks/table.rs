//! The table.
use std::time::Duration;

use anyhow::Result;

use crate::attack::{Attack, Expected, Outcome};

/// Widths of all columns but the last.
const WIDTHS: [usize; 5] = [32, 27, 92, 46, 13];

fn line(cells: [&str; 6]) {
    let mut text = String::new();
    for (cell, width) in cells.iter().zip(WIDTHS) {
        text.push_str(cell);
        text.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()) + 1));
    }
    println!("{text}{}", cells[5]);
}

/// Its head.
pub(crate) fn head() {
    line(["attacker", "capability", "action", "expected", "refused/total", "counted by"]);
    println!("{}", "─".repeat(WIDTHS.iter().sum::<usize>() + 40));
}

/// A row: the columns, and below them what the log says and how the control went.
pub(crate) fn row(attack: &Attack, outcome: &Result<Outcome>, took: Duration) {
    let expected = match attack.expected {
        Expected::Refused(refusals) => {
            let names: Vec<String> = refusals.iter().map(|it| format!("{} {}", it.status, it.reason)).collect();
            match names.as_slice() {
                [first, second, rest @ ..] if !rest.is_empty() => format!("{first}, {second}, {} more", rest.len()),
                few => few.join(", "),
            }
        }
        Expected::Nothing(what) => what.to_owned(),
        Expected::OutOfReach(_) => "OUT OF REACH".to_owned(),
    };
    let (count, counted) = match outcome {
        Ok(Outcome { refused, total, counted, .. }) => (format!("{refused}/{total}"), counted.as_str()),
        Err(_) => ("FAILED".to_owned(), ""),
    };
    line([attack.attacker, attack.capability, attack.action, &expected, &count, counted]);
    let below = |name: &str, what: &str| {
        if !what.is_empty() {
            println!("    {name:<8}{what}");
        }
    };
    below("name", &format!("{} ({:.1} s)", attack.name, took.as_secs_f64()));
    if let Expected::OutOfReach(limit) = attack.expected {
        below("limit", limit);
    }
    match outcome {
        Ok(outcome) => {
            below("log", &outcome.log);
            below("control", &outcome.control);
        }
        Err(error) => below("error", &format!("{error:#}")),
    }
}

/// Its foot.
pub(crate) fn foot(rows: usize, failed: usize, took: Duration) {
    println!("{rows} attacks, {failed} not as expected, {:.0} s", took.as_secs_f64());
}
