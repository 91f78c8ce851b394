//! An accepted connection as the protocol has it.
use std::{
    io::{self, IoSlice},
    mem,
    net::TcpStream,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll},
};

use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::sys;

/// A connection that the event loop hears of only when there is something to wait for.
///
/// Most clients send their request at once, and many close after its answer: by the time that they are attested the
/// request is there, the answer fits into the socket's buffer, and two system calls are saved that would enter the
/// connection among those to be watched, and take it out again.
///
/// It ends when it is dropped. The protocol shuts its direction down just before that, which would tell the kernel the
/// same thing twice.
#[derive(Debug)]
pub(super) enum Stream {
    /// Nothing had to be waited for yet.
    Unwatched(TcpStream),
    /// The event loop knows of it.
    Watched(tokio::net::TcpStream),
    /// The event loop could not be told of it, so it is over.
    Lost,
}

impl From<TcpStream> for Stream {
    /// The socket must not block.
    fn from(socket: TcpStream) -> Self {
        Self::Unwatched(socket)
    }
}

impl Stream {
    /// The socket, unless it is lost.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Unwatched(socket) => Some(socket.as_fd()),
            Self::Watched(socket) => Some(socket.as_fd()),
            Self::Lost => None,
        }
    }

    /// Tries the socket itself while it is not watched; has it watched when that would block.
    fn attempt<T>(&mut self, attempt: impl FnOnce(&TcpStream) -> Result<T, Errno>) -> Option<io::Result<T>> {
        let Self::Unwatched(socket) = self else { return None };
        match attempt(socket) {
            Err(Errno::AGAIN | Errno::INTR) => self.watch().err().map(Err),
            done => Some(done.map_err(io::Error::from)),
        }
    }

    fn watch(&mut self) -> io::Result<()> {
        if let Self::Unwatched(socket) = mem::replace(self, Self::Lost) {
            *self = Self::Watched(tokio::net::TcpStream::from_std(socket)?);
        }
        Ok(())
    }

    fn watched(&mut self) -> io::Result<Pin<&mut tokio::net::TcpStream>> {
        match self {
            Self::Watched(socket) => Ok(Pin::new(socket)),
            Self::Unwatched(_) | Self::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.attempt(|socket| sys::receive(socket, buf)) {
            Some(done) => Poll::Ready(done),
            None => self.watched()?.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.attempt(|socket| rustix::io::writev(socket, parts)) {
            Some(done) => Poll::Ready(done),
            None => self.watched()?.poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is kept back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        time::Duration,
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::{sleep, timeout},
    };

    use super::*;

    /// A connection's two ends.
    fn pair() -> (TcpStream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        (client, accepted.into())
    }

    #[tokio::test]
    async fn what_is_there_is_exchanged_without_being_waited_for() {
        let (mut client, mut stream) = pair();
        client.write_all(b"question").unwrap();
        let mut bytes = [0; 64];
        assert_eq!(stream.read(&mut bytes).await.unwrap(), 8);
        stream.write_all(b"answer").await.unwrap();
        assert!(matches!(stream, Stream::Unwatched(_)));
        drop(stream);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
    }

    #[tokio::test]
    async fn what_comes_later_is_waited_for() {
        let (mut client, mut stream) = pair();
        let mut bytes = [0; 64];
        let none = timeout(Duration::from_millis(50), stream.read(&mut bytes)).await;
        assert!(none.is_err() && matches!(stream, Stream::Watched(_)));
        for word in ["first", "second"] {
            let asked = async {
                sleep(Duration::from_millis(20)).await;
                client.write_all(word.as_bytes()).unwrap();
            };
            let (received, ()) = tokio::join!(stream.read(&mut bytes), asked);
            assert_eq!(bytes.get(..received.unwrap()).unwrap(), word.as_bytes());
        }
        drop(client);
        assert_eq!(stream.read(&mut bytes).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn more_than_the_sockets_buffer_is_written_as_it_is_taken() {
        let (mut client, mut stream) = pair();
        let reader = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let mut all = Vec::new();
            client.read_to_end(&mut all).unwrap();
            all.len()
        });
        stream.write_all(&vec![7; 32 << 20]).await.unwrap();
        assert!(matches!(stream, Stream::Watched(_)));
        drop(stream);
        assert_eq!(reader.join().unwrap(), 32 << 20);
    }
}
