//! Opens and reads token files, and cannot be made to open anything else.
use std::{
    fs,
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    str,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2},
    io::{Errno, retry_on_intr},
};
use zeroize::Zeroizing;

use super::{KubeletError, VOLUME};
use crate::{pod_uid::PodUid, token::MAX_TOKEN_BYTES};

#[cfg(test)]
mod tests;

/// The token's file in its volume: a link through `..data`, by which the kubelet replaces a volume's files at once.
pub(super) const TOKEN_FILE: &str = "eks-pod-identity-token";

/// Why a token file was not read. None of these carries what the file says.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// The kernel refused to open it.
    #[error("cannot open it: {0} (the agent needs CAP_DAC_READ_SEARCH for files that belong to the pod's user)")]
    Open(#[source] io::Error),
    /// A link on the way leads elsewhere.
    #[error("a link leads out of the pod's token volume: not followed")]
    Outside,
    /// A directory, a pipe, a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// Longer than any token.
    #[error("it is longer than {MAX_TOKEN_BYTES} bytes: not a service account token")]
    TooLarge,
    /// Not UTF-8.
    #[error("it is not text: not a service account token")]
    NotText,
    /// The kernel refused to read it.
    #[error("cannot read it: {0}")]
    Read(#[source] io::Error),
}

/// The kubelet's directory of pods, held open; gives out tokens by pod UID and nothing else.
#[derive(Debug)]
pub struct TokenFiles {
    pods: OwnedFd,
    /// What `pods` is called in the mount table: without links.
    path: PathBuf,
}

impl TokenFiles {
    /// Opens `<kubelet_root>/pods`, where `kubelet_root` is the kubelet's `--root-dir` as this process sees it.
    pub fn open(kubelet_root: &Path) -> Result<Self, KubeletError> {
        let path = kubelet_root.join("pods");
        let pods = openat2(CWD, &path, DIRECTORY, Mode::empty(), ResolveFlags::NO_MAGICLINKS).map_err(|errno| {
            match errno {
                // What kernels answer that lack the call, and seccomp profiles that forbid it. A directory that this
                // process may not search is EACCES.
                Errno::NOSYS | Errno::PERM => KubeletError::NoOpenat2(errno.into()),
                _ => KubeletError::Directory { path: path.clone(), error: errno.into() },
            }
        })?;
        let path = fs::read_link(own_link(&pods)).map_err(|error| KubeletError::Directory { path, error })?;
        Ok(Self { pods, path })
    }

    /// The token that the kubelet's file of this pod holds now, without the newline at its end.
    ///
    /// `None` when there is no such file: the pod has no EKS token volume, or the kubelet has not written it yet, or has
    /// removed it. The file lies in memory (tmpfs): reading does not wait for a disk. The caller must check that the
    /// token names `uid`: a pod's author can put anything into the pod's own volumes.
    pub fn read(&self, uid: PodUid) -> Result<Option<Zeroizing<String>>, TokenFileError> {
        match self.volume(uid)? {
            Some(volume) => volume.token(),
            None => Ok(None),
        }
    }

    /// Whether the directory of the pod's token volume is there, be it mounted or not.
    #[must_use]
    pub fn has_volume(&self, uid: PodUid) -> bool {
        self.volume(uid).is_ok_and(|volume| volume.is_some())
    }

    /// The pods that have a directory here: those that run, and for some time those that have ended.
    pub fn pods(&self) -> io::Result<Vec<PodUid>> {
        let names = fs::read_dir(own_link(&self.pods))?;
        Ok(names.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
    }

    /// Opens a pod's token volume. Keep it for a moment only: see [`TokenWatch`](super::TokenWatch).
    pub(super) fn volume(&self, uid: PodUid) -> Result<Option<Volume>, TokenFileError> {
        // No link at all up to here: the kubelet makes none, and one that stays below `pods` would still lead to
        // another pod's volume.
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.pods, format!("{uid}/{VOLUME}"), DIRECTORY, Mode::empty(), beneath) {
            Ok(directory) => Ok(Some(Volume(directory))),
            Err(errno) => refused(errno),
        }
    }

    /// The directory of pods, as the mount table calls it.
    pub(super) fn pods_directory(&self) -> &Path {
        &self.path
    }
}

/// More than any kubeconfig has.
const MAX_KUBECONFIG_BYTES: u64 = 64 * 1024;

/// What the kubelet calls the API server with, which tells the cluster's name. EKS nodes keep it in the kubelet's root.
pub fn kubeconfig(kubelet_root: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = fs::File::open(kubelet_root.join("kubeconfig"))?;
    io::Read::take(file, MAX_KUBECONFIG_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A pod's token volume, held open.
#[derive(Debug)]
pub(super) struct Volume(OwnedFd);

impl Volume {
    /// Reads the token. `None` as for [`TokenFiles::read`].
    pub(super) fn token(&self) -> Result<Option<Zeroizing<String>>, TokenFileError> {
        // Links may lead on within the volume and on its own mount. A pipe in the file's place does not block the open.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        match openat2(&self.0, TOKEN_FILE, flags, Mode::empty(), inside) {
            Ok(file) => read_token(&file),
            Err(errno) => refused(errno),
        }
    }

    /// A path that leads to this very directory, whatever happens to its name: for calls that take no descriptor.
    pub(super) fn path(&self) -> PathBuf {
        own_link(&self.0)
    }
}

fn own_link(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

fn refused<T>(errno: Errno) -> Result<Option<T>, TokenFileError> {
    match errno {
        Errno::NOENT => Ok(None),
        // EAGAIN: a `..` met a rename, and the kernel cannot tell where it leads. The kubelet's links have none.
        Errno::XDEV | Errno::LOOP | Errno::AGAIN => Err(TokenFileError::Outside),
        // A socket, or a device without a driver.
        Errno::NXIO => Err(TokenFileError::NotAFile),
        _ => Err(TokenFileError::Open(errno.into())),
    }
}

fn read_token(file: &OwnedFd) -> Result<Option<Zeroizing<String>>, TokenFileError> {
    let stat = fstat(file).map_err(|errno| TokenFileError::Read(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(TokenFileError::NotAFile);
    }
    // All the room there can be need of, at once: a buffer that grows leaves copies behind that nobody wipes. One byte
    // more than is allowed tells a file that is too long from one that just fits.
    let mut bytes = Zeroizing::new(vec![0_u8; MAX_TOKEN_BYTES + 1]);
    let mut filled = 0;
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        match retry_on_intr(|| rustix::io::read(file, &mut *room)) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(errno) => return Err(TokenFileError::Read(errno.into())),
        }
    }
    if filled > MAX_TOKEN_BYTES {
        return Err(TokenFileError::TooLarge);
    }
    let text = bytes.get(..filled).unwrap_or_default();
    let token = str::from_utf8(text).map_err(|_| TokenFileError::NotText)?.trim_end_matches(['\r', '\n']);
    // Made but not written: not by the kubelet, which writes a file before it links to it.
    Ok((!token.is_empty()).then(|| Zeroizing::new(token.to_owned())))
}
