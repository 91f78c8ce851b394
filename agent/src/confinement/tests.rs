#![expect(unsafe_code, reason = "forks, and makes calls that no library would make")]
use std::{collections::HashSet, fs::File};

use libc::{c_long, c_ulong};
use rustix::{
    process::{Resource, Rlimit, setrlimit},
    thread::{CapabilitySet, set_no_new_privs},
};

use super::{
    Confinement, Role, Seccomp,
    syscalls::{HOSTILE, LISTED},
};

/// Higher than any system call that there is.
const NUMBERS: std::ops::Range<c_long> = 0..600;

/// What newer kernels let pass before filters: the return of a traced function (`uretprobe`, `uprobe`), which is a
/// SIGILL anywhere else.
#[cfg(target_arch = "x86_64")]
const UNFILTERED: &[c_long] = &[335, 336];
#[cfg(not(target_arch = "x86_64"))]
const UNFILTERED: &[c_long] = &[];

/// How a child process that has entered a role ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Exit(i32),
    Signal(i32),
}

/// Enters a role in a process of its own and does `work` there, whose answer is its exit code.
///
/// `work` must allocate nothing and take no lock: another thread may have held it when the process was made.
fn in_role(role: Role, seccomp: Seccomp, work: impl FnOnce() -> i32) -> End {
    let prepared = Confinement { seccomp, ..Confinement::default() }.prepare(role).unwrap();
    // SAFETY: the child makes system calls only, and ends without running anything of the parent's.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let no_core = Rlimit { current: Some(0), maximum: Some(0) };
        let ready = setrlimit(Resource::Core, no_core).and_then(|()| set_no_new_privs(true));
        let confined = ready.is_ok() && prepared.enter().is_ok();
        let code = if confined { work() } else { 99 };
        // SAFETY: ends the child, whatever state it is in.
        unsafe { libc::_exit(code) }
    }
    let mut status = 0;
    // SAFETY: `status` is live and writable.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    if libc::WIFSIGNALED(status) { End::Signal(libc::WTERMSIG(status)) } else { End::Exit(libc::WEXITSTATUS(status)) }
}

/// Makes a call, and returns its error.
fn errno_of(number: c_long, arguments: [c_ulong; 4]) -> i32 {
    let [a, b, c, d] = arguments;
    // SAFETY: the pointers among the arguments are null or point nowhere, at which the kernel answers EFAULT.
    let result = unsafe { libc::syscall(number, a, b, c, d, 0, 0) };
    // SAFETY: the calling thread's own.
    if result >= 0 { 0 } else { unsafe { *libc::__errno_location() } }
}

/// The end of a process that makes this call in a role, with its error as exit code.
fn calls(role: Role, number: c_long, arguments: [c_ulong; 4]) -> End {
    in_role(role, Seccomp::Enforce, || errno_of(number, arguments))
}

#[test]
fn whatever_is_not_listed_fails_as_if_the_kernel_had_no_such_call() {
    for role in Role::ALL {
        let listed = LISTED.iter().filter(|call| call.roles.contains(&role)).map(|call| call.number);
        let hostile = HOSTILE.iter().filter(|call| !call.except.contains(&role)).map(|call| call.number);
        let known: HashSet<_> = listed.chain(hostile).chain(UNFILTERED.iter().copied()).collect();
        // Ends at the first that gets through: should the filter be none at all, that is a harmless one.
        let first_through =
            || NUMBERS.filter(|n| !known.contains(n)).find(|&n| errno_of(n, [u64::MAX; 4]) != libc::ENOSYS);
        let end = in_role(role, Seccomp::Enforce, || i32::from(first_through().is_some()));
        assert_eq!(end, End::Exit(0), "{role:?}");
    }
}

#[test]
fn calls_that_serve_only_an_attacker_kill() {
    for role in Role::ALL {
        for call in HOSTILE.iter().filter(|call| !call.except.contains(&role)) {
            assert_eq!(calls(role, call.number, [u64::MAX; 4]), End::Signal(libc::SIGSYS), "{role:?} {}", call.name);
        }
    }
}

#[test]
fn arguments_decide_where_a_call_is_good_for_both() {
    let exec = [0, 4096, (libc::PROT_READ | libc::PROT_EXEC) as c_ulong, libc::MAP_PRIVATE as c_ulong];
    let namespace = [(libc::CLONE_NEWUSER | libc::SIGCHLD) as c_ulong, 0, 0, 0];
    let process = [libc::SIGCHLD as c_ulong, 0, 0, 0];
    let packets = [libc::AF_PACKET as c_ulong, libc::SOCK_RAW as c_ulong, 0, 0];
    let tcp = [libc::AF_INET as c_ulong, libc::SOCK_STREAM as c_ulong, 0, 0];
    let load = [5, 0, 0, 0];
    for (role, number, arguments, errno) in [
        (Role::Serve, libc::SYS_mmap, exec, libc::ENOSYS),
        (Role::Main, libc::SYS_mprotect, exec, libc::ENOSYS),
        (Role::Main, libc::SYS_clone, namespace, libc::ENOSYS),
        (Role::Main, libc::SYS_clone, process, libc::ENOSYS),
        (Role::Main, libc::SYS_clone3, [0; 4], libc::ENOSYS),
        (Role::Main, libc::SYS_bpf, load, libc::ENOSYS),
        (Role::Main, libc::SYS_socket, packets, libc::ENOSYS),
        (Role::Netns, libc::SYS_socket, packets, libc::ENOSYS),
        (Role::Serve, libc::SYS_socket, tcp, libc::ENOSYS),
        (Role::Serve, libc::SYS_openat, [0; 4], libc::ENOSYS),
        (Role::Serve, libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0], libc::ENOSYS),
        (Role::Serve, libc::SYS_prctl, [libc::PR_SET_DUMPABLE as c_ulong, 1, 0, 0], libc::ENOSYS),
        (Role::Netns, libc::SYS_setns, [u64::MAX, libc::CLONE_NEWNS as c_ulong, 0, 0], libc::ENOSYS),
        // What each is for reaches the kernel.
        (Role::Netns, libc::SYS_setns, [u64::MAX, libc::CLONE_NEWNET as c_ulong, 0, 0], libc::EBADF),
        (Role::Main, libc::SYS_socket, tcp, 0),
        (Role::Main, libc::SYS_bpf, [1, 0, 0, 0], libc::EINVAL),
        (Role::Serve, libc::SYS_accept4, [u64::MAX, 0, 0, 0], libc::EBADF),
    ] {
        assert_eq!(calls(role, number, arguments), End::Exit(errno), "{role:?}, call {number}, {arguments:?}");
    }
}

#[test]
fn without_a_filter_and_with_one_that_logs_everything_reaches_the_kernel() {
    for seccomp in [Seccomp::Off, Seccomp::Log] {
        let end = in_role(Role::Serve, seccomp, || errno_of(libc::SYS_setns, [u64::MAX; 4]));
        assert_eq!(end, End::Exit(libc::EBADF), "{seccomp:?}");
    }
}

#[test]
fn a_role_keeps_its_capabilities_and_no_other() {
    if !rustix::process::geteuid().is_root() {
        // Nothing to give up: the node tier shows the same of the running agent.
        return;
    }
    for role in Role::ALL {
        let wanted = super::capabilities::of(role);
        let end = in_role(role, Seccomp::Off, || {
            let sets = rustix::thread::capabilities(None);
            i32::from(!sets.is_ok_and(|sets| {
                (sets.effective, sets.permitted, sets.inheritable) == (wanted, wanted, CapabilitySet::empty())
            }))
        });
        assert_eq!(end, End::Exit(0), "{role:?}");
    }
}

#[test]
fn roles_have_no_more_than_the_process() {
    for role in Role::ALL {
        assert!(super::capabilities::PROCESS.contains(super::capabilities::of(role)), "{role:?}");
    }
}

#[test]
fn threads_work_once_they_are_confined_and_hand_it_down() {
    set_no_new_privs(true).unwrap();
    let confinement = Confinement::default();
    let opens_files = || File::open("/proc/self/stat").is_ok();
    assert!(opens_files() && confinement.within(Role::Main, opens_files).unwrap());
    assert!(!confinement.within(Role::Serve, opens_files).unwrap());
    let child = confinement.within(Role::Log, move || std::thread::spawn(opens_files)).unwrap();
    assert!(!child.join().unwrap(), "a thread of a confined thread is free");
}

#[test]
fn a_library_that_is_kept_from_files_opens_none_and_others_go_on() {
    set_no_new_privs(true).unwrap();
    let opens_files = || File::open("/proc/self/stat").map_err(|error| error.kind());
    assert_eq!(super::without_files(opens_files).unwrap_err(), std::io::ErrorKind::PermissionDenied);
    assert!(opens_files().is_ok());
}

#[test]
fn no_call_is_listed_twice_for_a_role_or_called_hostile_too() {
    for role in Role::ALL {
        let mut seen = HashSet::new();
        for call in LISTED.iter().filter(|call| call.roles.contains(&role)) {
            assert!(seen.insert(call.number), "{role:?} {}", call.name);
        }
        for call in HOSTILE.iter().filter(|call| !call.except.contains(&role)) {
            assert!(seen.insert(call.number), "{role:?} {}", call.name);
        }
    }
}
