//! A value that was measured in several rounds.
use serde::Serialize;

/// The middle one and the outermost ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of one value for each round.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or_default();
        Self { median: at(values.len() / 2), min: at(0), max: at(values.len().saturating_sub(1)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_no_mean() {
        let spread = Spread::of([3.0, 1.0, 100.0]);
        assert_eq!(spread, Spread { median: 3.0, min: 1.0, max: 100.0 });
        assert_eq!(Spread::of([]), Spread::default());
    }
}
