//! Where clients in several processes wait for each other, so that they begin at the same moment and not when the
//! machine got round to starting them.
use std::{
    io,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{process::eventually, token::random_hex};

/// For hundreds of processes to start on a small machine that does other things.
const GATHER: Duration = Duration::from_mins(2);

/// The line. Clients that stand at it when it is dropped begin too.
#[derive(Debug)]
pub struct StartingLine {
    listener: UnixListener,
    path: PathBuf,
}

impl StartingLine {
    /// Draws one in a node's directory.
    pub fn draw(dir: &Path) -> Result<Self> {
        let path = dir.join(format!("line-{}.sock", random_hex(3)));
        let listener = UnixListener::bind(&path).context("cannot bind a starting line")?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path })
    }

    /// The socket that clients connect to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until so many clients have come, then lets them all go.
    pub fn release(self, count: usize) -> Result<()> {
        let mut waiting: Vec<UnixStream> = Vec::with_capacity(count);
        eventually(&format!("{count} clients at the starting line"), GATHER, || {
            loop {
                match self.listener.accept() {
                    Ok((client, _)) => waiting.push(client),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok((waiting.len() >= count).then_some(()));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        })
    }
}
