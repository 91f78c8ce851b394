//! What crosses the interfaces of a network namespace, and whether a secret was in it.
use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::{
    socket::{
        AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
        sockopt::{RcvBufForce, ReceiveTimeout},
    },
    time::{TimeVal, TimeValLike as _},
};

use crate::netns::Netns;

/// A secret counts as seen when this many bytes of it in a row were: what is cut into packets is still found, and
/// nothing else is that long and the same.
const PIECE: usize = 16;

/// All packets of all interfaces of one namespace, from its start to [`Capture::stop`].
#[derive(Debug)]
pub struct Capture {
    packets: Arc<Mutex<BTreeMap<String, Vec<Vec<u8>>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What was captured, by interface.
#[derive(Debug, Default)]
pub struct Captured(BTreeMap<String, Vec<Vec<u8>>>);

impl Capture {
    /// Begins. When this returns, every packet that follows is seen.
    pub fn start(netns: &Netns) -> Result<Self> {
        let socket = netns.within(open)??;
        let names = netns.within(interface_names)??;
        let (packets, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (into, until) = (Arc::clone(&packets), Arc::clone(&stop));
        let thread = std::thread::spawn(move || collect(&socket, &names, &into, &until));
        Ok(Self { packets, stop, thread: Some(thread) })
    }

    /// Ends, and returns what was seen.
    pub fn stop(mut self) -> Captured {
        self.end();
        Captured(std::mem::take(&mut *self.packets.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn end(&mut self) {
        // What is under way is received before the socket's time-out ends the thread.
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

impl Captured {
    /// Interfaces that any packet crossed, with their number.
    #[must_use]
    pub fn packets(&self) -> BTreeMap<&str, usize> {
        self.0.iter().map(|(name, packets)| (name.as_str(), packets.len())).collect()
    }

    /// Interfaces that carried any piece of this secret.
    #[must_use]
    pub fn interfaces_that_carried(&self, secret: &str) -> Vec<&str> {
        self.packets_that_carried(secret).into_keys().collect()
    }

    /// How many packets carried any piece of this secret, by interface; interfaces that carried none are left out.
    #[must_use]
    pub fn packets_that_carried(&self, secret: &str) -> BTreeMap<&str, usize> {
        let pieces: Vec<&[u8]> = secret.as_bytes().chunks_exact(PIECE).collect();
        let carried = |packet: &&Vec<u8>| pieces.iter().any(|piece| contains(packet, piece));
        let count = |packets: &[Vec<u8>]| packets.iter().filter(carried).count();
        let counts = self.0.iter().map(|(name, packets)| (name.as_str(), count(packets)));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

fn contains(packet: &[u8], piece: &[u8]) -> bool {
    let first = piece.first();
    packet.windows(piece.len()).any(|window| window.first() == first && window == piece)
}

fn open() -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .context("cannot open a packet socket")?;
    setsockopt(&socket, RcvBufForce, &(32 << 20)).context("cannot enlarge a packet socket's buffer")?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(20))?;
    Ok(socket)
}

fn interface_names() -> Result<BTreeMap<usize, String>> {
    let all = nix::net::if_::if_nameindex()?;
    Ok(all
        .iter()
        .map(|interface| (interface.index() as usize, interface.name().to_string_lossy().into_owned()))
        .collect())
}

fn collect(
    socket: &OwnedFd,
    names: &BTreeMap<usize, String>,
    packets: &Mutex<BTreeMap<String, Vec<Vec<u8>>>>,
    stop: &AtomicBool,
) {
    // Loopback's packets are this long.
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, Some(from))) => {
                let index = from.ifindex();
                let name = names.get(&index).cloned().unwrap_or_else(|| format!("#{index}"));
                let packet = buffer.get(..length).unwrap_or_default().to_vec();
                packets.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default().push(packet);
            }
            Ok((_, None)) => {}
            Err(_) if stopping => return,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
