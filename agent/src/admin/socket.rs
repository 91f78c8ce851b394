//! The admin socket's file, which two agents may want at once.
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tokio::net::{UnixListener, UnixSocket, UnixStream};

use super::{SOCKET_NAME, socket_path};

/// Connections that wait for an accept.
const BACKLOG: u32 = 16;

/// The agent's socket in the run directory, for its owner alone (mode 0600).
///
/// During an upgrade the next agent takes the name over while this one still serves; this one then keeps the connections
/// it has. When it is dropped, the file goes too, unless it is another agent's by then.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file. The inode cannot be given to another file while the listener holds it.
    file: (u64, u64),
    run_dir: File,
}

/// The admin socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the admin socket {}: {cause} (is --run-dir a directory that the agent may write to?)", path.display())]
pub struct NoAdminSocket {
    path: PathBuf,
    cause: io::Error,
}

impl AdminSocket {
    /// Listens in `run_dir`, which is made (mode 0700) where it is missing. Whatever has the socket's name, a dead
    /// agent's file or a live agent's, is replaced in one step: at no moment does a probe find nothing.
    ///
    /// Needs a tokio runtime with I/O.
    pub fn bind(run_dir: &Path) -> Result<Self, NoAdminSocket> {
        let path = socket_path(run_dir);
        Self::bind_at(run_dir, &path).map_err(|cause| NoAdminSocket { path, cause })
    }

    fn bind_at(run_dir: &Path, path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(run_dir)?;
        let directory = File::open(run_dir)?;
        let locked = Locked::new(&directory)?;
        // The name is the process's own: two agents in two pid namespaces may share it, hence under the lock.
        let temporary = run_dir.join(format!(".{SOCKET_NAME}.{}", std::process::id()));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixSocket::new_stream()?;
        socket.bind(&temporary)?;
        // Before it listens, so that nobody can have connected with looser permissions.
        fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
        let listener = socket.listen(BACKLOG)?;
        let metadata = fs::symlink_metadata(&temporary)?;
        fs::rename(&temporary, path)?;
        drop(locked);
        Ok(Self { listener, path: path.to_owned(), file: (metadata.dev(), metadata.ino()), run_dir: directory })
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    fn remove(&self) -> io::Result<()> {
        // Between looking and removing nobody may take the name over, or their socket would be removed.
        let _locked = Locked::new(&self.run_dir)?;
        let metadata = fs::symlink_metadata(&self.path)?;
        if (metadata.dev(), metadata.ino()) == self.file { fs::remove_file(&self.path) } else { Ok(()) }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::debug!(path = %self.path.display(), %error, "the admin socket's file was not removed");
        }
    }
}

/// The run directory's lock, held for a few system calls at a time.
struct Locked<'a>(&'a File);

impl<'a> Locked<'a> {
    fn new(directory: &'a File) -> io::Result<Self> {
        flock(directory, FlockOperation::LockExclusive)?;
        Ok(Self(directory))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // It cannot fail on a descriptor that is locked; closing it would unlock too.
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}
