//! HTTP/1 as plain as a test needs it: requests are bytes of the test's own making, answers are read as they come.
use std::io::{self, BufRead, Read as _};

use anyhow::{Context as _, Result, bail, ensure};

/// More than any answer of the agent or the stand-in.
const LONGEST_BODY: usize = 16 * 1024 * 1024;

/// A pod's request for its credentials.
#[must_use]
pub fn credentials_request(token: &str) -> String {
    format!("GET /v1/credentials HTTP/1.1\r\nHost: 169.254.170.23\r\nAuthorization: {token}\r\n\r\n")
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Names as they were sent, and values.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of the first header of this name, in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Its body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Reads one answer, to its `Content-Length` or, without one, to the end of the connection. An answer to HEAD, 204 and
/// 304 have no body whatever their headers say.
pub fn read_response(stream: &mut impl BufRead, to_head: bool) -> Result<Response> {
    let status_line = read_line(stream)?;
    ensure!(!status_line.is_empty(), "the connection was closed without an answer");
    let mut words = status_line.split(' ');
    let version = words.next().unwrap_or_default();
    ensure!(version.starts_with("HTTP/1."), "not an HTTP/1 answer: {status_line}");
    let status: u16 = words.next().and_then(|word| word.parse().ok()).context("no status in the answer")?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').with_context(|| format!("not a header: {line}"))?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut response = Response { status, headers, body: Vec::new() };
    if to_head || matches!(status, 204 | 304) {
        return Ok(response);
    }
    if response.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        response.body = read_chunks(stream)?;
    } else if let Some(length) = response.header("content-length") {
        let length: usize = length.parse().context("Content-Length is no number")?;
        ensure!(length <= LONGEST_BODY, "a body of {length} bytes");
        response.body = vec![0; length];
        stream.read_exact(&mut response.body).context("the body is shorter than its Content-Length")?;
    } else {
        stream.read_to_end(&mut response.body)?;
    }
    Ok(response)
}

fn read_chunks(stream: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(stream)?;
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)?;
        if body.len() + size > LONGEST_BODY {
            bail!("a body of more than {LONGEST_BODY} bytes");
        }
        let start = body.len();
        body.resize(start + size, 0);
        stream.read_exact(body.get_mut(start..).unwrap_or_default())?;
        read_line(stream)?;
        if size == 0 {
            return Ok(body);
        }
    }
}

fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    stream.take(64 * 1024).read_until(b'\n', &mut line)?;
    while line.last().is_some_and(|byte| matches!(byte, b'\r' | b'\n')) {
        line.pop();
    }
    String::from_utf8(line).map_err(io::Error::other)
}
