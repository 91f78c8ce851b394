//! Token volumes in the mount table: each is a tmpfs of its own, which the kubelet mounts before it writes the token.
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _, Seek as _},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    str,
};

use tokio::io::{Interest, unix::AsyncFd};

use super::VOLUME;
use crate::{pod_uid::PodUid, sys};

#[cfg(test)]
mod tests;

/// The mount table of this process's mount namespace.
#[derive(Debug)]
pub(super) struct Mounts {
    table: AsyncFd<File>,
    /// The kubelet's directory of pods, as the table calls it.
    pods: Vec<u8>,
    /// The volumes that were there at the last look.
    volumes: Volumes,
}

/// Token volumes that are mounted, and the id of each mount. A volume that is unmounted and mounted again between two
/// looks has another id, unless the kernel has given it the same again; then its watch was dropped, and that tells.
type Volumes = HashMap<PodUid, u64>;

/// What has changed between two looks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Volumes that were mounted, or mounted anew.
    pub(super) appeared: Vec<PodUid>,
    /// Volumes that are mounted no more.
    pub(super) vanished: Vec<PodUid>,
}

impl Mounts {
    /// Opens the table. `pods` must not have links in it. Runs in a tokio runtime.
    pub(super) fn open(pods: &Path) -> io::Result<Self> {
        // Changes since the open are announced, so a first look that comes later misses none.
        let table = sys::exceptional(File::open("/proc/self/mountinfo")?)?;
        let pods = pods.as_os_str().as_bytes().to_vec();
        Ok(Self { table, pods, volumes: Volumes::new() })
    }

    /// Waits until something was mounted or unmounted since the last time.
    ///
    /// The kernel announces it as an exceptional condition of the open table (`POLLPRI`, `mounts_poll` in fs/namespace);
    /// the table is always readable. What is announced is forgotten here, before the table is read: a change during
    /// the read is announced again.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        self.table.ready_mut(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }

    /// Reads the table and says what has changed since it was read last.
    ///
    /// The kernel hands the table out in parts, and mounts may come and go in between. It does not lose its place when
    /// they do, so a line can be missing or stale only for a mount that changed meanwhile, and that is announced.
    pub(super) fn compare(&mut self) -> io::Result<Difference> {
        let now = token_volumes(&self.read()?, &self.pods).collect();
        let before = std::mem::replace(&mut self.volumes, now);
        Ok(difference(&before, &self.volumes))
    }

    /// All that it says. Not kept for the next time: beside many pods it is half a megabyte.
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let table = self.table.get_mut();
        table.rewind()?;
        table.read_to_end(&mut text)?;
        Ok(text)
    }
}

fn difference(before: &Volumes, now: &Volumes) -> Difference {
    Difference {
        appeared: now.iter().filter(|(uid, id)| before.get(uid) != Some(id)).map(|(uid, _)| *uid).collect(),
        vanished: before.keys().filter(|uid| !now.contains_key(uid)).copied().collect(),
    }
}

/// Reads the token volumes of pods of the kubelet whose pods lie in `pods`, and their mount ids, out of a mount table
/// (the format of proc(5), `/proc/<pid>/mountinfo`). Of several mounts on one place the last is on top.
///
/// A pod can have a kubelet of its own (kind) whose directory lies in one of the pod's volumes: those are not pods of
/// this node, and the place of the UID in the path tells.
fn token_volumes(table: &[u8], pods: &[u8]) -> impl Iterator<Item = (PodUid, u64)> {
    table.split(|byte| *byte == b'\n').filter_map(move |line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = fields.next()?;
        let mount_point = fields.nth(3)?;
        // What is escaped is never a character of this ending: only the few that have it need be decoded.
        let uid = unescaped(mount_point.strip_suffix(VOLUME.as_bytes())?);
        let uid = uid.strip_prefix(pods)?.strip_prefix(b"/")?.strip_suffix(b"/")?;
        Some((str::from_utf8(uid).ok()?.parse().ok()?, str::from_utf8(id).ok()?.parse().ok()?))
    })
}

/// Undoes the kernel's writing of space, tab, newline and backslash as a backslash and three octal digits. What does
/// not read as such stays as it is.
fn unescaped(mut text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    while let Some((&first, rest)) = text.split_first() {
        let escape = if first == b'\\' { rest.split_first_chunk::<3>() } else { None };
        let decoded = escape.and_then(|(digits, after)| Some((octal(*digits)?, after)));
        let (byte, after) = decoded.unwrap_or((first, rest));
        plain.push(byte);
        text = after;
    }
    plain
}

fn octal(digits: [u8; 3]) -> Option<u8> {
    let value = digits.iter().try_fold(0_u32, |value, digit| Some(value * 8 + char::from(*digit).to_digit(8)?))?;
    value.try_into().ok()
}
