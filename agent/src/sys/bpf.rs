//! `bpf(2)` as far as aya does not go: links with a place in the order of a hook's programs, and what runs at a hook.
//! Layouts and numbers are those of include/uapi/linux/bpf.h.
use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    ptr,
};

const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const LINK_CREATE: libc::c_int = 28;

/// Before the programs of the same cgroup that are there already, Linux 6.17.
pub(crate) const BEFORE: u32 = 1 << 3;
/// Before the programs of all cgroups below, Linux 6.15.
pub(crate) const PREORDER: u32 = 1 << 6;

/// The programs that run for the tasks of a cgroup, those of its parents included, in their order.
const QUERY_EFFECTIVE: u32 = 1;

/// Programs of one hook that an answer has room for: the kernel attaches 64 to a cgroup.
const MOST_PROGRAMS: usize = 512;

/// `bpf_attr.link_create`.
#[repr(C)]
struct LinkCreate {
    prog_fd: RawFd,
    target_fd: RawFd,
    attach_type: u32,
    flags: u32,
}

/// `bpf_attr.query`. The kernel writes to it, so it is as large as the newest one.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: RawFd,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    reserved: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// `bpf_attr.info`.
#[repr(C)]
struct Info {
    fd: RawFd,
    length: u32,
    pointer: u64,
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    lengths_and_pointers: [u64; 3],
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// The beginning of `struct bpf_link_info`, of a link to a cgroup.
#[repr(C)]
#[derive(Default)]
struct CgroupLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    reserved: u32,
    cgroup_id: u64,
    attach_type: u32,
    reserved_too: u32,
}

const _: () = assert!(size_of::<Query>() == 64 && size_of::<ProgramInfo>() == 80 && size_of::<CgroupLinkInfo>() == 32);

/// A program as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) id: u32,
    pub(crate) name: String,
    /// Digest of its instructions, without what its maps and globals hold.
    pub(crate) tag: [u8; 8],
}

/// Where a link to a cgroup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CgroupLink {
    /// The program it runs.
    pub(crate) program: u32,
    /// Whether it is attached: somebody may have detached it for good.
    pub(crate) attached: bool,
}

/// Attaches a program to a cgroup for as long as the returned link is open.
pub(crate) fn attach(program: impl AsFd, cgroup: impl AsFd, hook: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: program.as_fd().as_raw_fd(),
        target_fd: cgroup.as_fd().as_raw_fd(),
        attach_type: hook,
        flags,
    };
    // SAFETY: the command reads this member of the union.
    let fd = unsafe { bpf(LINK_CREATE, &mut attr) }?;
    // SAFETY: the kernel just returned this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ids of the programs at a cgroup's hook, in the order in which they run: those that tasks of the cgroup meet, or only
/// those that are attached to the very cgroup.
pub(crate) fn programs_at(cgroup: impl AsFd, hook: u32, inherited: bool) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MOST_PROGRAMS];
    let mut attr = Query {
        target_fd: cgroup.as_fd().as_raw_fd(),
        attach_type: hook,
        flags: if inherited { QUERY_EFFECTIVE } else { 0 },
        prog_ids: address_of(ids.as_mut_ptr()),
        count: u32::try_from(MOST_PROGRAMS).unwrap_or(u32::MAX),
        ..Query::default()
    };
    // SAFETY: the command reads and writes this member of the union; `prog_ids` points to `count` live integers.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    ids.truncate(attr.count as usize);
    Ok(ids)
}

/// What the kernel says of a program.
pub(crate) fn program(program: impl AsFd) -> io::Result<Program> {
    let info: ProgramInfo = info(program)?;
    let name = info.name.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(Program { id: info.id, name: String::from_utf8_lossy(name).into_owned(), tag: info.tag })
}

/// The same of a program that somebody else has loaded. Needs `CAP_SYS_ADMIN`.
pub(crate) fn program_by_id(id: u32) -> io::Result<Program> {
    // The union's member for this command: the id, where to go on, flags.
    let mut attr = [id, 0, 0];
    // SAFETY: as in `attach`.
    let fd = unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr) }?;
    // SAFETY: the kernel just returned this descriptor, and nobody else has it.
    program(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel says of a link to a cgroup.
pub(crate) fn cgroup_link(link: impl AsFd) -> io::Result<CgroupLink> {
    let info: CgroupLinkInfo = info(link)?;
    Ok(CgroupLink { program: info.prog_id, attached: info.cgroup_id != 0 })
}

/// Structures of integers that the kernel fills as far as it knows them: any bytes are valid.
trait KernelInfo: Default {}
impl KernelInfo for ProgramInfo {}
impl KernelInfo for CgroupLinkInfo {}

fn info<T: KernelInfo>(object: impl AsFd) -> io::Result<T> {
    let mut info = T::default();
    let length = u32::try_from(size_of::<T>()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut attr = Info { fd: object.as_fd().as_raw_fd(), length, pointer: address_of(ptr::from_mut(&mut info)) };
    // SAFETY: the command reads and writes this member of the union; `info` is live and of the length that it says.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

fn address_of<T>(pointer: *mut T) -> u64 {
    pointer.expose_provenance() as u64
}

/// # Safety
/// `attr` must be the member of `union bpf_attr` that belongs to `command`, as large as what the kernel writes to it, and
/// its pointers must be valid for what the command does with them. What lies beyond it counts as zero.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<RawFd> {
    let (pointer, size) = (ptr::from_mut(attr), size_of::<T>());
    // SAFETY: `attr` is live and writable for `size` bytes; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(|_| io::ErrorKind::InvalidData.into())
}
