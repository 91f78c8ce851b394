//! What is in the image, and the one archive that holds it.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tar::{Builder, EntryType, Header};

/// Where programs of most distributions look for certificates.
pub(super) const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Where the program is.
pub(super) const PROGRAM: &str = "/pod-identity-agent";
/// The home of the image's user, where a shared credentials file is looked for.
pub(super) const HOME: &str = "/root";

/// Files and directories of the image, parents first.
pub(super) struct Tree(Vec<Entry>);

struct Entry {
    /// Relative to the root.
    path: &'static str,
    mode: u32,
    content: Content,
}

enum Content {
    Directory,
    Bytes(Vec<u8>),
    File(PathBuf),
}

impl Tree {
    pub(super) fn new(program: &Path, ca_bundle: &[u8]) -> Self {
        let directory = |path, mode| Entry { path, mode, content: Content::Directory };
        Self(vec![
            directory("etc", 0o755),
            directory("etc/ssl", 0o755),
            directory("etc/ssl/certs", 0o755),
            Entry { path: relative(CA_BUNDLE), mode: 0o644, content: Content::Bytes(ca_bundle.to_vec()) },
            Entry { path: relative(PROGRAM), mode: 0o755, content: Content::File(program.to_owned()) },
            directory(relative(HOME), 0o700),
            directory("run", 0o755),
        ])
    }

    /// Writes them as an archive: ordered, owned by root, of no time.
    pub(super) fn archive<W: Write>(&self, to: W) -> Result<W> {
        let mut archive = Builder::new(to);
        for entry in &self.0 {
            let mut header = Header::new_ustar();
            header.set_mode(entry.mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            match entry.read()? {
                None => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_size(0);
                    archive.append_data(&mut header, format!("{}/", entry.path), std::io::empty())?;
                }
                Some(bytes) => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_size(bytes.len() as u64);
                    archive.append_data(&mut header, entry.path, bytes.as_slice())?;
                }
            }
        }
        archive.into_inner().context("write the layer")
    }

    /// Writes them as files below `root`, for a container build to copy.
    pub(super) fn unpack(&self, root: &Path) -> Result<()> {
        fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
        for entry in &self.0 {
            let path = root.join(entry.path);
            let written = match entry.read()? {
                None => fs::create_dir(&path),
                Some(bytes) => fs::write(&path, bytes),
            };
            written
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode)))
                .with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

impl Entry {
    /// `None` for a directory.
    fn read(&self) -> Result<Option<Vec<u8>>> {
        match &self.content {
            Content::Directory => Ok(None),
            Content::Bytes(bytes) => Ok(Some(bytes.clone())),
            Content::File(path) => fs::read(path).map(Some).with_context(|| format!("read {}", path.display())),
        }
    }
}

fn relative(path: &'static str) -> &'static str {
    path.trim_start_matches('/')
}
