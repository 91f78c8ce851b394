//! eBPF programs of somebody else at the hooks of the agent's: attached before or behind, put in the place of others.
use std::{fs::File, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    bpf::{Link, PASS, Program},
    process::must,
};

/// Before those of the same cgroup, and of all cgroups below.
pub const IN_FRONT: u32 = (1 << 3) | (1 << 6);
/// Before those of all cgroups below.
pub const PREORDER: u32 = 1 << 6;

/// `if (ctx->user_ip4 == 169.254.170.23) ctx->user_ip4 = 127.0.0.9`, and lets every connection pass.
const DIVERT: &[u64] = &[
    0x0000_0000_0004_1361, // r3 = *(u32 *)(r1 + 4)
    0x17aa_fea9_0002_0356, // if w3 != 169.254.170.23 goto +2
    0x0900_007f_0000_02b7, // r2 = 127.0.0.9
    0x0000_0000_0004_2163, // *(u32 *)(r1 + 4) = r2
    PASS[0],
    PASS[1],
];

/// A `connect4` program of somebody else's.
#[derive(Debug)]
pub struct Foreign(Program);

impl Foreign {
    /// One that changes nothing.
    pub fn harmless() -> Result<Self> {
        Program::empty().map(Self)
    }

    /// One that sends what is aimed at 169.254.170.23 to 127.0.0.9.
    pub fn diverting() -> Result<Self> {
        Program::connect4(DIVERT).map(Self)
    }

    /// Attaches it to a cgroup for as long as the returned link lives.
    pub fn attach(&self, cgroup: &Path, flags: u32) -> Result<Link> {
        self.0.attach_connect4(File::open(cgroup)?, flags)
    }

    /// Puts it in the place of the program of another's link.
    pub fn replace(&self, link: u32) -> Result<()> {
        self.0.replace(link)
    }
}

/// Ids of the links that are attached to a cgroup, by the name of their programs.
pub fn links(cgroup: &Path) -> Result<Vec<(String, u32)>> {
    let mut links = Vec::new();
    let attached = bpftool(&["cgroup", "show", &cgroup.to_string_lossy()])?;
    let all = bpftool(&["link", "show"])?;
    for program in attached.as_array().into_iter().flatten() {
        let of_program = |link: &&Value| link["prog_id"] == program["id"];
        let link = all.as_array().into_iter().flatten().find(of_program).context("a program without a link")?;
        let name = program["name"].as_str().unwrap_or_default().to_owned();
        links.push((name, u32::try_from(link["id"].as_u64().context("a link without an id")?)?));
    }
    Ok(links)
}

/// Takes a link off its cgroup, whoever holds it.
pub fn detach(link: u32) -> Result<()> {
    must(Command::new("bpftool").args(["link", "detach", "id", &link.to_string()]))?;
    Ok(())
}

fn bpftool(args: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&must(Command::new("bpftool").arg("-j").args(args))?)?)
}
