//! Netlink answers, and callers that nobody attested: for fuzz targets and tests only.
#![expect(
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "an answer that passed has these bytes, or the panic is a finding"
)]
use std::{net::SocketAddr, sync::Arc};

use super::{Caller, check, diag};
use crate::{cgroup::CgroupId, pods::Pod};

impl Caller {
    /// A caller that the kernel has said nothing about.
    pub(crate) fn of(pod: Arc<Pod>) -> Self {
        Self { pod, container: None, cgroup: CgroupId(1), user: 0 }
    }
}

/// An answer to a question about one of two connections. One that is believed says, at the places where the kernel says
/// so, that it is about just that connection.
pub fn netlink(input: &[u8]) {
    for (peer, local) in [("127.0.0.1:4660", "127.0.0.1:706"), ("[::1]:4660", "[::1]:706")] {
        let (Ok(peer), Ok(local)) = (peer.parse::<SocketAddr>(), local.parse::<SocketAddr>()) else { return };
        let Ok(info) = diag::parse(input) else { continue };
        let Ok(cgroup) = check(&info, peer, local) else { continue };

        // struct nlmsghdr: 16 bytes. struct inet_diag_msg: family, state, …, sport, dport, src, dst, ….
        let message = &input[16..];
        assert_eq!(message[4..6], peer.port().to_be_bytes(), "the caller's port");
        assert_eq!(message[6..8], local.port().to_be_bytes(), "the listener's port");
        let one: &[u8] =
            if peer.is_ipv4() { &[127, 0, 0, 1] } else { &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] };
        let mapped = [&[0; 10][..], &[0xff; 2], one].concat();
        for address in [&message[8..24], &message[24..40]] {
            assert!(address.starts_with(one) || (peer.is_ipv4() && address == mapped), "{address:?} is not {one:?}");
        }
        assert!(matches!(message[1], 1 | 4 | 5), "state {}", message[1]);
        assert!(message[72..].windows(8).any(|bytes| bytes == cgroup.0.to_ne_bytes()), "{cgroup} is not in the answer");
        assert_ne!(cgroup, CgroupId(0));
    }
}
