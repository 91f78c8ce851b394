//! Signed calls to emulators of AWS services, and what little is needed to read their answers.
use std::{
    fmt::Write as _,
    io::{BufReader, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    http1,
    sigv4::{self, AccessKey, Signed},
};

/// Emulators answer in milliseconds, but import much of themselves at their first call.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Who calls.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Signs the calls.
    pub key: AccessKey,
    /// What they are signed for.
    pub region: String,
}

impl Caller {
    /// The body of the answer to a request at `url` (`http://127.0.0.1:5000`), which must succeed.
    pub fn ask(&self, url: &str, service: &str, request: &Signed<'_>, content_type: &str) -> Result<Vec<u8>> {
        let address = url
            .strip_prefix("http://")
            .with_context(|| format!("{url} is not http://ADDRESS:PORT"))?
            .trim_end_matches('/');
        let mut bytes = head(&sigv4::sign(&self.key, &self.region, service, address, request), request, content_type);
        bytes.extend_from_slice(request.body);
        let response = exchange(address, &bytes)?;
        ensure!(response.status == 200, "{service} answered {}: {}", response.status, response.text());
        Ok(response.body)
    }
}

/// Sends a request, and reads the answer.
pub fn exchange(address: &str, request: &[u8]) -> Result<http1::Response> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("cannot reach {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(request)?;
    http1::read_response(&mut BufReader::new(stream), false)
}

fn head(signed: &[(String, String)], request: &Signed<'_>, content_type: &str) -> Vec<u8> {
    let question = if request.query.is_empty() { "" } else { "?" };
    let mut text = format!("{} {}{question}{} HTTP/1.1\r\n", request.method, request.path, request.query);
    for (name, value) in signed {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    let length = request.body.len();
    let _ = write!(text, "content-type: {content_type}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    text.into_bytes()
}

/// A value in a form, percent-encoded.
#[must_use]
pub fn form_value(value: &str) -> String {
    value.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// The text of the first element of this name in the small answers of STS and IAM, which have no attributes where it
/// matters.
#[must_use]
pub fn xml_text(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim().replace("&amp;", "&"))
}
