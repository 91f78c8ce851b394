//! Text from outside, made fit to be shown in answers and logs.
use std::fmt;

/// Characters kept of a text from outside.
const LIMIT: usize = 255;

/// Text that somebody else wrote (a caller's `Host`, EKS Auth's message), made fit to be shown: at most 255 characters,
/// control characters replaced, and whatever looks like a JWT blanked, because whoever quotes a request may quote the
/// token in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown(Box<str>);

impl Shown {
    /// Cleans `text`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        // Blanked before the cut, so that a cut never leaves the beginning of a token behind.
        let mut cleaned = String::new();
        for word in text.split_inclusive(|c: char| !is_token_character(c)) {
            // All JWTs start so: it is `{"` in base64url, the opening of their header.
            match word.find("eyJ") {
                Some(at) => {
                    cleaned.push_str(word.get(..at).unwrap_or_default());
                    cleaned.push_str("[token]");
                    cleaned.extend(word.chars().next_back().filter(|&last| !is_token_character(last)));
                }
                None => cleaned.push_str(word),
            }
        }
        Self(cleaned.chars().take(LIMIT).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
    }

    /// The cleaned text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_token_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_token_is_blanked_and_the_rest_stays() {
        let shown = Shown::new("the token \"eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ4In0.c2ln-_\" is no good (key x.eyJh)");
        assert_eq!(shown.as_str(), "the token \"[token]\" is no good (key x.[token])");
    }

    #[test]
    fn a_long_text_is_cut_without_leaving_a_piece_of_a_token() {
        let shown = Shown::new(&format!("{}eyJhbGciOiJSUzI1NiJ9", "é ".repeat(125)));
        assert_eq!(shown.as_str().chars().count(), 255);
        assert!(shown.as_str().ends_with("[toke"), "{shown}");
    }

    #[test]
    fn control_characters_cannot_forge_log_lines() {
        assert_eq!(Shown::new("a\r\nb\x1b[31m").as_str(), "a\u{fffd}\u{fffd}b\u{fffd}[31m");
    }
}
