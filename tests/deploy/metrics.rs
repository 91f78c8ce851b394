//! Which metrics there are, and which are asked for.
use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use pod_identity_agent::metrics::{CacheErrorKind, Metrics};

const PREFIX: &str = "pod_identity_";
/// Labels whose values are all there from the start, as zero.
const CLOSED: [&str; 3] = ["reason", "outcome", "state"];

/// Fails unless all metrics in `text` (rules, a dashboard) are the agent's, and their labels can have these values.
pub(crate) fn must_exist(text: &str) -> Result<()> {
    let served = served();
    let known = known(&served);
    let used = used(text);
    ensure!(!used.is_empty(), "no metric is used");
    let unknown: Vec<_> = used.difference(&known).collect();
    ensure!(unknown.is_empty(), "the agent has no metric {unknown:?}");
    for label in CLOSED {
        for value in values(text, label) {
            ensure!(served.contains(&format!("{label}=\"{value}\"")), "no metric has {label}=\"{value}\"");
        }
    }
    Ok(())
}

/// All that an agent serves.
pub(crate) fn served() -> String {
    let metrics = Metrics::new();
    // A family without a member is not served; of this one the agent does not know the members beforehand.
    metrics.cache_error(CacheErrorKind::Recoverable, "AccessDeniedException");
    metrics.text()
}

/// The names that Prometheus stores, from the agent's own types.
pub(crate) fn known(served: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in served.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let Some((name, kind)) = line.split_once(' ') else { continue };
        let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        names.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
    }
    names
}

/// The agent's names in a text.
pub(crate) fn used(text: &str) -> BTreeSet<String> {
    let is_name = |byte: char| byte.is_ascii_alphanumeric() || byte == '_';
    text.match_indices(PREFIX)
        .filter(|(at, _)| !text[..*at].ends_with(is_name))
        .map(|(at, _)| text[at..].split(|byte| !is_name(byte)).next().unwrap_or_default().to_owned())
        .collect()
}

/// What a label is compared with: alternatives of an expression apart.
fn values(text: &str, label: &str) -> BTreeSet<String> {
    // A dashboard is JSON, where quotes in an expression are escaped.
    let text = text.replace("\\\"", "\"");
    let mut found = BTreeSet::new();
    for operator in ["=\"", "=~\""] {
        let start = format!("{label}{operator}");
        for (at, _) in text.match_indices(&start) {
            let value = text[at + start.len()..].split('"').next().unwrap_or_default();
            found.extend(value.split('|').map(str::to_owned));
        }
    }
    found
}

#[test]
fn names_and_values_are_found_in_expressions() {
    let text = r#"sum(rate(pod_identity_a_total{outcome=~"x|y"}[5m])) / other_pod_identity_b, \"pod_identity_c{reason=\"z\"}\""#;
    assert_eq!(used(text).into_iter().collect::<Vec<_>>(), ["pod_identity_a_total", "pod_identity_c"]);
    assert_eq!(values(text, "outcome").into_iter().collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!(values(text, "reason").into_iter().collect::<Vec<_>>(), ["z"]);
    assert!(must_exist("pod_identity_grants").is_err());
    assert!(must_exist(r#"pod_identity_refusals_total{reason="none"}"#).is_err());
}
