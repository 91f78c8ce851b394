//! The one loop that reads inotify, for the watches on cgroups and on token volumes.
use std::io;

use inotify::{EventOwned, Inotify};
use tokio::io::unix::AsyncFd;

/// Room for a burst of events; the kernel keeps the rest until the next read.
const BUFFER_BYTES: usize = 16 * 1024;

/// Waits for the next events. Loses none when it is dropped: they are read only when it is about to return.
pub(crate) async fn next(inotify: &mut AsyncFd<Inotify>) -> io::Result<Vec<EventOwned>> {
    loop {
        let mut guard = inotify.readable_mut().await?;
        let mut buffer = [0_u8; BUFFER_BYTES];
        match guard.get_inner_mut().read_events(&mut buffer) {
            Ok(events) => return Ok(events.map(|event| event.to_owned()).collect()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
            Err(error) => return Err(error),
        }
    }
}
