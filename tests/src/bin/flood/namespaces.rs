//! Network namespaces of the pod's own making. Each thread enters its own; all end with the process.
use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};

use crate::{Args, connections::open};

/// More than the agent serves for one pod.
const OCCUPIED: usize = 20;

/// Makes namespaces, connects once in each, and lets go of it.
pub(crate) fn make(args: &Args, ends: Instant) -> u64 {
    let mut attempts = 0;
    while Instant::now() < ends && unshare(CloneFlags::CLONE_NEWNET).is_ok() {
        drop(open(args));
        attempts += 1;
    }
    attempts
}

/// Holds as many namespaces as the agent serves for one pod, and some more.
pub(crate) fn occupy(args: &Args, ends: Instant) {
    for _ in 0..OCCUPIED {
        let to = args.to;
        thread::spawn(move || {
            if unshare(CloneFlags::CLONE_NEWNET).is_ok() {
                while Instant::now() < ends {
                    let _ = std::net::TcpStream::connect_timeout(&to, Duration::from_millis(10));
                    thread::sleep(Duration::from_millis(50));
                }
            }
        });
    }
    // Until they are found.
    thread::sleep(Duration::from_millis(500));
}

/// Connects again and again in a namespace that has no listener.
pub(crate) fn misses(args: &Args, ends: Instant) -> u64 {
    if unshare(CloneFlags::CLONE_NEWNET).is_err() {
        return 0;
    }
    let mut attempts = 0;
    while Instant::now() < ends {
        drop(open(args));
        attempts += 1;
    }
    attempts
}
