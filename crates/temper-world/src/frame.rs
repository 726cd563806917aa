//! What ranks say to each other over TCP: a length, then a message.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::watch::Verdict;

/// The longest message, in bytes: a cause that somebody wrote out in full.
const LONGEST: u32 = 1 << 20;

/// What watching ranks say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Frame {
    /// The first one: who is calling, and the word that rank 0 gave out.
    Hello { rank: usize, token: u64, whence: String },
    /// I am alive.
    Beat(Status),
    /// All must end.
    Failed(Verdict),
    /// I am done, and this connection will close.
    Goodbye,
}

/// What a rank is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The optimizer step at hand, from 1; 0 before the first.
    pub step: u64,
    /// Operations with the other ranks that it has begun.
    pub begun: u64,
    /// Whether the last of them has not ended.
    pub waiting: bool,
    /// Whether it does something that may take long while the others wait: it writes a checkpoint, say.
    pub busy: bool,
}

/// Sends one message.
pub(crate) fn send<T: Serialize>(message: &T, mut stream: &TcpStream) -> io::Result<()> {
    let body = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_le_bytes()[..], &body].concat())
}

/// The next message; an error where the connection has ended.
pub(crate) fn receive<T: DeserializeOwned>(stream: &TcpStream) -> io::Result<T> {
    read(stream)
}

/// The next message, if all of it comes in time.
pub(crate) fn receive_by<T: DeserializeOwned>(stream: &TcpStream, end: Instant) -> io::Result<T> {
    read(Timed { stream, end })
}

fn read<T: DeserializeOwned>(mut from: impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    let mut body = vec![0; length as usize];
    from.read_exact(&mut body)?;
    postcard::from_bytes(&body).map_err(io::Error::other)
}

/// A connection that is read up to a moment, however slowly it speaks.
struct Timed<'a> {
    stream: &'a TcpStream,
    end: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        (&mut &*self.stream).read(buffer)
    }
}
