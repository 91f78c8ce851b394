//! The SDK tier's clients: where they are, whether they are complete, how they get there.
//!
//! They live in the user's cache, not below `target/`: `cargo clean` keeps them, and another clone finds them. The
//! directory's name holds a hash of the lists they are made from, so a changed list makes another directory.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{process, workspace};

/// Tells the SDK tier and the demo where their clients are.
pub(crate) const VARIABLE: &str = "POD_IDENTITY_CLIENTS";

/// Written last: a directory without it is an interrupted installation.
const COMPLETE: &str = "complete";
const LISTS: [&str; 3] = ["requirements.txt", "package.json", "package-lock.json"];
/// What the AWS SDK for JavaScript asks for.
const NODE_MAJOR: u32 = 20;
/// What the Python packages of the list ask for.
const PYTHON: &str = "(3, 11)";

/// The directory of the clients: `venv/bin/{python3,aws,moto_server,ministack}` and `node_modules/`.
pub(crate) struct Clients {
    directory: PathBuf,
}

pub(crate) fn print_directory() -> Result<()> {
    let clients = Clients::locate()?;
    ensure!(clients.complete(), "the clients are not installed: run `cargo xtask setup` once");
    println!("{}", clients.directory.display());
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

impl Clients {
    pub(crate) fn locate() -> Result<Self> {
        let lists = workspace::root().join("tests/clients");
        let mut hash = Fnv::new();
        for list in LISTS {
            let path = lists.join(list);
            hash.add(&fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
        Ok(Self { directory: cache()?.join("pod-identity-agent").join(format!("clients-{:016x}", hash.0)) })
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
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        // Two clones may come here at once. The lock ends with the file, at the end of this function.
        let lock = fs::File::create(directory.with_extension("lock")).context("create the lock of the clients")?;
        lock.lock().context("lock the clients")?;
        if self.complete() {
            return Ok(());
        }
        fs::remove_dir_all(directory).with_context(|| format!("remove {}", directory.display()))?;
        fs::create_dir(directory).with_context(|| format!("create {}", directory.display()))?;

        self.install_python()?;
        self.install_javascript()?;
        fs::write(directory.join(COMPLETE), "").context("mark the clients as complete")
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
                .arg(workspace::root().join("tests/clients/requirements.txt")),
        )
    }

    fn install_javascript(&self) -> Result<()> {
        for list in ["package.json", "package-lock.json"] {
            let from = workspace::root().join("tests/clients").join(list);
            fs::copy(&from, self.directory.join(list)).with_context(|| format!("copy {}", from.display()))?;
        }
        process::run(
            Command::new("npm")
                .current_dir(&self.directory)
                // No script of a package is run.
                .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]),
        )
    }

    fn python(&self) -> PathBuf {
        self.directory.join("venv/bin/python3")
    }
}

/// The user's cache directory, as the XDG base directory specification has it.
pub(crate) fn cache() -> Result<PathBuf> {
    let given = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    given.or_else(|| Some(env::home_dir()?.join(".cache"))).context("neither XDG_CACHE_HOME nor HOME is set")
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
