//! An agent whose instructions are counted.
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use pod_identity_tests::{
    agent::{Agent, AgentSpec},
    process::must,
};

/// Functions of the C library that give out memory.
const ALLOCATORS: [&str; 6] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "memalign"];

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// In user space, of all threads.
    pub(crate) instructions: u64,
    /// Calls of what gives out memory.
    pub(crate) allocations: u64,
}

/// Counts an agent's instructions. It is not confined: valgrind needs more than its threads may do.
#[derive(Debug)]
pub(crate) struct Callgrind {
    out: PathBuf,
    pipes: String,
}

impl Callgrind {
    /// Writes what it counts below `dir`.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let dir = dir.join("callgrind");
        fs::create_dir(&dir)?;
        Ok(Self { out: dir.join("counts"), pipes: dir.join("pipe").display().to_string() })
    }

    /// The agent that is counted.
    pub(crate) fn agent(&self) -> AgentSpec {
        let mut spec = AgentSpec::flags(&["--seccomp", "off", "--max-share-per-pod", "100"]);
        spec.privileged = true;
        spec.under = vec![
            "valgrind".to_owned(),
            "--tool=callgrind".to_owned(),
            format!("--callgrind-out-file={}", self.out.display()),
            format!("--vgdb-prefix={}", self.pipes),
        ];
        spec
    }

    /// Counts from here on.
    pub(crate) fn begin(&self, agent: &Agent) -> Result<()> {
        self.tell(agent, &["zero"])
    }

    /// What was counted since the beginning. `name` must be another one each time.
    pub(crate) fn end(&self, agent: &Agent, name: &str) -> Result<Counts> {
        self.tell(agent, &["dump", name])?;
        let dir = self.out.parent().context("it has a directory")?;
        let mut files: Vec<_> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        files.retain(|file| file.to_string_lossy().starts_with(&format!("{}.", self.out.display())));
        // Numbered as they are written.
        files.sort_by_key(|file| file.extension().and_then(|number| number.to_str()?.parse::<u32>().ok()));
        read(&fs::read_to_string(files.last().context("callgrind wrote nothing")?)?)
    }

    fn tell(&self, agent: &Agent, words: &[&str]) -> Result<()> {
        let mut command = Command::new("vgdb");
        command.arg(format!("--vgdb-prefix={}", self.pipes)).arg(format!("--pid={}", agent.pid())).args(words);
        must(&mut command).map(|_| ())
    }
}

/// Reads a file of callgrind's: the total, and calls by the name of what is called. A name is written out at its first use
/// and numbered from then on.
fn read(text: &str) -> Result<Counts> {
    let mut names: HashMap<&str, &str> = HashMap::new();
    let mut counts = Counts::default();
    let mut called = "";
    for line in text.lines() {
        if let Some(function) = line.strip_prefix("fn=").or_else(|| line.strip_prefix("cfn=")) {
            let (number, name) = function.split_once(' ').unwrap_or((function, ""));
            if !name.is_empty() {
                names.insert(number, name);
            }
            if line.starts_with('c') {
                called = names.get(number).copied().unwrap_or_default();
            }
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let number: u64 = calls.split(' ').next().unwrap_or_default().parse()?;
            if ALLOCATORS.contains(&called) {
                counts.allocations += number;
            }
        } else if let Some(total) = line.strip_prefix("totals:").or_else(|| line.strip_prefix("summary:")) {
            counts.instructions = total.trim().parse()?;
        }
    }
    Ok(counts)
}

#[test]
fn calls_of_allocators_are_added_up() -> Result<()> {
    let text = "fn=(1) main\n1 5\ncfn=(2) malloc\ncalls=3 10\n1 40\ncfn=(3) free\ncalls=3 10\nfn=(4) other\ncfn=(2)\n\
                calls=2 1\n2 9\nsummary: 77\n\ntotals: 78\n";
    anyhow::ensure!(read(text)? == Counts { instructions: 78, allocations: 5 });
    Ok(())
}
