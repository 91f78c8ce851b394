//! The memory of a process, as root reads it while the process stands still.
use std::{
    fmt,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use memchr::memmem;

use crate::process::eventually;

/// For a process's threads to stop.
const STOPS: Duration = Duration::from_secs(5);

/// Bytes of a secret that are looked for as one: less would be found by chance, more would miss what is left of a
/// buffer that was written over in part.
const PIECE: usize = 20;

/// What a process had in memory at one moment.
pub struct Image {
    regions: Vec<Region>,
}

struct Region {
    name: String,
    start: u64,
    bytes: Vec<u8>,
}

/// What was found of a secret in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The secret's name.
    pub what: String,
    /// The mapping (`[heap]`, a file).
    pub region: String,
    /// The first piece's address.
    pub address: u64,
    /// How many pieces.
    pub pieces: usize,
    /// The bytes before and after the address, those that can be printed as they are.
    pub around: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, region, address, pieces, around } = self;
        write!(f, "{pieces} pieces of {what} in {region} from {address:#x}: {around}")
    }
}

impl Image {
    /// Reads all that the process has in memory. The process must have been told to stop (`SIGSTOP`).
    pub fn take(pid: u32) -> Result<Self> {
        eventually("the process to stand still", STOPS, || Ok(stands_still(pid)?.then_some(())))?;
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let mut regions = Vec::new();
        for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (range, rights) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
            let name = fields.nth(3).unwrap_or("anonymous memory");
            // The kernel's own pages: clocks, no data of the process.
            if !rights.starts_with('r') || name.starts_with("[v") {
                continue;
            }
            let (start, end) = range.split_once('-').context("a mapping without a range")?;
            let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
            let mut bytes = vec![0; usize::try_from(end - start)?];
            // Maps of the kernel's (eBPF ring buffers) are not read this way.
            if memory.read_exact_at(&mut bytes, start).is_ok() {
                regions.push(Region { name: name.to_owned(), start, bytes });
            }
        }
        ensure!(!regions.is_empty(), "nothing of process {pid} can be read");
        Ok(Self { regions })
    }

    /// Something else to look for secrets in, by the same rules.
    #[must_use]
    pub fn of(name: &str, bytes: &[u8]) -> Self {
        Self { regions: vec![Region { name: name.to_owned(), start: 0, bytes: bytes.to_owned() }] }
    }

    /// What is there of a secret. It is looked for in pieces of 20 bytes, one after the other, and its last 20.
    #[must_use]
    pub fn pieces_of(&self, what: &str, secret: &str) -> Vec<Found> {
        let secret = secret.as_bytes();
        let mut pieces: Vec<&[u8]> = secret.chunks_exact(PIECE).collect();
        pieces.extend(secret.len().checked_sub(PIECE).and_then(|start| secret.get(start..)));
        let mut found = Vec::new();
        for Region { name, start, bytes } in &self.regions {
            let mut places: Vec<usize> = pieces.iter().flat_map(|piece| memmem::find_iter(bytes, piece)).collect();
            places.sort_unstable();
            let Some(&first) = places.first() else { continue };
            let around = bytes.get(first.saturating_sub(64)..bytes.len().min(first + 64)).unwrap_or_default();
            found.push(Found {
                what: what.to_owned(),
                region: name.clone(),
                address: start + first as u64,
                pieces: places.len(),
                around: around.escape_ascii().to_string(),
            });
        }
        found
    }

    /// How much was read.
    #[must_use]
    pub fn len(&self) -> usize {
        self.regions.iter().map(|region| region.bytes.len()).sum()
    }

    /// Never: nothing could have been read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }
}

/// Whether every thread is stopped (`T`).
fn stands_still(pid: u32) -> Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("stat"))?;
        // PID (NAME) STATE …, and a name may hold anything.
        if !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')) {
            return Ok(false);
        }
    }
    Ok(true)
}
