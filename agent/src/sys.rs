//! The system calls that no safe crate offers. All `unsafe` of the agent is here and below.
#![expect(unsafe_code, reason = "raw system calls; each block argues why its pointers are valid")]

pub(crate) mod bpf;
mod heap;
mod locked;
mod memory;
pub mod stack;

pub(crate) use locked::Locked;
pub use memory::return_large_blocks;
pub(crate) use memory::{trim_heap, unmap_code};

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd as _, OwnedFd},
    ptr,
};

use rustix::{io::Errno, net::RecvFlags};
use seccompiler::sock_filter;
use tokio::io::{Interest, ReadBuf, unix::AsyncFd};

/// `SO_NETNS_COOKIE`, Linux 5.14; newer than libc's constants.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// `FILEID_KERNFS` of include/linux/exportfs.h: the handle is a kernfs node's 64-bit id, which is the cgroup id.
const FILEID_KERNFS: libc::c_int = 0xfe;

/// `struct file_handle` with room for a kernfs id.
#[repr(C)]
struct KernfsHandle {
    handle_bytes: libc::c_uint,
    handle_type: libc::c_int,
    id: [u8; 8],
}

const _: () = assert!(size_of::<KernfsHandle>() == 16);

/// Opens the cgroup directory that has this id, on the cgroup2 mount that `mount` lies on.
///
/// `ESTALE` when there is no such cgroup any more: ids are never used twice. Needs `CAP_DAC_READ_SEARCH`.
pub(crate) fn open_cgroup_by_id(mount: impl AsFd, id: u64) -> io::Result<OwnedFd> {
    let mut handle = KernfsHandle { handle_bytes: 8, handle_type: FILEID_KERNFS, id: id.to_ne_bytes() };
    // SAFETY: `handle` is a live `file_handle` whose `handle_bytes` says how many bytes follow the header.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_fd().as_raw_fd(),
            ptr::from_mut(&mut handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC | libc::O_DIRECTORY,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The cookie of the network namespace a socket lives in, for as long as the system runs.
pub(crate) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let written = getsockopt(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie)?;
    if written == size_of::<u64>() { Ok(cookie) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// The TCP state of a socket (`TCP_ESTABLISHED` is 1; `include/net/tcp_states.h`).
pub(crate) fn tcp_state(socket: impl AsFd) -> io::Result<u8> {
    // The state is the first byte of `struct tcp_info`; the kernel copies no more than it is given room for.
    let mut state = 0_u8;
    let written = getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state)?;
    if written == 1 { Ok(state) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// How many connections wait to be accepted from a listening socket.
pub(crate) fn waiting_connections(listener: impl AsFd) -> io::Result<u32> {
    // `tcpi_unacked`, the seventh word of `struct tcp_info`, is the length of a listener's queue.
    let mut info = [0_u32; 7];
    let written = getsockopt(listener, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    let [.., waiting] = info;
    if written == size_of_val(&info) { Ok(waiting) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Has a listening socket take no connection before its handshake is done, whatever the namespace's `tcp_fastopen` says.
///
/// Until then the caller's own socket is half open for the kernel, and cannot be attested.
pub(crate) fn refuse_fast_open(listener: impl AsFd) -> io::Result<()> {
    let pending: libc::c_int = 0;
    // SAFETY: `pending` is a live integer of the length given, and the descriptor is open.
    let result = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN,
            (&raw const pending).cast(),
            libc::c_int::LENGTH,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads what has come, without waiting. A socket that ends reads as nothing.
pub(crate) fn receive(socket: impl AsFd, into: &mut ReadBuf<'_>) -> Result<(), Errno> {
    // SAFETY: the kernel writes to the bytes and reads none.
    let unfilled = unsafe { into.unfilled_mut() };
    let ((received, _), _) = rustix::net::recv(socket, unfilled, RecvFlags::DONTWAIT)?;
    let received = received.len();
    // SAFETY: the kernel has just written so many bytes.
    unsafe { into.assume_init(received) };
    into.advance(received);
    Ok(())
}

/// `value` must be of integers: any bytes the kernel writes are valid for it.
fn getsockopt<T: Integers>(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &mut T,
) -> io::Result<usize> {
    let mut length = T::LENGTH;
    // SAFETY: `value` and `length` are live and writable, and `length` is the size of `value`.
    let result = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), level, name, ptr::from_mut(value).cast(), &raw mut length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(length as usize) }
}

trait Integers {
    const LENGTH: libc::socklen_t;
}
impl Integers for u8 {
    const LENGTH: libc::socklen_t = 1;
}
impl Integers for libc::c_int {
    const LENGTH: libc::socklen_t = 4;
}
impl Integers for u64 {
    const LENGTH: libc::socklen_t = 8;
}
impl Integers for [u32; 7] {
    const LENGTH: libc::socklen_t = 28;
}

/// Descriptors that the event loop may wait on: each owns its descriptor from its making to its end.
pub(crate) trait OwnsDescriptor: AsRawFd {}
impl OwnsDescriptor for std::fs::File {}
impl OwnsDescriptor for std::net::TcpListener {}
impl OwnsDescriptor for inotify::Inotify {}
impl OwnsDescriptor for aya::maps::RingBuf<aya::maps::MapData> {}
impl<T> OwnsDescriptor for aya_log::EbpfLogger<T> {}

/// Lets the tokio runtime of the calling thread wait until `inner` is readable.
pub(crate) fn readable<T: OwnsDescriptor>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the trait is implemented in this module only, for types that close their descriptor when they are
    // dropped and never exchange it.
    Ok(unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }?)
}

/// Lets the tokio runtime of the calling thread wait until `inner` has an exceptional condition (`POLLPRI`).
pub(crate) fn exceptional<T: OwnsDescriptor>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: as above.
    Ok(unsafe { AsyncFd::register_with_interest(inner, Interest::PRIORITY) }?)
}

/// Whether the kernel's log names the calls that a seccomp program refuses (`type=1326`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It does.
    Logged,
    /// It does not.
    Silently,
}

/// Restricts the system calls of the calling thread, and of those that it will start, with a seccomp program.
///
/// The thread must have `no_new_privs`. seccompiler's own function has no way to ask for the log.
pub(crate) fn restrict_system_calls(program: &[sock_filter], refused: Refused) -> io::Result<()> {
    let len = libc::c_ushort::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let flags = if refused == Refused::Logged { libc::SECCOMP_FILTER_FLAG_LOG } else { 0 };
    // The kernel does not write to it.
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `program` points to `len` instructions that live until the call returns, by when the kernel has copied
    // them; seccompiler's type has the layout of the kernel's `struct sock_filter`, as libc's has.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const _: () = assert!(size_of::<sock_filter>() == size_of::<libc::sock_filter>());
