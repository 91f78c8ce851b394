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
