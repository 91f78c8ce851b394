//! `fuzz`: hands made-up inputs to everything that reads what others wrote (`agent/fuzz`). What must hold for each input
//! is in `agent/src/fuzzing.rs` and the modules it names; inputs that once broke it are among the seeds.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::{process, tools, workspace};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this target of agent/fuzz.
    target: Option<String>,
    /// As CI does: all seeds and 5 s for each target, without a sanitizer.
    #[arg(long, conflicts_with = "seconds")]
    smoke: bool,
    /// Seconds for each target, with AddressSanitizer.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// How the targets are built, and for how long each runs.
#[derive(Clone, Copy)]
pub(crate) enum Size {
    /// Without optimization and sanitizer: most of a short run is its build.
    Smoke,
    /// Optimized, with AddressSanitizer.
    Long(Duration),
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let size = if options.smoke { Size::Smoke } else { Size::Long(Duration::from_secs(options.seconds)) };
    all(size, options.target.as_deref())
}

/// Fuzzes all targets, or one. Fails with the first that has found something, after all have run.
pub(crate) fn all(size: Size, only: Option<&str>) -> Result<()> {
    let mut targets = targets()?;
    if let Some(only) = only {
        targets.retain(|target| target == only);
        ensure!(!targets.is_empty(), "agent/fuzz/fuzz_targets has no {only}");
    }
    process::timed("build of the fuzz targets", || build(size, only)).0?;
    let mut found = Vec::new();
    println!("{:<12} {:>5} {:>11} {:>9} {:>7} {:>9}", "target", "seeds", "executions", "a second", "edges", "features");
    for target in &targets {
        let outcome = fuzz(target, size)?;
        println!("{target:<12} {outcome}");
        found.extend((!outcome.clean).then_some(target));
    }
    if let Some(target) = found.first() {
        let log = log(target);
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        bail!(
            "{target} found an input that breaks a property: {} and {}. When it is mended, keep the input as a seed in \
             agent/fuzz/seeds/{target}",
            findings(target).display(),
            log.display()
        );
    }
    Ok(())
}

fn targets() -> Result<Vec<String>> {
    let mut targets: Vec<String> = fs::read_dir(workspace::root().join("agent/fuzz/fuzz_targets"))?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    targets.sort();
    Ok(targets)
}

fn build(size: Size, only: Option<&str>) -> Result<()> {
    let mut fuzz = Command::new(tools::FUZZ.file()?);
    fuzz.current_dir(workspace::root()).args(["build", "--fuzz-dir", "agent/fuzz", "--target", TRIPLE]);
    fuzz.arg("--target-dir").arg(directory()).args(match size {
        Size::Smoke => &["--dev", "--sanitizer=none"][..],
        Size::Long(_) => &["--debug-assertions", "--sanitizer=address", "--codegen-units=16"],
    });
    // Sanitizers, and what libFuzzer follows branches by, are options of nightly compilers; the stable one has them too.
    fuzz.env("RUSTC_BOOTSTRAP", "1").env("CARGO_INCREMENTAL", "0");
    // What a release is made with takes long, and away the names that a finding's backtrace has.
    fuzz.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_STRIP", "none");
    fuzz.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1").env("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only");
    fuzz.env("CARGO_PROFILE_DEV_DEBUG", "0");
    // What cargo said to this command is not for the targets' dependencies.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            fuzz.env_remove(name);
        }
    }
    fuzz.args(only);
    process::run(&mut fuzz)
}

fn fuzz(target: &str, size: Size) -> Result<Outcome> {
    let (profile, time) = match size {
        Size::Smoke => ("debug", Duration::from_secs(5)),
        Size::Long(time) => ("release", time),
    };
    let (corpus, seeds) = (directory().join("corpus").join(target), fuzz_crate().join("seeds").join(target));
    for made in [&corpus, &findings(target), &directory().join("logs")] {
        fs::create_dir_all(made).with_context(|| format!("create {}", made.display()))?;
    }
    let output = fs::File::create(log(target)).context("create a log")?;
    let mut run = Command::new(directory().join(TRIPLE).join(profile).join(target));
    run.current_dir(workspace::root().join("agent")).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    run.arg(format!("-max_total_time={}", time.as_secs()))
        .arg(format!("-artifact_prefix={}/", findings(target).display()));
    // An input that takes seconds is a finding too.
    run.args(["-print_final_stats=1", "-timeout=5", "-rss_limit_mb=2048"]);
    if matches!(size, Size::Smoke) {
        // A commit is not to fail for what another run would not have found.
        run.arg("-seed=1");
    }
    let dictionary = fuzz_crate().join("dictionaries").join(target);
    if dictionary.is_file() {
        run.arg(format!("-dict={}", dictionary.display()));
    }
    // What is found goes to the first; the seeds stay as they are.
    let status = run.arg(corpus).arg(&seeds).status().with_context(|| format!("start {target}"))?;
    let text = fs::read_to_string(log(target)).context("read a log")?;
    let seeds = fs::read_dir(&seeds).with_context(|| format!("read {}", seeds.display()))?.count();
    let numbers = Numbers::read(&text);
    // A run that ended well without having looked at the seeds has shown nothing.
    ensure!(!status.success() || (seeds > 0 && numbers.executions >= seeds as u64), "{target} did not run: {text}");
    Ok(Outcome { clean: status.success(), seeds, seconds: time.as_secs(), numbers })
}

/// What came of a run.
struct Outcome {
    clean: bool,
    seeds: usize,
    seconds: u64,
    numbers: Numbers,
}

/// What libFuzzer says about a run.
#[derive(Default)]
struct Numbers {
    executions: u64,
    edges: u64,
    features: u64,
}

impl Numbers {
    fn read(log: &str) -> Self {
        let mut numbers = Self::default();
        for line in log.lines() {
            if let Some(executions) = line.strip_prefix("stat::number_of_executed_units:") {
                numbers.executions = executions.trim().parse().unwrap_or_default();
            }
            // #1234 NEW cov: 56 ft: 78 corp: …
            let mut words = line.split_whitespace();
            while let Some(word) = words.next() {
                match word {
                    "cov:" => numbers.edges = words.next().and_then(|n| n.parse().ok()).unwrap_or(numbers.edges),
                    "ft:" => numbers.features = words.next().and_then(|n| n.parse().ok()).unwrap_or(numbers.features),
                    _ => {}
                }
            }
        }
        numbers
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { clean, seeds, seconds, numbers: Numbers { executions, edges, features } } = self;
        let each_second = executions / (*seconds).max(1);
        write!(f, "{seeds:>5} {executions:>11} {each_second:>9} {edges:>7} {features:>9}")?;
        if *clean { Ok(()) } else { f.write_str("  FOUND SOMETHING") }
    }
}

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

fn fuzz_crate() -> PathBuf {
    workspace::root().join("agent/fuzz")
}

/// Apart from other builds: the compiler's options differ, so nothing could be shared.
fn directory() -> PathBuf {
    workspace::root().join("target/fuzz")
}

fn findings(target: &str) -> PathBuf {
    directory().join("findings").join(target)
}

fn log(target: &str) -> PathBuf {
    directory().join("logs").join(Path::new(target).with_extension("log"))
}
