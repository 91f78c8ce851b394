//! What a command shows on a terminal.
use std::{
    fs::File,
    io::Read as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use nix::pty::{Winsize, openpty};

/// Columns of the terminal.
pub(crate) const WIDTH: u16 = 190;

/// Runs a command on a terminal without colours, and returns what it shows.
pub(crate) fn shown(command: &mut Command) -> Result<String> {
    let size = Winsize { ws_row: 50, ws_col: WIDTH, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(Some(&size), None).context("no terminal")?;
    command.env("TERM", "xterm").env("NO_COLOR", "1");
    command.stdin(Stdio::null()).stdout(terminal.slave.try_clone()?).stderr(terminal.slave);
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    // This end of the terminal would keep it open.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut text = Vec::new();
    let mut screen = File::from(terminal.master);
    let mut some = [0; 4096];
    // When the last process has closed the other end, reading is an error (EIO).
    while let Ok(count @ 1..) = screen.read(&mut some) {
        text.extend(some.iter().take(count));
    }
    child.wait()?;
    Ok(String::from_utf8(text)?.replace("\r\n", "\n"))
}
