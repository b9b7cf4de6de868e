//! A connection that gives what publishers stored as bytes. The client library reads headers and subjects by itself, and its connection breaks, or
//! ends for good, at one that it cannot read; any publisher can store such a one.
//!
//! # Guarantees
//! Nothing that a publisher stores ends this connection or changes what another message is.
//!
//! # Caveats
//! It has one life: once lost it is opened anew, by whoever needs it.

mod door;
mod frame;

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::time::timeout;

pub(super) use door::Door;
pub(super) use frame::{Frame, Message};

/// A connection to a server.
pub(super) struct Connection {
    read: ReadHalf<Box<dyn Io>>,
    write: WriteHalf<Box<dyn Io>>,
    buffer: BytesMut,
    out: Vec<u8>,
    inbox: String,
}

/// What a connection is made of: TCP, or TLS over it.
trait Io: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Io for T {}

impl Connection {
    /// The next frame. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> io::Result<Frame> {
        loop {
            let taken = frame::take(&mut self.buffer);
            if let Some(frame) = taken.map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))? {
                return Ok(frame);
            }
            // A large body is not copied for each piece of it that comes.
            self.buffer.reserve(READ.max(self.buffer.len()));
            if self.read.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
        }
    }

    /// Asks for all messages on what begins with the inbox.
    pub(super) async fn subscribe(&mut self) -> io::Result<()> {
        self.out.extend_from_slice(format!("SUB {}.* 1\r\n", self.inbox).as_bytes());
        self.send().await
    }

    /// Publishes a message whose answer goes to the inbox, under `number`.
    pub(super) async fn request(&mut self, subject: &str, number: u64, body: &str) -> io::Result<()> {
        let line = format!("PUB {subject} {}.{number} {}\r\n{body}\r\n", self.inbox, body.len());
        self.out.extend_from_slice(line.as_bytes());
        self.send().await
    }

    /// Answers a [`Frame::Ping`].
    pub(super) async fn pong(&mut self) -> io::Result<()> {
        self.out.extend_from_slice(b"PONG\r\n");
        self.send().await
    }

    /// Which request a message answers; nothing if it is not addressed to this connection.
    pub(super) fn answers(&self, message: &Message) -> Option<u64> {
        let number = message.subject.strip_prefix(self.inbox.as_bytes())?.strip_prefix(b".")?;
        std::str::from_utf8(number).ok()?.parse().ok()
    }

    async fn send(&mut self) -> io::Result<()> {
        let sent = async {
            self.write.write_all(&self.out).await?;
            self.write.flush().await
        };
        let sent = timeout(SENT, sent).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut));
        self.out.clear();
        sent?
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("inbox", &self.inbox).finish_non_exhaustive()
    }
}

/// What is read at a time, at least.
const READ: usize = 64 << 10;
/// How long a server may not take the few bytes of a request.
const SENT: Duration = Duration::from_secs(5);
