//! Columns of text.

/// No column is made narrower than this.
const NARROWEST: usize = 6;
const GAP: usize = 2;

/// Heads and rows, each column as wide as its widest cell; no space at the end of a line. Where that is more than `width`
/// the widest columns are cut, the cut cells ending in an ellipsis.
pub(super) fn render<const N: usize>(
    heads: &[&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
    width: Option<usize>,
) -> String {
    let lines: Vec<[String; N]> = std::iter::once(heads.map(str::to_owned)).chain(rows).collect();
    let widest =
        |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
    let mut widths: Vec<usize> = (0..N).map(|column| widest(column).unwrap_or_default()).collect();
    if let Some(width) = width {
        fit(&mut widths, width);
    }
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, &width)| format!("{:<width$}", cut(cell, width)));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn fit(widths: &mut [usize], width: usize) {
    let total = |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
    while total(widths) > width {
        match widths.iter_mut().max() {
            Some(widest) if *widest > NARROWEST => *widest -= 1,
            _ => return,
        }
    }
}

fn cut(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    cell.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_widest_columns_give_way_to_a_narrow_terminal() {
        let rows = || [["a".to_owned(), "a long reason that does not fit".to_owned()]];
        assert_eq!(render(&["POD", "REASON"], rows(), None), "POD  REASON\na    a long reason that does not fit\n");
        let narrow = render(&["POD", "REASON"], rows(), Some(20));
        assert_eq!(narrow, "POD  REASON\na    a long reason …\n");
        assert!(narrow.lines().all(|line| line.chars().count() <= 20));
        // Nothing is cut to nothing.
        assert_eq!(render(&["POD", "REASON"], rows(), Some(1)), "POD  REASON\na    a lon…\n");
    }
}
