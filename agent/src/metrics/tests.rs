use super::*;

/// Whether exactly this line is there.
fn says(metrics: &Metrics, line: &str) -> bool {
    metrics.text().lines().any(|said| said == line)
}

#[test]
fn names_that_operators_know_from_the_official_agent_are_kept_exactly() {
    let metrics = Metrics::new();
    metrics.responded(StatusCode::OK);
    metrics.responded(StatusCode::OK);
    metrics.responded(StatusCode::FORBIDDEN);
    metrics.cache_hits.inc();
    metrics.cache_error(CacheErrorKind::NonRecoverable, "AccessDeniedException");
    assert!(says(&metrics, "# TYPE pod_identity_http_response counter"));
    assert!(says(&metrics, "pod_identity_http_response{code=\"200\"} 2"));
    assert!(says(&metrics, "pod_identity_http_response{code=\"403\"} 1"));
    assert!(says(&metrics, "# TYPE pod_identity_cache_state counter"));
    assert!(says(&metrics, "pod_identity_cache_state{state=\"hit\"} 1"));
    assert!(says(&metrics, "pod_identity_cache_state{state=\"miss\"} 0"));
    assert!(says(&metrics, "pod_identity_cache_state{state=\"evicted\"} 0"));
    assert!(says(&metrics, "pod_identity_cache_errors{type=\"NonRecoverable\",code=\"AccessDeniedException\"} 1"));
}

#[test]
fn every_reason_is_there_from_the_start() {
    let metrics = Metrics::new();
    for reason in Refusal::REASONS {
        let line = format!("pod_identity_refusals_total{{reason=\"{reason}\"}} 0");
        assert!(says(&metrics, &line), "{reason}");
    }
}

#[test]
fn a_foreign_token_is_counted_as_an_attempt_at_impersonation() {
    let metrics = Metrics::new();
    metrics.refused(&Refusal::ForeignToken);
    metrics.refused(&Refusal::NoToken);
    assert_eq!(metrics.impersonation_attempts.get(), 1);
    assert!(says(&metrics, "pod_identity_refusals_total{reason=\"foreign_token\"} 1"));
    assert!(says(&metrics, "pod_identity_impersonation_attempts_total 1"));
}

#[test]
fn durations_are_booked_under_their_outcome() {
    let metrics = Metrics::new();
    metrics.answered(Answer::Cached, Duration::from_micros(40));
    metrics.answered(Answer::Refused, Duration::from_secs(3));
    metrics.asked_eks_auth(EksAuthOutcome::Throttled, false, Duration::from_millis(20));
    metrics.asked_eks_auth(EksAuthOutcome::Refused, true, Duration::from_millis(20));
    assert!(says(&metrics, "pod_identity_answer_seconds_count{outcome=\"cached\"} 1"));
    assert!(says(&metrics, "pod_identity_answer_seconds_count{outcome=\"fetched\"} 0"));
    assert!(says(&metrics, "pod_identity_answer_seconds_bucket{le=\"2.5\",outcome=\"refused\"} 0"));
    assert!(says(&metrics, "pod_identity_answer_seconds_bucket{le=\"+Inf\",outcome=\"refused\"} 1"));
    assert!(says(&metrics, "pod_identity_eks_auth_seconds_count{outcome=\"throttled\"} 1"));
    assert!(says(&metrics, "pod_identity_renewals_total{outcome=\"throttled\"} 0"));
    assert!(says(&metrics, "pod_identity_renewals_total{outcome=\"refused\"} 1"));
}

#[test]
fn outcomes_index_their_own_histograms() {
    assert!(Answer::ALL.iter().enumerate().all(|(at, answer)| *answer as usize == at));
    assert!(EksAuthOutcome::ALL.iter().enumerate().all(|(at, outcome)| *outcome as usize == at));
}

#[test]
fn numbers_kept_by_others_are_read_at_the_scrape() {
    let metrics = Metrics::new();
    assert!(says(&metrics, "pod_identity_log_lines_dropped_total 0"));
    metrics.read_steering_from(|| vec![SteeringCounts { program: "connect4", steered: 7, missed: 2, paced: 3 }]);
    metrics.read_dropped_log_lines_from(|| 3);
    assert!(says(&metrics, "pod_identity_steering_steered_total{program=\"connect4\"} 7"));
    assert!(says(&metrics, "pod_identity_steering_missed_total{program=\"connect4\"} 2"));
    assert!(says(&metrics, "pod_identity_steering_paced_total{program=\"connect4\"} 3"));
    assert!(says(&metrics, "pod_identity_log_lines_dropped_total 3"));
}

#[test]
fn the_text_is_what_prometheus_text_format_allows() {
    let metrics = Metrics::new();
    metrics.responded(StatusCode::OK);
    let text = metrics.text();
    let mut names = std::collections::HashSet::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.split(' ');
            let (kind, name) = (words.next().unwrap(), words.next().unwrap());
            assert!(matches!(kind, "HELP" | "TYPE"), "{line}");
            if kind == "TYPE" {
                assert!(names.insert(name.to_owned()), "{name} described twice");
            }
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            assert!(names.contains(family.unwrap_or(name)), "no TYPE for {line}");
        }
    }
    assert!(names.iter().all(|name| name.matches("pod_identity").count() == 1), "{names:?}");
}
