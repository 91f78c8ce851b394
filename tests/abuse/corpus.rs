//! Requests that are malformed, or that two readers could cut differently: each is answered as the table says, once, and
//! none leaves the two ends of a connection in disagreement about where the next request begins.
use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    node::Node,
    process::{binary, run_with_input},
    wire::{Exchange, Outcome},
};

/// Bytes as a table can show them: `{H}` stands for a good Host header, `{T}` for a good Authorization header, `{N*c}` for
/// N times the character c, `{00}` for a byte.
const CASES: &str = include_str!("corpus.txt");

/// Head of the request that is sent on connections that are still open, and of those that are smuggled.
const GOOD: &str = "GET /v1/credentials HTTP/1.1\r\n{H}\r\n{T}\r\n\r\n";

struct Case<'a> {
    expected: &'a str,
    name: &'a str,
    bytes: &'a str,
}

fn cases() -> Result<Vec<Case<'static>>> {
    let lines = CASES.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut columns = line.splitn(3, '|').map(str::trim);
            let mut column = || columns.next().with_context(|| format!("three columns: {line}"));
            Ok(Case { expected: column()?, name: column()?, bytes: column()? })
        })
        .collect()
}

/// What the agent did, in the table's words: the statuses, then `close`, or what became of a good request.
fn told(outcome: &Outcome) -> String {
    let mut words = String::new();
    for status in &outcome.statuses {
        let _ = write!(words, "{status} ");
    }
    words.push_str(if outcome.closed {
        "close"
    } else if outcome.then == [200] {
        "open"
    } else if outcome.statuses.is_empty() && outcome.then.len() == 1 {
        "waits"
    } else {
        "confused"
    });
    if !outcome.rest.is_empty() {
        let _ = write!(words, " rest {:?}", outcome.rest.get(..40).unwrap_or(&outcome.rest));
    }
    words
}

fn bytes(text: &str, token: &str) -> Result<Vec<u8>> {
    let text = text.replace("{GOOD}", GOOD).replace("{H}", "Host: 169.254.170.23");
    let text = text.replace("{T}", &format!("Authorization: {token}"));
    let mut bytes = Vec::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once('{') {
        bytes.extend(unescape(before));
        let (inside, after) = after.split_once('}').context("an open brace")?;
        if let Some((count, what)) = inside.split_once('*') {
            bytes.extend(unescape(&what.repeat(count.parse()?)));
        } else {
            bytes.push(u8::from_str_radix(inside, 16)?);
        }
        rest = after;
    }
    bytes.extend(unescape(rest));
    Ok(bytes)
}

fn unescape(text: &str) -> Vec<u8> {
    text.replace("\\r", "\r").replace("\\n", "\n").replace("\\t", "\t").into_bytes()
}

#[test]
fn malformed_and_smuggled_requests_are_answered_as_the_table_says() -> Result<()> {
    let node = Node::new()?;
    let agent = node.agent()?;
    let pod = node.pod("app")?;
    pod.must_get_credentials()?;
    let cases = cases()?;
    let exchanges = cases
        .iter()
        .map(|case| {
            let sent = bytes(case.bytes, pod.token()).with_context(|| case.name.to_owned())?;
            Ok(Exchange { sent, then: bytes(GOOD, pod.token())? })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut command = pod.container("app")?.command(&binary("wire")?.display().to_string())?;
    let output = run_with_input(&mut command, &serde_json::to_vec(&exchanges)?, Duration::from_mins(2))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let outcomes: Vec<Outcome> = serde_json::from_slice(&output.stdout)?;
    let mut wrong = String::new();
    for (case, outcome) in cases.iter().zip(&outcomes) {
        let told = told(outcome);
        if told != case.expected {
            let _ = writeln!(wrong, "{}: {told}, not {}", case.name, case.expected);
        }
    }
    println!("{} requests, each answered as the table says", cases.len());
    ensure!(outcomes.len() == cases.len() && wrong.is_empty(), "\n{wrong}");
    // And the agent is none the worse for it.
    pod.must_get_credentials()?;
    ensure!(!agent.log_text().contains("panicked"), "{}", agent.log_text());
    Ok(())
}
