//! Packages that tiers run besides the project's own programs, of Python and JavaScript: where they are, whether they are
//! complete, how they get there.
//!
//! Kits live in the user's cache, not below `target/`: `cargo clean` keeps them, and another clone finds them. The
//! directory's name holds a hash of the lists they are made from, so a changed list makes another directory.

mod deploy;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{cache, process, workspace};

/// Written last: a directory without it is an interrupted installation.
const COMPLETE: &str = "complete";
const LISTS: [&str; 3] = ["requirements.txt", "package.json", "package-lock.json"];
/// What the AWS SDK for JavaScript asks for.
const NODE_MAJOR: u32 = 20;
/// What the Python packages of the list ask for.
const PYTHON: &str = "(3, 11)";

/// Where a kit is made from, and for whom.
struct Recipe {
    name: &'static str,
    /// The directory of its lists.
    lists: &'static str,
    /// Tells the tests where it is.
    variable: &'static str,
    contents: &'static str,
    /// What is left to do when the packages are there.
    finish: fn(&Path) -> Result<()>,
}

/// `venv/bin/{python3,aws,moto_server,ministack}` and `node_modules/`.
const CLIENTS: Recipe = Recipe {
    name: "clients",
    lists: "tests/clients",
    variable: "POD_IDENTITY_CLIENTS",
    contents: "the SDK tier's clients (boto3, the AWS CLI, moto, ministack; the AWS SDK for JavaScript)",
    finish: |_| Ok(()),
};

/// `venv/bin/python3` and `bin/{helm,kubectl,promtool}`.
const DEPLOY: Recipe = Recipe {
    name: "deploy-tools",
    lists: "tests/deploy/tools",
    variable: "POD_IDENTITY_DEPLOY_TOOLS",
    contents: "the deploy tier's tools (helm, kubectl, promtool, the Kubernetes schemas)",
    finish: deploy::finish,
};

/// A kit on this machine, installed or not.
pub(crate) struct Kit {
    recipe: &'static Recipe,
    directory: PathBuf,
}

pub(crate) fn print_directory(kit: &Kit) -> Result<()> {
    ensure!(kit.complete(), "{} is not installed: run `cargo xtask setup` once", kit.recipe.name);
    println!("{}", kit.directory.display());
    Ok(())
}

/// Fails with a sentence when this machine cannot run the clients at all.
pub(crate) fn requirements_met() -> Result<()> {
    let version = process::output("node", &["--version"]);
    let major =
        version.as_deref().and_then(|version| version.trim().strip_prefix('v')?.split('.').next()?.parse().ok());
    match (major, process::find("npm")) {
        (Some(NODE_MAJOR..), Some(_)) => Ok(()),
        (Some(major), Some(_)) => bail!("Node.js {NODE_MAJOR} or later is needed for the AWS SDK, this is {major}"),
        _ => bail!("Node.js {NODE_MAJOR} or later and npm are needed for the AWS SDK and are not in PATH"),
    }
}

impl Kit {
    pub(crate) fn all() -> Result<[Self; 2]> {
        Ok([Self::clients()?, Self::deploy()?])
    }

    /// The SDK tier's and the demo's.
    pub(crate) fn clients() -> Result<Self> {
        Self::locate(&CLIENTS)
    }

    /// The deploy tier's.
    pub(crate) fn deploy() -> Result<Self> {
        Self::locate(&DEPLOY)
    }

    fn locate(recipe: &'static Recipe) -> Result<Self> {
        let lists = workspace::root().join(recipe.lists);
        let mut hash = Fnv::new();
        for list in LISTS {
            let path = lists.join(list);
            hash.add(&fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
        let directory = cache::directory(&format!("{}-{:016x}", recipe.name, hash.0))?;
        Ok(Self { recipe, directory })
    }

    /// The variable and value that tell tests where it is.
    pub(crate) fn variable(&self) -> (&'static str, &Path) {
        (self.recipe.variable, &self.directory)
    }

    pub(crate) fn contents(&self) -> &'static str {
        self.recipe.contents
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether they were installed to the end, and their Python still starts: an upgrade of the system's Python takes
    /// the interpreter of a virtual environment away.
    pub(crate) fn complete(&self) -> bool {
        self.directory.join(COMPLETE).is_file() && process::output(self.python(), &["-c", ""]).is_some()
    }

    /// Installs them, in place: a virtual environment cannot be moved.
    pub(crate) fn install(&self) -> Result<()> {
        let directory = &self.directory;
        let _lock = cache::lock(directory)?;
        if self.complete() {
            return Ok(());
        }
        fs::remove_dir_all(directory).with_context(|| format!("remove {}", directory.display()))?;
        fs::create_dir(directory).with_context(|| format!("create {}", directory.display()))?;

        self.install_python()?;
        self.install_javascript()?;
        (self.recipe.finish)(directory)?;
        fs::write(directory.join(COMPLETE), "").context("mark the kit as complete")
    }

    fn install_python(&self) -> Result<()> {
        let wanted = format!("import sys; sys.exit(sys.version_info < {PYTHON})");
        ensure!(process::output("python3", &["-c", &wanted]).is_some(), "Python {PYTHON} or later is needed");
        process::run(Command::new("python3").args(["-m", "venv"]).arg(self.directory.join("venv")))?;
        process::run(
            Command::new(self.python())
                // Wheels with known hashes only: no script of a package is run.
                .args(["-m", "pip", "install", "--quiet", "--require-hashes", "--only-binary=:all:"])
                .args(["--disable-pip-version-check", "--requirement"])
                .arg(self.list("requirements.txt")),
        )
    }

    fn install_javascript(&self) -> Result<()> {
        for list in ["package.json", "package-lock.json"] {
            let from = self.list(list);
            fs::copy(&from, self.directory.join(list)).with_context(|| format!("copy {}", from.display()))?;
        }
        process::run(
            Command::new("npm")
                .current_dir(&self.directory)
                // No script of a package is run, and nothing comes that the list does not name.
                .args(["ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund", "--loglevel=error"]),
        )
    }

    fn list(&self, name: &str) -> PathBuf {
        workspace::root().join(self.recipe.lists).join(name)
    }

    fn python(&self) -> PathBuf {
        self.directory.join("venv/bin/python3")
    }
}

/// FNV-1a, 64 bits: the same on every machine and release, which std's hasher does not promise.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
