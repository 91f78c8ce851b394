//! eBPF programs of somebody else at the hooks of the agent's: loaded, attached, put in the place of others.
#![expect(unsafe_code, reason = "bpf(2) has no safe interface for what only an attacker does")]
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process::must;

const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_GET_FD_BY_ID: libc::c_int = 30;
const CGROUP_SOCK_ADDR: u32 = 18;
const CGROUP_INET4_CONNECT: u32 = 10;

/// Before those of the same cgroup, and of all cgroups below.
pub const IN_FRONT: u32 = (1 << 3) | (1 << 6);
/// Before those of all cgroups below.
pub const PREORDER: u32 = 1 << 6;

/// `r0 = 1; exit`: lets every connection pass.
const HARMLESS: &[u64] = &[0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
/// `if (ctx->user_ip4 == 169.254.170.23) ctx->user_ip4 = 127.0.0.9`, and the same.
const DIVERTING: &[u64] = &[
    0x0000_0000_0004_1361, // r3 = *(u32 *)(r1 + 4)
    0x17aa_fea9_0002_0356, // if w3 != 169.254.170.23 goto +2
    0x0900_007f_0000_02b7, // r2 = 127.0.0.9
    0x0000_0000_0004_2163, // *(u32 *)(r1 + 4) = r2
    HARMLESS[0],
    HARMLESS[1],
];

/// `bpf_attr` of `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    first: u64,
    license: u64,
    log: [u64; 2],
    version_and_flags: u64,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// A `connect4` program of somebody else's.
#[derive(Debug)]
pub struct Foreign(OwnedFd);

impl Foreign {
    /// One that changes nothing.
    pub fn harmless() -> Result<Self> {
        Self::load(HARMLESS)
    }

    /// One that sends what is aimed at 169.254.170.23 to 127.0.0.9.
    pub fn diverting() -> Result<Self> {
        Self::load(DIVERTING)
    }

    fn load(instructions: &[u64]) -> Result<Self> {
        let mut attr = Load {
            kind: CGROUP_SOCK_ADDR,
            instructions: u32::try_from(instructions.len())?,
            first: instructions.as_ptr().expose_provenance() as u64,
            license: c"GPL".as_ptr().expose_provenance() as u64,
            log: [0; 2],
            version_and_flags: 0,
            name: *b"foreign\0\0\0\0\0\0\0\0\0",
            interface: 0,
            attach_type: CGROUP_INET4_CONNECT,
        };
        let program = bpf(PROG_LOAD, &mut attr).context("cannot load somebody else's program")?;
        Ok(Self(descriptor(program)))
    }

    /// Attaches it to a cgroup for as long as the returned descriptor is open.
    pub fn attach(&self, cgroup: &Path, flags: u32) -> Result<OwnedFd> {
        let cgroup = File::open(cgroup)?;
        let target = u32::try_from(cgroup.as_raw_fd())?;
        let mut attr = [u32::try_from(self.0.as_raw_fd())?, target, CGROUP_INET4_CONNECT, flags];
        let link = bpf(LINK_CREATE, &mut attr).context("cannot attach somebody else's program")?;
        Ok(descriptor(link))
    }

    /// Puts it in the place of the program of another's link.
    pub fn replace(&self, link: u64) -> Result<()> {
        let mut attr = [u32::try_from(link)?, 0, 0];
        let link = descriptor(bpf(LINK_GET_FD_BY_ID, &mut attr)?);
        let mut attr = [u32::try_from(link.as_raw_fd())?, u32::try_from(self.0.as_raw_fd())?, 0, 0];
        bpf(LINK_UPDATE, &mut attr).context("cannot put another program in a link")?;
        Ok(())
    }
}

/// Ids of the links that are attached to a cgroup, by the name of their programs.
pub fn links(cgroup: &Path) -> Result<Vec<(String, u64)>> {
    let mut links = Vec::new();
    let attached = bpftool(&["cgroup", "show", &cgroup.to_string_lossy()])?;
    let all = bpftool(&["link", "show"])?;
    for program in attached.as_array().into_iter().flatten() {
        let of_program = |link: &&Value| link["prog_id"] == program["id"];
        let link = all.as_array().into_iter().flatten().find(of_program).context("a program without a link")?;
        let name = program["name"].as_str().unwrap_or_default().to_owned();
        links.push((name, link["id"].as_u64().context("a link without an id")?));
    }
    Ok(links)
}

/// Takes a link off its cgroup, whoever holds it.
pub fn detach(link: u64) -> Result<()> {
    must(Command::new("bpftool").args(["link", "detach", "id", &link.to_string()]))?;
    Ok(())
}

fn bpftool(args: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&must(Command::new("bpftool").arg("-j").args(args))?)?)
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attr` is as large as it says, holds what `command` reads of the union, and points to live memory only.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn descriptor(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel just returned it, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
