//! The audit in a file, written by a thread that can do nothing else: a slow disk delays nobody.
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use super::{Audit, Cursor};
use crate::confinement::{Confinement, ConfinementError, Role};

/// From one look at the ring to the next. With [`KEPT`](super::KEPT) events that is room for 20 000 a second, more than the
/// serving thread answers.
const PAUSE: Duration = Duration::from_millis(200);

/// The running thread.
#[derive(Debug)]
pub struct AuditFile {
    stop: mpsc::Sender<()>,
    thread: thread::JoinHandle<Option<()>>,
}

/// There is no file to write to.
#[derive(Debug, thiserror::Error)]
pub enum NoAuditFile {
    /// It cannot be opened.
    #[error("--audit-log {}: {error}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// Its thread.
    #[error(transparent)]
    Thread(#[from] ConfinementError),
}

impl AuditFile {
    /// Appends to the file from now on. When it would be longer than `max_bytes` it is renamed to `PATH.1`, in the place of
    /// the one before.
    pub fn start(
        audit: Arc<Audit>,
        path: PathBuf,
        max_bytes: u64,
        confinement: Confinement,
    ) -> Result<Self, NoAuditFile> {
        let log = Log::open(path, max_bytes)?;
        let (stop, stopped) = mpsc::channel();
        let thread = confinement.spawn(Role::Audit, move || follow(&audit, log, &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Writes what is left.
    pub fn finish(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that writes the audit had panicked");
        }
    }
}

fn follow(audit: &Audit, mut log: Log, stopped: &mpsc::Receiver<()>) {
    let mut cursor = Cursor::default();
    let mut failing = false;
    loop {
        let last = !matches!(stopped.recv_timeout(PAUSE), Err(mpsc::RecvTimeoutError::Timeout));
        match log.append_all(audit, &mut cursor) {
            Ok(()) => failing = false,
            // Said once; what cannot be written is lost, as the log says with the next line that can.
            Err(error) if !failing => {
                failing = true;
                tracing::error!(path = %log.path.display(), %error, "the audit cannot be written");
            }
            Err(_) => {}
        }
        if last {
            return;
        }
    }
}

/// The file.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
    max_bytes: u64,
}

impl Log {
    fn open(path: PathBuf, max_bytes: u64) -> Result<Self, NoAuditFile> {
        match open(&path).and_then(|file| Ok((file.metadata()?.len(), file))) {
            Ok((bytes, file)) => Ok(Self { path, file, bytes, max_bytes }),
            Err(error) => Err(NoAuditFile::Open { path, error }),
        }
    }

    fn append_all(&mut self, audit: &Audit, cursor: &mut Cursor) -> io::Result<()> {
        loop {
            let batch = audit.read(*cursor);
            *cursor = batch.cursor;
            self.append(batch.text()?.as_bytes())?;
            if !batch.more {
                return Ok(());
            }
        }
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let length = text.len() as u64;
        if self.bytes > 0 && self.bytes + length > self.max_bytes {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            fs::rename(&self.path, old)?;
            self.file = open(&self.path)?;
            self.bytes = 0;
        }
        self.file.write_all(text)?;
        self.bytes += length;
        Ok(())
    }
}

/// For its owner alone, and never another file that a link in its place names.
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    File::options().append(true).create(true).mode(0o600).custom_flags(flags).open(path)
}
