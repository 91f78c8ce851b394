//! Debian's packages, unpacked but not installed: sources, libraries, programs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::process;

/// apt with lists of its own, sources among them, from where this machine gets its packages.
pub(super) struct Apt {
    directory: PathBuf,
}

impl Apt {
    pub(super) fn new(work: &Path) -> Result<Self> {
        let directory = work.join("apt");
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let targets = ["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"];
        let filters = ["Created-By: Packages", "Origin: Debian"];
        let known = process::output("apt-get", &[&targets[..], &filters].concat()).unwrap_or_default();
        let lines: String =
            known.lines().flat_map(|line| [format!("deb {line}\n"), format!("deb-src {line}\n")]).collect();
        ensure!(!lines.is_empty(), "Kubernetes is built from Debian's packages, and this machine's apt knows none");
        fs::write(directory.join("sources.list"), lines)?;
        let apt = Self { directory };
        process::run(apt.command().arg("update"))?;
        Ok(apt)
    }

    /// The tree of a source package, patched, in which `part` must be.
    pub(super) fn source(&self, package: &str, part: &str) -> Result<PathBuf> {
        process::run(self.command().args(["source", "--download-only", package]))?;
        let mut description = None;
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            description = description.or_else(|| (path.extension()? == "dsc").then_some(path));
        }
        let description = description.with_context(|| format!("apt-get has downloaded no source of {package}"))?;
        let tree = self.directory.join(package);
        // apt has checked it against the signed list.
        let mut unpack = Command::new("dpkg-source");
        unpack.current_dir(&self.directory).args(["--no-check", "--extract"]).arg(description).arg(&tree);
        process::run(&mut unpack)?;
        ensure!(tree.join(part).exists(), "Debian's source of {package} has no {part} here: Debian 12 is needed");
        Ok(tree)
    }

    /// A package's files.
    pub(super) fn unpack(&self, package: &str) -> Result<PathBuf> {
        process::run(self.command().args(["download", package]))?;
        let archive = fs::read_dir(&self.directory)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{package}_")))
            })
            .with_context(|| format!("apt-get has not downloaded {package}"))?;
        let unpacked = self.directory.join(format!("{package}.files"));
        process::run(Command::new("dpkg").arg("--extract").arg(archive).arg(&unpacked))?;
        Ok(unpacked)
    }

    fn command(&self) -> Command {
        let mut apt = Command::new("apt-get");
        // As root, apt would fetch as a user of its own, who may not write here.
        apt.current_dir(&self.directory).args([
            "-qq",
            "-o",
            "APT::Sandbox::User=root",
            "-o",
            "Dir::Etc::SourceParts=/dev/null",
        ]);
        for (setting, place) in
            [("Dir::Etc::SourceList", "sources.list"), ("Dir::State::Lists", "lists"), ("Dir::Cache", "cache")]
        {
            apt.arg("-o").arg(format!("{setting}={}", self.directory.join(place).display()));
        }
        apt
    }
}

/// Puts the sources of another version in the place of a vendored library's.
pub(super) fn replace(vendored: &Path, by: &Path) -> Result<()> {
    let is_source = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        (name.ends_with(".go") || name.ends_with(".s")) && !name.ends_with("_test.go")
    };
    let sources = |directory: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
        Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_source).collect())
    };
    sources(vendored)?.iter().try_for_each(fs::remove_file)?;
    for source in sources(by)? {
        fs::copy(&source, vendored.join(source.file_name().unwrap_or_default()))?;
    }
    Ok(())
}
