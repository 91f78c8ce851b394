//! Requests from within pods: what `pod-client` prints, and how it is told what to do.
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::starting_line::StartingLine;

mod tally;

pub use tally::Tally;

/// What became of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Which of the clients that ran at once made it, from 0.
    pub client: usize,
    /// Which of the requests on its connection it was, from 0.
    pub request: usize,
    /// The answer's status, if there was an answer.
    pub status: Option<u16>,
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: String,
    /// Why there was none.
    pub error: Option<String>,
    /// Whom the connection was with, as the client's kernel told it.
    pub peer: Option<String>,
    /// The client's own address.
    pub local: Option<String>,
    /// Attempts to connect that were refused before one was not.
    pub refused_connects: u32,
    /// How long connecting took.
    pub connect_us: u64,
    /// Requests until this answer: more than one when the client was told to come back.
    pub attempts: u32,
    /// From sending the (first) request to the whole answer.
    pub latency_us: u64,
}

impl Answer {
    /// The value of the first header of this name, in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Its body as JSON; `Null` when it is not.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// A member of its body that is text; empty when there is none.
    #[must_use]
    pub fn member(&self, name: &str) -> String {
        self.json().get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// The access key that was served; empty when none was.
    #[must_use]
    pub fn access_key_id(&self) -> String {
        self.member("AccessKeyId")
    }
}

/// A request to make, and the connection to make it on. The default is what an SDK does.
#[derive(Clone, Debug)]
pub struct Client {
    args: Vec<String>,
    input: Vec<u8>,
}

impl Default for Client {
    fn default() -> Self {
        Self { args: vec!["--connect-within-ms=3000".into()], input: Vec::new() }
    }
}

impl Client {
    /// A request without a token to the IPv4 address.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A request with this token.
    #[must_use]
    pub fn with_token(token: &str) -> Self {
        Self::new().header("Authorization", token)
    }

    /// With this header too.
    #[must_use]
    pub fn header(self, name: &str, value: &str) -> Self {
        self.arg("--header", &format!("{name}: {value}"))
    }

    /// With this value of `Host` instead of the address.
    #[must_use]
    pub fn host(self, host: &str) -> Self {
        self.arg("--host", host)
    }

    /// Without `Host`.
    #[must_use]
    pub fn no_host(self) -> Self {
        self.flag("--no-host")
    }

    /// With this method.
    #[must_use]
    pub fn method(self, method: &str) -> Self {
        self.arg("--method", method)
    }

    /// With this target on the request line: a path, or an absolute form.
    #[must_use]
    pub fn path(self, path: &str) -> Self {
        self.arg("--path", path)
    }

    /// As HTTP/1.0.
    #[must_use]
    pub fn http10(self) -> Self {
        self.flag("--http10")
    }

    /// To this address (`[fd00:ec2::23]:80`).
    #[must_use]
    pub fn to(self, address: &str) -> Self {
        self.arg("--to", address)
    }

    /// Connecting in this way; see `pod-client --help`.
    #[must_use]
    pub fn mode(self, mode: &str) -> Self {
        self.arg("--mode", mode)
    }

    /// So many requests on one connection.
    #[must_use]
    pub fn requests(self, count: usize) -> Self {
        self.arg("--requests", &count.to_string())
    }

    /// So many clients at once.
    #[must_use]
    pub fn clients(self, count: usize) -> Self {
        self.arg("--clients", &count.to_string())
    }

    /// Hanging up so long after the request was sent, without waiting for an answer.
    #[must_use]
    pub fn hang_up_after_ms(self, ms: u64) -> Self {
        self.arg("--hang-up-after-ms", &ms.to_string())
    }

    /// Hanging up with a reset, as a process that is killed with data unread does.
    #[must_use]
    pub fn reset_after_ms(self, ms: u64) -> Self {
        self.hang_up_after_ms(ms).flag("--reset")
    }

    /// Making a request up to so many times while it is answered with 503, as late as `Retry-After` says, as SDKs do.
    #[must_use]
    pub fn attempts(self, count: u32) -> Self {
        self.arg("--attempts", &count.to_string())
    }

    /// Beginning when a [`StartingLine`] lets it.
    #[must_use]
    pub fn from_line(self, line: &StartingLine) -> Self {
        self.arg("--starting-line", &line.path().to_string_lossy())
    }

    /// Closing its own direction after the request.
    #[must_use]
    pub fn half_close(self) -> Self {
        self.flag("--half-close")
    }

    /// Sending these bytes, and reading so many answers.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8], answers: usize) -> Self {
        self.input = bytes.to_vec();
        self.arg("--raw-answers", &answers.to_string())
    }

    /// Waiting so long between the requests of a connection.
    #[must_use]
    pub fn pause_ms(self, ms: u64) -> Self {
        self.arg("--pause-ms", &ms.to_string())
    }

    /// Giving up after the first refused connection, as no SDK does.
    #[must_use]
    pub fn connect_once(self) -> Self {
        self.arg("--connect-within-ms", "0")
    }

    /// Waiting at most so long for anything.
    #[must_use]
    pub fn timeout_ms(self, ms: u64) -> Self {
        self.arg("--timeout-ms", &ms.to_string())
    }

    /// So many times, each on a connection of its own, one after the other; [`Tally`] says what came of it.
    #[must_use]
    pub fn tries(self, count: u64) -> Self {
        self.arg("--tries", &count.to_string())
    }

    /// Each try with its token garbled in a way of its own.
    #[must_use]
    pub fn garbled(self, seed: u64) -> Self {
        self.arg("--garble", &seed.to_string())
    }

    /// Any other argument of `pod-client`.
    #[must_use]
    pub fn arg(mut self, name: &str, value: &str) -> Self {
        self.args.push(format!("{name}={value}"));
        self
    }

    fn flag(mut self, name: &str) -> Self {
        self.args.push(name.to_owned());
        self
    }

    /// Arguments and standard input for `pod-client`.
    #[must_use]
    pub fn invocation(&self) -> (&[String], &[u8]) {
        (&self.args, &self.input)
    }
}
