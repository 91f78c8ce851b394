//! What an attack is, and what makes it a failed one.
use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use pod_identity_tests::{agent::Agent, client::Tally, host};
use serde_json::Value;

/// For a line to reach the log's file.
const LOGGED: Duration = Duration::from_secs(3);

/// A row of the table.
pub(crate) struct Attack {
    /// By which it is run alone, and found in SECURITY.md.
    pub(crate) name: &'static str,
    /// Who attacks.
    pub(crate) attacker: &'static str,
    /// What they may do beyond what every process may.
    pub(crate) capability: &'static str,
    /// What they do.
    pub(crate) action: &'static str,
    pub(crate) expected: Expected,
    pub(crate) run: fn(&Attack) -> Result<Outcome>,
}

/// How it is to end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expected {
    /// Every try is answered with one of these.
    Refused(&'static [Refusal]),
    /// Every try leads nowhere, in these words.
    Nothing(&'static str),
    /// It succeeds: what limits it.
    OutOfReach(&'static str),
}

/// One reason of the contract: its status, its name in metrics and log, a part of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) reason: &'static str,
    pub(crate) message: &'static str,
}

const fn refusal(status: u16, reason: &'static str, message: &'static str) -> Refusal {
    Refusal { status, reason, message }
}

pub(crate) const FOREIGN_TOKEN: Refusal = refusal(403, "foreign_token", "belongs to another pod");
pub(crate) const NOT_A_POD: Refusal = refusal(403, "not_a_pod", "not in a pod of this node");
pub(crate) const STATIC_POD: Refusal = refusal(403, "static_pod", "Static pods have no service account");
pub(crate) const POD_GONE: Refusal = refusal(403, "pod_gone", "The calling pod has ended");
pub(crate) const UNKNOWN_SOCKET: Refusal = refusal(403, "unknown_socket", "The kernel knows no calling socket");
pub(crate) const MALFORMED: Refusal = refusal(400, "malformed_token", "Service account token cannot be parsed");
pub(crate) const NO_TOKEN: Refusal = refusal(400, "no_token", "Service account token cannot be empty");
pub(crate) const EXPIRED: Refusal = refusal(400, "token_expired", "token is expired");
pub(crate) const NOT_YET_VALID: Refusal = refusal(400, "token_not_yet_valid", "token is not valid yet");
pub(crate) const WRONG_AUDIENCE: Refusal = refusal(400, "wrong_audience", "token has no audience");
pub(crate) const NO_POD_UID: Refusal = refusal(400, "no_pod_uid", "failed to get pod uid");
pub(crate) const EKS_AUTH_REFUSED: Refusal = refusal(400, "eks_auth_refused", "(InvalidTokenException)");
/// Of a call to EKS Auth on a machine that is busy.
pub(crate) const ANSWER_DEADLINE: Refusal = refusal(503, "answer_deadline", "are not there yet");
pub(crate) const POD_LIMIT: Refusal = refusal(503, "pod_limit", "too many connections or requests");

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) refused: u64,
    pub(crate) total: u64,
    /// Which metrics counted it.
    pub(crate) counted: String,
    /// The line of the agent's log.
    pub(crate) log: String,
    /// How the same went where the defence is off.
    pub(crate) control: String,
}

/// Tries of a row whose tries cost little.
pub(crate) fn tries() -> u64 {
    if host::full_size() { 100_000 } else { 1_000 }
}

/// Tries of a control: one would do.
pub(crate) const CONTROL: u64 = 10;

impl Attack {
    /// Whether it ended as the row says.
    pub(crate) fn judge(&self, outcome: &Outcome) -> Result<()> {
        ensure!(outcome.total > 0, "nothing was tried");
        match self.expected {
            Expected::OutOfReach(_) => ensure!(outcome.refused < outcome.total, "it is no longer out of reach: say so"),
            _ => ensure!(outcome.refused == outcome.total, "{} of {}", outcome.refused, outcome.total),
        }
        Ok(())
    }

    /// Runs an attack whose every try is to be refused, and fails unless each was, and was counted once, for an expected
    /// reason, and a line of the log has all of `log`.
    pub(crate) fn carry_out(
        &self,
        agent: &Agent,
        log: &[&str],
        attack: impl FnOnce() -> Result<Tally>,
    ) -> Result<Outcome> {
        let Expected::Refused(refusals) = self.expected else { bail!("this row does not end in refusals") };
        let before = Books::of(agent)?;
        let tally = attack()?;
        let counted = before.since(agent)?;
        let refused: u64 = refusals.iter().map(|it| tally.refused(it.status, it.message)).sum();
        ensure!(refused == tally.tries && tally.granted == 0, "not refused as expected: {tally:?}");
        let told =
            |part: &&str| tally.refusals.values().flat_map(BTreeMap::keys).any(|message| message.contains(*part));
        ensure!(!log.iter().any(told), "a refusal names a pod: {tally:?}");
        counted.must_be(refusals, tally.tries)?;
        let answered: u64 = counted.responses.values().sum();
        ensure!(answered == tally.tries, "{answered} answers were counted: {counted:?}");
        Ok(Outcome {
            refused,
            total: tally.tries,
            log: counted.log_line(agent, log)?,
            counted: counted.to_string(),
            ..Outcome::default()
        })
    }
}

/// Refusals, grants and answers that the agent has counted.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) refusals: BTreeMap<String, u64>,
    pub(crate) responses: BTreeMap<String, u64>,
    pub(crate) grants: u64,
    pub(crate) impersonations: u64,
    pub(crate) connections: u64,
    pub(crate) steered: u64,
}

impl Books {
    /// All up to now.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are whole numbers")]
    pub(crate) fn of(agent: &Agent) -> Result<Self> {
        let metrics = agent.metrics()?;
        let labelled = |name: &str, label: &str| -> BTreeMap<String, u64> {
            let start = format!("{name}{{{label}=\"");
            let of = |(key, value): (&String, &f64)| {
                Some((key.strip_prefix(&start)?.strip_suffix("\"}")?.to_owned(), *value as u64))
            };
            metrics.iter().filter_map(of).collect()
        };
        let plain = |name: &str| -> Result<u64> { Ok(*metrics.get(name).context(name.to_owned())? as u64) };
        Ok(Self {
            refusals: labelled("pod_identity_refusals_total", "reason"),
            responses: labelled("pod_identity_http_response", "code"),
            grants: plain("pod_identity_grants_total")?,
            impersonations: plain("pod_identity_impersonation_attempts_total")?,
            connections: plain("pod_identity_connections_total")?,
            steered: labelled("pod_identity_steering_steered_total", "program").values().sum(),
        })
    }

    /// What came to it since.
    pub(crate) fn since(&self, agent: &Agent) -> Result<Self> {
        let now = Self::of(agent)?;
        let rise = |old: &BTreeMap<String, u64>, new: BTreeMap<String, u64>| -> BTreeMap<String, u64> {
            let risen = |(key, count): (String, u64)| {
                let more = count - old.get(&key).copied().unwrap_or_default();
                (more > 0).then_some((key, more))
            };
            new.into_iter().filter_map(risen).collect()
        };
        Ok(Self {
            refusals: rise(&self.refusals, now.refusals),
            responses: rise(&self.responses, now.responses),
            grants: now.grants - self.grants,
            impersonations: now.impersonations - self.impersonations,
            connections: now.connections - self.connections,
            steered: now.steered - self.steered,
        })
    }

    /// Fails unless just so many refusals were counted, for these reasons only, and no grant.
    pub(crate) fn must_be(&self, refusals: &[Refusal], count: u64) -> Result<()> {
        let unexpected = self.refusals.keys().find(|reason| !refusals.iter().any(|it| it.reason == **reason));
        ensure!(unexpected.is_none() && self.grants == 0, "not counted as expected: {self:?}");
        let counted: u64 = self.refusals.values().sum();
        ensure!(counted == count, "{counted} of {count} were counted: {self:?}");
        let foreign = self.refusals.get("foreign_token").copied().unwrap_or_default();
        ensure!(self.impersonations == foreign, "not all impersonations were counted: {self:?}");
        Ok(())
    }

    /// The log's line of the reason that was counted most.
    pub(crate) fn log_line(&self, agent: &Agent, parts: &[&str]) -> Result<String> {
        let (reason, _) = self.refusals.iter().max_by_key(|(_, count)| **count).context("no refusal was counted")?;
        let mut all = vec![reason.as_str()];
        all.extend(parts);
        Ok(abridged(&agent.wait_for_log(&all, LOGGED)?))
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (reason, count)) in self.refusals.iter().enumerate() {
            write!(f, "{}refusals_total{{reason=\"{reason}\"}} +{count}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// A line of the log in short: level, reason, who, message.
pub(crate) fn abridged(line: &str) -> String {
    let json: Value = serde_json::from_str(line).unwrap_or_default();
    let fields = json.get("fields").unwrap_or(&json);
    let text =
        |name: &str| fields.get(name).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let mut short = json["level"].as_str().unwrap_or_default().to_owned();
    for name in ["reason", "pod_uid", "claimed_pod_uid", "cgroup_id"] {
        if let Some(value) = text(name) {
            let _ = write!(short, " {name}={value}");
        }
    }
    format!("{short} “{}”", text("message").unwrap_or_default())
}
