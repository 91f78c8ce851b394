//! Where a command's answer goes: how wide that is, and whether it shows colours.
use std::{
    env,
    io::{self, IsTerminal as _},
};

/// A terminal, or a file or pipe, which has no width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Screen {
    pub(super) width: Option<usize>,
    pub(super) colours: bool,
}

/// What says how serious something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Green,
    Yellow,
    Red,
    Grey,
}

impl Screen {
    /// stdout. Colours only on a terminal, and not where `NO_COLOR` is set (to anything, <https://no-color.org>).
    #[must_use]
    pub(super) fn stdout() -> Self {
        if !io::stdout().is_terminal() {
            return Self::default();
        }
        let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
        let width = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
        Self { width, colours: !set("NO_COLOR") && !dumb }
    }

    /// Text that takes the place of what is shown, on a terminal: each line clears what was longer before, and the last
    /// one what was below. Without the flicker of clearing first.
    pub(super) fn again(self, text: String) -> String {
        if self.width.is_none() {
            return text;
        }
        format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
    }

    pub(super) fn paint(self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Green => 32,
            Colour::Yellow => 33,
            Colour::Red => 31,
            Colour::Grey => 90,
        };
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_movements_are_a_terminals_alone() {
        let (pipe, terminal) = (Screen::default(), Screen { width: Some(80), colours: true });
        assert_eq!((pipe.paint(Colour::Red, "x"), pipe.again("x\n".to_owned())), ("x".to_owned(), "x\n".to_owned()));
        assert_eq!(terminal.paint(Colour::Red, "x"), "\x1b[31mx\x1b[0m");
        assert_eq!(terminal.again("x\n".to_owned()), "\x1b[Hx\x1b[K\n\x1b[J");
        // NO_COLOR says nothing of movements.
        let plain = Screen { colours: false, ..terminal };
        assert_eq!(
            (plain.paint(Colour::Red, "x"), plain.again(String::new())),
            ("x".to_owned(), "\x1b[H\x1b[J".to_owned())
        );
    }
}
