//! The process that makes sockets for others: they carry its pod's cgroup wherever they go.
use std::{net::SocketAddr, os::unix::net::UnixListener, path::Path};

use anyhow::Result;
use pod_identity_tests::sockets;
use rustix::net::{AddressFamily, SocketType};

/// Gives everybody who connects to the unix socket TCP sockets made here, one for each byte they send, until it is
/// killed.
pub(crate) fn give(unix: &Path, to: SocketAddr) -> Result<()> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let listener = UnixListener::bind(unix)?;
    loop {
        let (stream, _) = listener.accept()?;
        std::thread::spawn(move || {
            // Whoever asks may leave at any time.
            let _ = sockets::give(&stream, || Ok(rustix::net::socket(family, SocketType::STREAM, None)?));
        });
    }
}
