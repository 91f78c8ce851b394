//! `setup`: makes a machine ready. It says what it will do before it does it; when nothing is missing it does nothing.
//!
//! What is missing is found by looking for the thing itself (a program, a Python module), not for a package: a machine
//! that has it from elsewhere is ready too. Only installing knows Debian's packages.

mod packages;
mod programs;

use std::{path::Path, process::Command};

use anyhow::Result;
use clap::Args;

use crate::{
    ebpf::{Failure, Part, Toolchain},
    kit::{self, Kit},
    process,
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// If the programs' compiler is missing, ask rustup for its nightly's rust-src before Debian's packages.
    #[arg(long)]
    rustup: bool,
    /// Only what the build needs, not what the tests need besides.
    #[arg(long)]
    build: bool,
}

/// One thing to install.
struct Step {
    /// A sentence: what will be done, and what for.
    what: String,
    run: Box<dyn FnOnce() -> Result<()>>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.rustup && lacks(Part::Compiler) {
        println!("Asking rustup for the component rust-src of its nightly (up to 60 s).");
        let mut rustup = Command::new("timeout");
        rustup.args(["60", "rustup", "component", "add", "rust-src", "--toolchain", "nightly"]);
        if let Err(error) = process::run(&mut rustup) {
            println!("rustup has not brought it ({error}): Debian's packages will do.");
        }
    }
    carry_out(plan(!options.build)?)
}

/// Installs what is missing for the build and the tests, if anything is.
pub(crate) fn ensure() -> Result<()> {
    carry_out(plan(true)?)
}

/// Installs packages of Debian's that one command needs and no other.
pub(crate) fn packages(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    packages::installable(missing)?;
    let what = format!("install Debian's packages {}", missing.join(" "));
    process::timed(&what, || packages::install(missing)).0
}

/// The same for the packages of these programs, as far as the programs are missing.
pub(crate) fn require(programs: &[(&str, &'static str)]) -> Result<()> {
    let missing = programs.iter().filter(|(program, _)| process::find(program).is_none());
    packages(&missing.map(|(_, package)| *package).collect::<Vec<&str>>())
}

fn carry_out(steps: Vec<Step>) -> Result<()> {
    if steps.is_empty() {
        println!("setup: nothing to do");
        return Ok(());
    }
    println!("setup: this machine lacks what is needed here. To do:");
    for (number, step) in (1..).zip(&steps) {
        println!("  {number}. {}", step.what);
    }
    println!();
    for step in steps {
        process::timed(&step.what, step.run).0?;
    }
    // What was installed must also be found: a package may have changed its contents.
    Toolchain::find().map(drop).map_err(|failure| anyhow::anyhow!("after setup: {failure}"))
}

fn plan(tests: bool) -> Result<Vec<Step>> {
    let mut steps = Vec::new();

    let mut packages = packages::missing(tests);
    if lacks(Part::Compiler) {
        packages.extend(["rustc-web", "rust-web-src", "rust-web-clippy", "llvm-22-dev"]);
    }
    if lacks(Part::Linker) || lacks(Part::Strip) {
        packages.push("llvm-22-dev");
    }
    // rustup's nightlies bring clippy as their users like; Debian's compiler comes without.
    if Toolchain::find()
        .is_ok_and(|found| found.bin() == Path::new("/usr/bin") && !found.bin().join("clippy-driver").is_file())
    {
        packages.push("rust-web-clippy");
    }
    packages.sort_unstable();
    packages.dedup();
    if !packages.is_empty() {
        packages::installable(&packages)?;
        steps.push(Step {
            what: format!("install Debian's packages {}", packages.join(" ")),
            run: Box::new(move || packages::install(&packages)),
        });
    }

    if lacks(Part::Linker) {
        steps.push(Step { what: programs::linker_sentence(), run: Box::new(programs::install_linker) });
    }

    for kit in Kit::all()?.into_iter().filter(|_| tests) {
        if !kit.complete() {
            kit::requirements_met()?;
            steps.push(Step {
                what: format!("install {} in {}", kit.contents(), kit.directory().display()),
                run: Box::new(move || kit.install()),
            });
        }
    }
    Ok(steps)
}

/// Whether the programs' toolchain lacks a part. Looked up anew each time: an installed linker changes which compiler
/// fits.
fn lacks(part: Part) -> bool {
    matches!(Toolchain::find(), Err(Failure::Missing(parts)) if parts.contains(&part))
}
