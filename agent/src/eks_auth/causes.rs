//! What may be logged about an error of somebody else.
use std::{error::Error, fmt::Write as _};

use crate::refusal::Shown;

/// Keys have 40 characters, session tokens hundreds; names and paths are seldom as long without another character.
const SECRET_LENGTH: usize = 40;

/// An error with its causes, fit for the log.
///
/// The SDK's errors name addresses and conditions, but some quote what they could not read, and services say what they
/// like: so whatever looks like a token or a key is blanked, and the text is cut.
pub(super) fn of(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    fit(&text)
}

/// Text of a service, fit for the log.
pub(super) fn fit(text: &str) -> String {
    let mut fit = String::with_capacity(text.len());
    let is_key_character = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    for word in text.split_inclusive(|c: char| !is_key_character(c)) {
        let run = word.trim_end_matches(|c: char| !is_key_character(c));
        // A JWT is Shown's to find: its parts are split here.
        if looks_like_a_key(run) {
            fit.push_str("[secret]");
            fit.extend(word.chars().skip(run.len()));
        } else {
            fit.push_str(word);
        }
    }
    Shown::new(&fit).as_str().to_owned()
}

/// Base64 of random bytes has all three kinds of characters; paths and most names have not.
fn looks_like_a_key(run: &str) -> bool {
    let has = |kind: fn(&u8) -> bool| run.bytes().any(|byte| kind(&byte));
    run.len() >= SECRET_LENGTH && has(u8::is_ascii_digit) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_tokens_are_blanked_and_names_stay() {
        let key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        let session = "IQoJb3JpZ2luX2VjEJr//////////wEaCXVzLWVhc3QtMSJHMEUCIQDb0k=";
        let text = format!("bad key '{key}', session {session}; token eyJhbGciOiJSUzI1NiJ9.eyJhIjoxfQ.c2ln was no use");
        assert_eq!(fit(&text), "bad key '[secret]', session [secret]; token [token] was no use");
        let denied = "User: arn:aws:sts::123456789012:assumed-role/eksctl-production-nodegroup-role-1X2Y3Z4W5V6U/i-0 \
                      is not authorized to perform: eks-auth:AssumeRoleForPodIdentity";
        assert_eq!(fit(denied), denied);
        assert_eq!(
            fit("/var/lib/kubelet/pods/somewhere/below/it/there"),
            "/var/lib/kubelet/pods/somewhere/below/it/there"
        );
    }
}
