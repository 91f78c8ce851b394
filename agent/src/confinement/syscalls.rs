//! The system calls of each thread, and what each is for. `SECURITY.md` shows the same as a table by thread.
//!
//! The list was made by running every tier of tests with `--seccomp log`, and by reading what the C library and tokio
//! fall back to where a clock, a lock or an allocation is not served in user space.
use libc::c_long;

use super::Role::{self, Audit, Cgroups, Log, Lookup, Main, Netns, Serve};

/// A call that some threads may make.
pub(super) struct Call {
    pub(super) number: c_long,
    #[cfg(test)]
    pub(super) name: &'static str,
    pub(super) roles: &'static [Role],
    pub(super) when: When,
}

/// With which arguments, counted from 0; 32 bits of each are compared unless it says otherwise.
#[derive(Clone, Copy)]
pub(super) enum When {
    /// With any.
    Always,
    /// The argument is one of these.
    OneOf(u8, &'static [u32]),
    /// These bits of the argument have this value.
    Masked(u8, u32, u32),
    /// The pointer is null.
    Null(u8),
}

/// A call that no code of this program makes: whoever does runs code of his own.
pub(super) struct Hostile {
    pub(super) number: c_long,
    #[cfg(test)]
    pub(super) name: &'static str,
    pub(super) except: &'static [Role],
}

const EVERY: &[Role] = &Role::ALL;
/// Threads that make or use network sockets.
const SOCKETS: &[Role] = &[Main, Serve, Netns, Lookup];
/// Threads with an event loop.
const LOOPS: &[Role] = &[Main, Serve];
/// Threads that open files.
const FILES: &[Role] = &[Main, Lookup];
/// Threads that start others: the one that writes the log, and one that waits for `serve` at the end.
pub(super) const PARENTS: &[Role] = &[Main, Log];

const NO_NEW_CODE: When = When::Masked(2, libc::PROT_EXEC.cast_unsigned(), 0);
/// A thread of this process, in its namespaces. `clone3` is not listed, its flags are out of a filter's sight; the C
/// library then uses `clone`.
const THREAD: When = {
    let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND).cast_unsigned();
    let namespaces = (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET)
        .cast_unsigned();
    When::Masked(0, thread | namespaces, thread)
};
const INET: u32 = libc::AF_INET.cast_unsigned();
const INET6: u32 = libc::AF_INET6.cast_unsigned();
const NETLINK: u32 = libc::AF_NETLINK.cast_unsigned();
const UNIX: u32 = libc::AF_UNIX.cast_unsigned();
/// Sockets that do not block, how much the resolver's has, whether stderr is a terminal.
#[expect(clippy::cast_possible_truncation, reason = "the numbers have 32 bits, whatever type the C library gives them")]
const IOCTLS: &[u32] = &[libc::FIONBIO as u32, libc::FIONREAD as u32, libc::TCGETS as u32];
/// `enum bpf_cmd` of include/uapi/linux/bpf.h: maps' elements, what is attached where, attaching programs that are
/// loaded already. Nothing that loads a program, makes a map or pins.
const BPF: &[u32] = &[
    1,  // MAP_LOOKUP_ELEM
    2,  // MAP_UPDATE_ELEM
    3,  // MAP_DELETE_ELEM
    13, // PROG_GET_FD_BY_ID
    15, // OBJ_GET_INFO_BY_FD
    16, // PROG_QUERY
    28, // LINK_CREATE
    29, // LINK_UPDATE
    30, // LINK_GET_FD_BY_ID
    34, // LINK_DETACH
];

macro_rules! calls {
    ($($(#[$cfg:meta])* $name:ident: $roles:expr $(, $when:expr)?;)*) => {
        &[$($(#[$cfg])* Call {
            number: libc::$name,
            #[cfg(test)]
            name: stringify!($name),
            roles: $roles,
            when: calls!(@ $($when)?),
        },)*]
    };
    (@) => { When::Always };
    (@ $when:expr) => { $when };
}

pub(super) const LISTED: &[Call] = calls! {
    // Memory. A thread's first allocation may reserve an arena, which is made writable piece by piece.
    SYS_brk: EVERY;
    SYS_mmap: EVERY, NO_NEW_CODE;
    SYS_mprotect: EVERY, NO_NEW_CODE;
    SYS_munmap: EVERY;
    SYS_mremap: EVERY;
    SYS_madvise: EVERY;
    // Pages that hold credentials are kept out of swap.
    SYS_mlock: &[Main];

    // Locks, time where the vDSO does not serve it (clocks of some virtual machines), scheduling.
    SYS_futex: EVERY;
    SYS_clock_gettime: EVERY;
    SYS_gettimeofday: EVERY;
    #[cfg(target_arch = "x86_64")]
    SYS_time: EVERY;
    SYS_clock_nanosleep: EVERY;
    SYS_nanosleep: EVERY;
    SYS_sched_yield: EVERY;
    SYS_sched_getaffinity: EVERY;
    SYS_getcpu: EVERY;
    SYS_restart_syscall: EVERY;
    // Seeds of hash tables; keys of TLS.
    SYS_getrandom: EVERY;

    // The life of a thread, its end and a panic's: the default action of SIGABRT must remain possible.
    SYS_set_robust_list: EVERY;
    SYS_rseq: EVERY;
    SYS_sigaltstack: EVERY;
    SYS_rt_sigprocmask: EVERY;
    SYS_rt_sigaction: EVERY;
    SYS_rt_sigreturn: EVERY;
    SYS_prctl: EVERY, When::OneOf(0, &[libc::PR_SET_NAME.cast_unsigned()]);
    SYS_gettid: EVERY;
    SYS_getpid: EVERY;
    SYS_tgkill: EVERY;
    SYS_exit: EVERY;
    SYS_exit_group: EVERY;
    // Limits are read, not set.
    SYS_prlimit64: PARENTS, When::Null(2);
    SYS_clone: PARENTS, THREAD;
    // The last of a thread's filters, after the one that is made of this list.
    SYS_seccomp: PARENTS, When::OneOf(0, &[libc::SECCOMP_SET_MODE_FILTER]);

    // Descriptors. Writing wakes another thread's event loop, too.
    SYS_read: EVERY;
    SYS_write: EVERY;
    SYS_writev: EVERY;
    SYS_close: EVERY;
    SYS_fcntl: EVERY, When::OneOf(1, &[
        libc::F_GETFD.cast_unsigned(),
        libc::F_SETFD.cast_unsigned(),
        libc::F_GETFL.cast_unsigned(),
        libc::F_SETFL.cast_unsigned(),
        libc::F_DUPFD_CLOEXEC.cast_unsigned(),
    ]);
    SYS_ioctl: &[Main, Serve, Netns, Lookup, Log], When::OneOf(1, IOCTLS);
    SYS_epoll_ctl: LOOPS;
    #[cfg(target_arch = "x86_64")]
    SYS_epoll_wait: LOOPS;
    SYS_epoll_pwait: LOOPS;
    SYS_ppoll: &[Lookup];
    #[cfg(target_arch = "x86_64")]
    SYS_poll: &[Lookup];

    // Sockets. The serving thread makes none: it accepts on those that it is given, and asks a netlink socket that was
    // opened for it.
    SYS_socket: &[Main], When::OneOf(0, &[INET, INET6]);
    // sock_diag.
    SYS_socket: &[Netns], When::OneOf(0, &[INET, INET6, NETLINK]);
    // The host's addresses, and the C library's name service cache.
    SYS_socket: &[Lookup], When::OneOf(0, &[INET, INET6, NETLINK, UNIX]);
    SYS_connect: &[Main, Netns, Lookup];
    SYS_bind: &[Main, Netns, Lookup];
    SYS_listen: &[Main, Netns];
    SYS_accept4: LOOPS;
    SYS_shutdown: LOOPS;
    SYS_getsockname: SOCKETS;
    SYS_getpeername: SOCKETS;
    SYS_getsockopt: SOCKETS;
    SYS_setsockopt: SOCKETS;
    SYS_sendto: SOCKETS;
    SYS_sendmsg: SOCKETS;
    SYS_recvfrom: SOCKETS;
    SYS_recvmsg: SOCKETS;
    SYS_sendmmsg: &[Lookup];

    // Files: cgroups, /proc, token files, the node's credentials; the resolver's configuration.
    SYS_openat: &[Main, Lookup, Audit];
    SYS_openat2: &[Main];
    SYS_fstat: FILES;
    SYS_newfstatat: FILES;
    SYS_statx: FILES;
    SYS_lseek: FILES;
    SYS_fstatfs: &[Main];
    SYS_getdents64: &[Main];
    #[cfg(target_arch = "x86_64")]
    SYS_readlink: &[Main, Cgroups];
    SYS_readlinkat: &[Main, Cgroups];
    SYS_getcwd: &[Main];
    SYS_inotify_add_watch: &[Main];
    SYS_inotify_rm_watch: &[Main];
    // At the end the admin socket's file goes, under its directory's lock.
    SYS_flock: &[Main];
    // The audit's file is set aside when it is long enough.
    #[cfg(target_arch = "x86_64")]
    SYS_rename: &[Audit];
    SYS_renameat: &[Audit];
    SYS_renameat2: &[Audit];
    #[cfg(target_arch = "x86_64")]
    SYS_unlink: &[Main];
    SYS_unlinkat: &[Main];
    // What the resolver asks of the machine, and of itself.
    SYS_uname: &[Lookup];
    SYS_sysinfo: FILES;
    SYS_geteuid: FILES;

    // What the agent is for.
    SYS_bpf: &[Main], When::OneOf(0, BPF);
    SYS_open_by_handle_at: &[Main, Cgroups];
    SYS_setns: &[Netns], When::OneOf(1, &[libc::CLONE_NEWNET.cast_unsigned()]);
};

macro_rules! hostile {
    ($($(#[$cfg:meta])* $name:ident $(except $($except:ident)*)?;)*) => {
        &[$($(#[$cfg])* Hostile {
            number: libc::$name,
            #[cfg(test)]
            name: stringify!($name),
            except: &[$($($except),*)?],
        },)*]
    };
}

pub(super) const HOSTILE: &[Hostile] = hostile! {
    // Another program.
    SYS_execve;
    SYS_execveat;
    #[cfg(target_arch = "x86_64")]
    SYS_fork;
    #[cfg(target_arch = "x86_64")]
    SYS_vfork;
    SYS_memfd_create;
    // Another process's memory and descriptors.
    SYS_ptrace;
    SYS_process_vm_readv;
    SYS_process_vm_writev;
    SYS_pidfd_getfd;
    SYS_userfaultfd;
    // Another view of the system.
    SYS_unshare;
    SYS_setns except Netns;
    SYS_chroot;
    SYS_pivot_root;
    SYS_mount;
    SYS_umount2;
    SYS_move_mount;
    SYS_open_tree;
    SYS_fsopen;
    SYS_fsconfig;
    SYS_fsmount;
    SYS_mount_setattr;
    // The kernel itself.
    SYS_init_module;
    SYS_finit_module;
    SYS_delete_module;
    SYS_kexec_load;
    #[cfg(target_arch = "x86_64")]
    SYS_iopl;
    #[cfg(target_arch = "x86_64")]
    SYS_ioperm;
    SYS_perf_event_open;
    SYS_io_uring_setup;
    SYS_add_key;
    SYS_request_key;
    SYS_keyctl;
    SYS_reboot;
    SYS_swapon;
    SYS_swapoff;
    SYS_settimeofday;
    SYS_clock_settime;
    // Loading programs needs the main thread's capability; asking at all is its business.
    SYS_bpf except Main;
    SYS_open_by_handle_at except Main Cgroups;
};
