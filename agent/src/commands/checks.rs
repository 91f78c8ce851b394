//! Findings of `explain` and `doctor`, one line each, and what they look like.
use serde::Serialize;

use super::screen::{Colour, Screen};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// It cannot be told from here.
    NotKnown,
    /// It works, and something should be changed all the same.
    Warn,
    /// The pod gets no credentials for this reason, or soon will not.
    Problem,
    /// The agent cannot work on this node for this reason.
    Fail,
}

impl Verdict {
    fn is_bad(self) -> bool {
        matches!(self, Self::Problem | Self::Fail)
    }

    fn text(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotKnown => "not known",
            Self::Warn => "warn",
            Self::Problem => "problem",
            Self::Fail => "fail",
        }
    }

    fn colour(self) -> Colour {
        match self {
            Self::Ok => Colour::Green,
            Self::NotKnown => Colour::Grey,
            Self::Warn => Colour::Yellow,
            Self::Problem | Self::Fail => Colour::Red,
        }
    }
}

/// What one check found. Both texts go to people and logs of support cases: no secret gets in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// What was checked; names are stable.
    pub step: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found.
    pub finding: String,
    /// What to do about it; empty where nothing is to be done.
    pub remedy: String,
}

impl Check {
    pub(super) fn ok(step: &'static str, finding: impl Into<String>) -> Self {
        Self { step, verdict: Verdict::Ok, finding: finding.into(), remedy: String::new() }
    }

    pub(super) fn new(
        verdict: Verdict,
        step: &'static str,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { step, verdict, finding: finding.into(), remedy: remedy.into() }
    }

    pub(super) fn problem(step: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Verdict::Problem, step, finding, remedy)
    }

    pub(super) fn not_known(step: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Verdict::NotKnown, step, finding, remedy)
    }
}

/// Whether nothing is wrong.
pub(super) fn all_good(checks: &[Check]) -> bool {
    !checks.iter().any(|check| check.verdict.is_bad())
}

/// A line for each.
pub(super) fn render(checks: &[Check], screen: Screen) -> String {
    let width = checks.iter().map(|check| check.step.len()).max().unwrap_or_default();
    let line = |check: &Check| {
        let verdict = screen.paint(check.verdict.colour(), &format!("{:<9}", check.verdict.text()));
        let Check { step, finding, remedy, .. } = check;
        let arrow = if remedy.is_empty() { "" } else { " → " };
        format!("{verdict}  {step:<width$}  {finding}{arrow}{remedy}\n")
    };
    checks.iter().map(line).collect()
}
