//! Programs and maps of a running agent as the kernel shows them to root, programs of somebody else, and the few things
//! that benchmarks and attackers do with them.
//!
//! Layouts: `include/uapi/linux/bpf.h`.
use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

const MAP_UPDATE_ELEM: u32 = 2;
const PROG_LOAD: u32 = 5;
const PROG_GET_FD_BY_ID: u32 = 13;
const MAP_GET_FD_BY_ID: u32 = 14;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_GET_FD_BY_ID: u32 = 30;

const PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const CGROUP_INET4_CONNECT: u32 = 10;
/// Linux 5.14; newer than libc's constants.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// `r0 = 1; exit`: lets every connection pass.
pub const PASS: &[u64] = &[0x0000_0001_0000_00b7, 0x95];

/// `union bpf_attr` as words; its commands here use no more.
type Attributes = [u64; 16];
/// `struct bpf_prog_info`, and `struct bpf_map_info`, which is shorter.
type Info = [u8; 256];

/// A program that an agent has loaded.
#[derive(Debug)]
pub struct Program {
    /// Its name in the object.
    pub name: String,
    /// Instructions that the verifier looked at until it was convinced: what loading costs.
    pub verified_instructions: u32,
    /// Bytes of machine code.
    pub machine_code_bytes: u32,
    fd: OwnedFd,
}

/// A map that an agent has made.
#[derive(Debug)]
pub struct Map {
    /// Its name in the object.
    pub name: String,
    fd: OwnedFd,
}

/// A program's attachment to a cgroup; dropped, it ends.
#[derive(Debug)]
#[must_use = "dropping it detaches the program"]
pub struct Link(#[expect(dead_code, reason = "held for its drop")] OwnedFd);

/// The programs that a process holds.
pub fn programs_of(pid: u32) -> Result<Vec<Program>> {
    ids(pid, "prog_id:")?.into_iter().map(|id| Program::of(fd_by_id(PROG_GET_FD_BY_ID, id)?)).collect()
}

/// The maps that a process holds.
pub fn maps_of(pid: u32) -> Result<Vec<Map>> {
    let map = |id| {
        let fd = fd_by_id(MAP_GET_FD_BY_ID, id)?;
        let name = text(&info(fd.as_fd())?, 24);
        Ok(Map { name, fd })
    };
    ids(pid, "map_id:")?.into_iter().map(map).collect()
}

impl Program {
    fn of(fd: OwnedFd) -> Result<Self> {
        let info = info(fd.as_fd())?;
        Ok(Self {
            name: text(&info, 64),
            verified_instructions: half(&info, 216),
            machine_code_bytes: half(&info, 16),
            fd,
        })
    }

    /// A program for `connect4` that lets everything through: what any program costs.
    pub fn empty() -> Result<Self> {
        Self::connect4(PASS)
    }

    /// A program for `connect4` of these instructions, called `foreign`.
    pub fn connect4(instructions: &[u64]) -> Result<Self> {
        let licence = c"GPL";
        let mut attributes = Attributes::default();
        attributes[0] = u64::from(PROG_TYPE_CGROUP_SOCK_ADDR) | (instructions.len() as u64) << 32;
        attributes[1] = instructions.as_ptr() as u64;
        attributes[2] = licence.as_ptr() as u64;
        attributes[6] = u64::from_le_bytes(*b"foreign\0");
        // expected_attach_type is the second half of the word at 64.
        attributes[8] = u64::from(CGROUP_INET4_CONNECT) << 32;
        Self::of(owned(bpf(PROG_LOAD, &mut attributes).context("load a program")?))
    }

    /// Attaches it to a cgroup's `connect4`; the flags say before which others.
    pub fn attach_connect4(&self, cgroup: impl AsFd, flags: u32) -> Result<Link> {
        let mut attributes = Attributes::default();
        attributes[0] = word_of(self.fd.as_fd(), cgroup.as_fd());
        attributes[1] = u64::from(CGROUP_INET4_CONNECT) | u64::from(flags) << 32;
        Ok(Link(owned(bpf(LINK_CREATE, &mut attributes).with_context(|| format!("attach {}", self.name))?)))
    }
}

impl Program {
    /// Puts it in the place of the program of a link, whoever holds that.
    pub fn replace(&self, link_id: u32) -> Result<()> {
        let link = fd_by_id(LINK_GET_FD_BY_ID, link_id)?;
        let mut attributes = Attributes::default();
        attributes[0] = word_of(link.as_fd(), self.fd.as_fd());
        bpf(LINK_UPDATE, &mut attributes).context("put another program in a link")?;
        Ok(())
    }
}

impl Map {
    /// Puts a socket under a key into a map of sockets.
    pub fn insert_socket(&self, key: u64, socket: impl AsFd) -> Result<()> {
        let value = u64::try_from(socket.as_fd().as_raw_fd())?;
        let (key, value) = (key.to_ne_bytes(), value.to_ne_bytes());
        let mut attributes = Attributes::default();
        attributes[0] = u64::try_from(self.fd.as_raw_fd())?;
        attributes[1] = key.as_ptr() as u64;
        attributes[2] = value.as_ptr() as u64;
        bpf(MAP_UPDATE_ELEM, &mut attributes).with_context(|| format!("put a socket into {}", self.name))?;
        Ok(())
    }
}

/// The cookie of the network namespace that a socket lives in.
#[expect(unsafe_code, reason = "neither rustix nor nix has this option")]
pub fn netns_cookie(socket: impl AsFd) -> Result<u64> {
    let (mut cookie, mut length) = (0_u64, libc::socklen_t::try_from(size_of::<u64>())?);
    // SAFETY: both pointers are to live values, and the length is the value's.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()).context("SO_NETNS_COOKIE") } else { Ok(cookie) }
}

/// What descriptors of a process say about themselves after this word.
fn ids(pid: u32, key: &str) -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may have been closed meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        ids.extend(text.lines().filter_map(|line| line.strip_prefix(key)?.trim().parse::<u32>().ok()));
    }
    Ok(ids)
}

fn fd_by_id(command: u32, id: u32) -> Result<OwnedFd> {
    let mut attributes = Attributes::default();
    attributes[0] = u64::from(id);
    Ok(owned(bpf(command, &mut attributes).with_context(|| format!("open the eBPF object {id}"))?))
}

fn info(fd: BorrowedFd<'_>) -> Result<Info> {
    let mut info: Info = [0; 256];
    let mut attributes = Attributes::default();
    attributes[0] = u64::try_from(fd.as_raw_fd())? | (info.len() as u64) << 32;
    attributes[1] = info.as_mut_ptr() as u64;
    bpf(OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info)
}

#[expect(unsafe_code, reason = "a raw system call; no safe crate reaches programs of other processes")]
fn bpf(command: u32, attributes: &mut Attributes) -> io::Result<i32> {
    // SAFETY: `attributes` is live and as long as is said; pointers in it are to values of the caller's, which live until
    // the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of::<Attributes>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(-1)) }
}

#[expect(unsafe_code, reason = "descriptors of bpf(2) come as numbers")]
fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn word_of(low: BorrowedFd<'_>, high: BorrowedFd<'_>) -> u64 {
    let bits = |fd: BorrowedFd<'_>| u64::from(fd.as_raw_fd().cast_unsigned());
    bits(low) | bits(high) << 32
}

fn half(info: &Info, at: usize) -> u32 {
    u32::try_from(word(info, at) & u64::from(u32::MAX)).unwrap_or_default()
}

fn word(info: &Info, at: usize) -> u64 {
    info.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// A name of sixteen bytes at most.
fn text(info: &Info, at: usize) -> String {
    let bytes = info.get(at..at + 16).unwrap_or_default();
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}
