//! The programs of the SDK tier that are no Rust: where `cargo xtask setup` has put them.
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::process::run;

/// Says where they are; `cargo xtask test` and `cargo xtask demo` set it.
const VARIABLE: &str = "POD_IDENTITY_CLIENTS";

/// For `cargo xtask clients-dir`, which may have to be built.
const ASKS: Duration = Duration::from_mins(2);

/// The clients' directory.
#[derive(Clone, Debug)]
pub struct Clients(PathBuf);

impl Clients {
    /// Finds them, or fails with the sentence that says how to get them.
    pub fn find() -> Result<Self> {
        let directory = match env::var_os(VARIABLE) {
            Some(directory) => directory.into(),
            None => xtask_says()?,
        };
        let clients = Self(directory);
        for needed in [clients.python_program("python3"), clients.python_program("aws"), clients.0.join("node_modules")]
        {
            ensure!(needed.exists(), "{} is not there: run `cargo xtask setup` first", needed.display());
        }
        Ok(clients)
    }

    /// A program of the virtual environment: `python3`, `aws`, `moto_server`, `ministack`.
    #[must_use]
    pub fn python_program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// The directory of those programs.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.0.join("venv/bin")
    }

    /// What `node_modules` lies in.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// A script of `tests/clients`.
    #[must_use]
    pub fn script(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
    }
}

/// A test that was started by `cargo test` itself has not been told.
fn xtask_says() -> Result<PathBuf> {
    static ANSWER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    ANSWER.get_or_init(|| ask_xtask().map_err(|error| error.to_string())).clone().map_err(anyhow::Error::msg)
}

fn ask_xtask() -> Result<PathBuf> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["run", "--quiet", "--package", "xtask", "--", "clients-dir"]);
    let output = run(&mut cargo, ASKS).context("cannot ask xtask where the clients are")?;
    ensure!(
        output.status.success(),
        "the clients of the SDK tier are not known: run `cargo xtask setup` first ({})",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?.trim().into())
}
