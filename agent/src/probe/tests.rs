use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    thread,
};

use super::*;
use crate::admin::socket_path;

/// An agent that answers `answer` to everybody, or holds the connection without a word.
fn agent(answer: Option<&'static str>) -> tempfile::TempDir {
    let run_dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(socket_path(run_dir.path())).unwrap();
    thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            let mut asked = [0; 256];
            let length = stream.read(&mut asked).unwrap();
            assert!(asked[..length].starts_with(b"GET /"));
            match answer {
                Some(answer) => stream.write_all(answer.as_bytes()).unwrap(),
                None => held.push(stream),
            }
        }
    });
    run_dir
}

fn said(answer: &'static str) -> String {
    let run_dir = agent(Some(answer));
    ask(run_dir.path(), Question::Ready).unwrap_err().to_string()
}

#[test]
fn yes_is_200_and_no_comes_with_its_reason() {
    let run_dir = agent(Some("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}"));
    ask(run_dir.path(), Question::Live).unwrap();
    let no = "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"status\":\"unavailable\",\"reasons\":[\"waiting for x\"]}";
    assert_eq!(said(no), "503 {\"status\":\"unavailable\",\"reasons\":[\"waiting for x\"]}");
}

#[test]
fn what_is_no_answer_is_a_no() {
    assert_eq!(said(""), "the agent's answer is not HTTP");
    assert_eq!(said("SSH-2.0-x\r\n\r\n"), "the agent's answer is not HTTP");
    assert_eq!(said("HTTP/1.1 200 OK\r\n"), "the agent's answer is not HTTP");
}

#[test]
fn no_agent_is_a_no_that_names_the_socket() {
    let run_dir = tempfile::tempdir().unwrap();
    let no = ask(run_dir.path(), Question::Live).unwrap_err().to_string();
    assert!(no.contains("admin.sock") && no.contains("No such file"), "{no}");
}

#[test]
fn a_silent_agent_is_a_no_after_a_second() {
    let run_dir = agent(None);
    let begun = std::time::Instant::now();
    assert!(matches!(ask(run_dir.path(), Question::Live), Err(Failure::NoAnswer(NoAnswer::Timeout(_)))));
    assert!(begun.elapsed() < TIMEOUT * 2);
}
