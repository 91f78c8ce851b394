//! Images for the runtime, made here: a few files of this machine in a `docker save` archive.
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use ring::digest::{SHA256, digest};
use serde_json::json;
use tar::{Builder, EntryType, Header};

use crate::process::{QUICK, run};

/// An image: files, each at its place below the root.
#[derive(Debug, Default)]
pub(crate) struct Image(Vec<(String, PathBuf)>);

impl Image {
    /// With this file at this place (`bin/app`).
    pub(crate) fn file(mut self, place: &str, file: &Path) -> Self {
        self.0.push((place.trim_start_matches('/').to_owned(), file.to_owned()));
        self
    }

    /// With the libraries that a program of this machine needs, where it looks for them; none if it is static.
    pub(crate) fn libraries_of(mut self, program: &Path) -> Result<Self> {
        let output = run(Command::new("ldd").arg(program), QUICK)?;
        let text = String::from_utf8(output.stdout)?;
        let paths = text.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
        for path in paths {
            self = self.file(path, Path::new(path));
        }
        self.0.sort();
        self.0.dedup();
        Ok(self)
    }

    /// Writes the archive of an image with this name and command.
    pub(crate) fn save(&self, name: &str, command: &[&str], to: &Path) -> Result<()> {
        let layer = self.layer()?;
        let architecture = match std::env::consts::ARCH {
            "aarch64" => "arm64",
            _ => "amd64",
        };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": command},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(digest(&SHA256, &layer).as_ref()))]},
        });
        let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
        let mut archive = Builder::new(File::create(to)?);
        append(&mut archive, "layer.tar", 0o644, &layer)?;
        append(&mut archive, "config.json", 0o644, config.to_string().as_bytes())?;
        append(&mut archive, "manifest.json", 0o644, manifest.to_string().as_bytes())?;
        Ok(archive.finish()?)
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        // For a runtime to mount on, where the root cannot be written to.
        for directory in ["host/sys/fs/cgroup/", "run/pod-identity-agent/", "tmp/", "etc/", "var/"] {
            let mut header = header(0o755, 0);
            header.set_entry_type(EntryType::Directory);
            archive.append_data(&mut header, directory, std::io::empty())?;
        }
        for (place, file) in &self.0 {
            let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            // Python has modules that say nothing.
            ensure!(
                !content.is_empty() || file.extension().is_some_and(|extension| extension == "py"),
                "{} is empty",
                file.display()
            );
            append(&mut archive, place, 0o755, &content)?;
        }
        Ok(archive.into_inner()?)
    }
}

fn append(archive: &mut Builder<impl std::io::Write>, place: &str, mode: u32, content: &[u8]) -> Result<()> {
    Ok(archive.append_data(&mut header(mode, content.len() as u64), place, content)?)
}

fn header(mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
