//! A Prometheus in the node's network namespace, and what it answers.
use std::{
    fmt::Write as _,
    fs,
    io::{BufReader, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    http1,
    node::Node,
    process::{Process, binary, eventually},
};
use serde_json::Value;

/// Where it serves, in the node's namespace.
const ADDRESS: &str = "127.0.0.1:9090";
/// From its start to its first answer.
const STARTS: Duration = Duration::from_secs(20);
/// For an answer.
const ANSWERS: Duration = Duration::from_secs(10);

/// A running one.
pub(crate) struct Prometheus<'a> {
    node: &'a Node,
    // Ends with this.
    _process: Process,
}

impl<'a> Prometheus<'a> {
    /// Starts one that asks the agent at `target` every second.
    pub(crate) fn start(node: &'a Node, program: &Path, target: &str) -> Result<Self> {
        let directory = node.dir().join("prometheus");
        fs::create_dir(&directory)?;
        let settings = directory.join("prometheus.yml");
        fs::write(
            &settings,
            format!(
                "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: pod-identity-agent\n  \
                 static_configs:\n  - targets: ['{target}']\n  relabel_configs:\n  - {{target_label: instance, \
                 replacement: ip-10-88-0-1}}\n"
            ),
        )?;
        let mut command = Command::new(binary("pod-exec")?);
        command.arg("--netns").arg(node.netns().path()).arg("--").arg(program);
        command.arg("--config.file").arg(&settings).arg("--storage.tsdb.path").arg(directory.join("data"));
        command.args(["--web.listen-address", ADDRESS, "--log.level", "warn"]);
        let process = Process::start("Prometheus", &mut command, &directory.join("log"))?;
        let started = Self { node, _process: process };
        eventually("Prometheus to serve", STARTS, || Ok(started.get("/-/ready").ok()))
            .with_context(|| fs::read_to_string(directory.join("log")).unwrap_or_default())?;
        Ok(started)
    }

    /// The series of an expression, one sample a second.
    pub(crate) fn range(&self, expression: &str, from: SystemTime, to: SystemTime) -> Result<Value> {
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let path = format!(
            "/api/v1/query_range?query={}&start={}&end={}&step=1",
            escaped(expression),
            seconds(from),
            seconds(to)
        );
        let answer: Value = serde_json::from_slice(&self.get(&path)?).context("Prometheus' answer is no JSON")?;
        ensure!(answer["data"]["resultType"] == "matrix", "{expression}: {answer}");
        Ok(answer["data"]["result"].clone())
    }

    fn get(&self, path: &str) -> Result<Vec<u8>> {
        let mut stream = self.node.netns().within(|| TcpStream::connect(ADDRESS))??;
        stream.set_read_timeout(Some(ANSWERS))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {ADDRESS}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let response = http1::read_response(&mut BufReader::new(stream), false)?;
        ensure!(response.status == 200, "Prometheus answers {}: {}", response.status, response.text());
        Ok(response.body)
    }
}

/// As a value in a query.
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
        escaped
    })
}
