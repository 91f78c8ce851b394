//! `audit`: what was granted and refused, as lines of JSON.
use std::{
    io::Write,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{AT_ONCE, CommandError, good, print};
use crate::{
    admin::client,
    audit::{Batch, Cursor},
};

/// From one question to the next.
const PAUSE: Duration = Duration::from_millis(250);
/// An agent that is replaced by the next one may not answer for so long.
const AWAY: Duration = Duration::from_secs(10);

/// Prints what the agent keeps, and with `follow` what comes, until it answers no more.
pub(super) fn run(run_dir: &Path, follow: bool, out: &mut impl Write) -> Result<(), CommandError> {
    let mut cursor = Cursor::default();
    let mut answered = Instant::now();
    loop {
        let batch = match ask(run_dir, cursor) {
            Ok(batch) => batch,
            Err(CommandError::NoAnswer(_) | CommandError::Refused { status: 503, .. })
                if follow && cursor != Cursor::default() && answered.elapsed() < AWAY =>
            {
                thread::sleep(PAUSE);
                continue;
            }
            Err(error) => return Err(error),
        };
        answered = Instant::now();
        print(out, &batch.text()?)?;
        cursor = batch.cursor;
        match (batch.more, follow) {
            (true, _) => {}
            (false, true) => thread::sleep(PAUSE),
            (false, false) => return Ok(()),
        }
    }
}

fn ask(run_dir: &Path, cursor: Cursor) -> Result<Batch, CommandError> {
    let body = good(client::ask(run_dir, "/audit", Some(&serde_json::to_string(&cursor)?), AT_ONCE)?)?;
    Ok(serde_json::from_str(&body)?)
}
