//! Reads what a server of the agent sent on a connection, and holds it to HTTP/1.

/// One answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case, as they are sent.
    pub(crate) headers: Vec<(String, String)>,
    /// Empty in answers to HEAD.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// The answers, one after the other. Each has a length that is right, and nothing is left over.
///
/// What was asked is not known here: an answer whose body is followed by another answer's head at once, or by nothing, is
/// taken for one to HEAD. No body begins as a head does.
pub(crate) fn read(mut sent: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !sent.is_empty() {
        let end = sent.windows(4).position(|four| four == b"\r\n\r\n").expect("a head ends");
        let head = str::from_utf8(&sent[..end]).expect("a head is text");
        sent = &sent[end + 4..];
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")).expect("a status line");
        let status = status.get(2..5).and_then(|status| status.parse().ok()).expect("a status");
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(": ").expect("a header has a value"))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut answer = Answer { status, headers, body: Vec::new() };
        if status == 100 {
            // Comes before an answer, and is a head alone.
            answers.push(answer);
            continue;
        }
        assert!(answer.header("transfer-encoding").is_none(), "never chunked: {answer:?}");
        let lengths: Vec<_> = answer.headers.iter().filter(|(name, _)| name == "content-length").collect();
        assert_eq!(lengths.len(), 1, "one length: {answer:?}");
        let length: usize = lengths[0].1.parse().expect("a length is a number");
        if !sent.is_empty() && !sent.starts_with(b"HTTP/1.") {
            assert!(sent.len() >= length, "{length} bytes are announced, there are {}: {answer:?}", sent.len());
            answer.body = sent[..length].to_vec();
            sent = &sent[length..];
        }
        answers.push(answer);
    }
    answers
}
