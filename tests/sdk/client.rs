//! The clients: the SDKs, which all show the same of themselves, and the AWS command line.
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use pod_identity_tests::{
    aws::{application::Application, clients::Clients},
    client::Answer,
    process::{binary, run},
};
use serde_json::Value;

/// For one line of a client: interpreters start, and SDKs try again for seconds before they give up.
const SPEAKS: Duration = Duration::from_secs(40);

/// An SDK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sdk {
    /// The SDK for Python.
    Boto3,
    /// The same, on sockets of family `AF_INET6` for IPv4 too.
    Boto3Mapped,
    /// The SDK for JavaScript.
    JavaScript,
    /// The SDK for Rust.
    Rust,
}

impl Sdk {
    /// Starts it in a pod: it fetches credentials so many times, and waits.
    pub(crate) fn start(self, application: &Application<'_>, fetches: u32, buckets: &[&str]) -> Result<Session> {
        let count = format!("--fetches={fetches}");
        let clients = application.clients();
        let script = |name: &str, runtime: &std::path::Path| -> Result<Command> {
            let mut command = application.command(runtime)?;
            command.arg(Clients::script(name)).arg(&count).args(buckets);
            Ok(command)
        };
        let mut command = match self {
            Self::Boto3 => script("fetch.py", &clients.python_program("python3"))?,
            Self::Boto3Mapped => script("fetch_mapped.py", &clients.python_program("python3"))?,
            Self::JavaScript => script("fetch.mjs", "node".as_ref())?,
            Self::Rust => {
                let mut command = application.command(&binary("sdk-client")?)?;
                command.arg(&count);
                command
            }
        };
        Session::start(&mut command)
    }
}

/// Credentials as a client got them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
    pub(crate) session_token: String,
}

impl Fetched {
    /// Reads what a client printed.
    pub(crate) fn read(said: &Value) -> Result<Self> {
        let text = |name: &str| {
            let found = said.get(name).and_then(Value::as_str).map(str::to_owned);
            found.with_context(|| format!("no {name} in what the client said: {said}"))
        };
        Ok(Self {
            access_key_id: text("access_key_id")?,
            secret_access_key: text("secret_access_key")?,
            session_token: text("session_token")?,
        })
    }

    /// As the agent answers.
    pub(crate) fn of_answer(answer: &Answer) -> Self {
        Self {
            access_key_id: answer.access_key_id(),
            secret_access_key: answer.member("SecretAccessKey"),
            session_token: answer.member("Token"),
        }
    }
}

/// Runs the AWS command line in a pod.
pub(crate) fn aws(application: &Application<'_>, args: &[&str]) -> Result<Output> {
    run(application.command(&application.clients().python_program("aws"))?.args(args), SPEAKS)
}

/// A client that runs.
#[derive(Debug)]
pub(crate) struct Session {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Session {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let input = child.stdin.take().context("it was piped")?;
        let output = child.stdout.take().context("it was piped")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Ok(Self { child, input, lines })
    }

    /// The next line it prints, which must be JSON. Fails with its error output if there is none.
    pub(crate) fn next(&mut self) -> Result<Value> {
        match self.lines.recv_timeout(SPEAKS) {
            Ok(line) => serde_json::from_str(&line).with_context(|| format!("the client printed no JSON: {line}")),
            Err(RecvTimeoutError::Timeout) => bail!("the client said nothing for {SPEAKS:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the client ended: {}", self.complaint()),
        }
    }

    /// Lets it use the credentials.
    pub(crate) fn go_on(&mut self) -> Result<()> {
        Ok(self.input.write_all(b"\n")?)
    }

    /// What it wrote to its error output until its end.
    fn complaint(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut errors) = self.child.stderr.take() {
            let _ = errors.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
