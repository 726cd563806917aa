//! How ranks find each other that know one address.
//!
//! Rank 0 is called there. Every other rank calls, and says where the one before it can call. When all have, rank 0 tells each
//! where the next one is, and a word by which those of this run know each other.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::{SockRef, TcpKeepalive};

use super::Tcp;
use crate::Error;
use crate::frame::{receive, send};
use crate::net::{self, Address, CONNECT};

/// How long ranks wait for each other: their machines may start minutes apart.
const MEETING: Duration = Duration::from_secs(600);
/// After how long a rank that waits says so.
const PATIENT: Duration = Duration::from_secs(20);
/// After how long a connection that says nothing shows that it is there.
const QUIET: Duration = Duration::from_secs(30);
/// Between two calls of rank 0.
const AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Serialize, Deserialize)]
enum Message {
    /// To rank 0: one of so many is here, and can be called there.
    Here { rank: usize, size: usize, addresses: Vec<SocketAddr> },
    /// From rank 0: all are here, and the next one is there. The last one knows where rank 0 is.
    Next { token: u64, addresses: Vec<SocketAddr> },
    /// From rank 0: why this one cannot be one of them.
    Refused(String),
    /// To the next rank.
    Before { token: u64, rank: usize },
}

/// One rank of `size`, on its way to the others.
pub(super) struct Guest<'a> {
    pub rank: usize,
    pub size: usize,
    pub meeting: &'a Address,
}

/// What a rank knows when all are there.
struct Introduced {
    star: Vec<TcpStream>,
    /// By which those of this run know each other.
    token: u64,
    /// Where the next rank can be called.
    next: Vec<SocketAddr>,
}

fn failed(error: impl ToString) -> Error {
    Error::collective("meet")(error.to_string())
}

impl Guest<'_> {
    pub fn meet(&self) -> Result<Tcp, Error> {
        let end = Instant::now() + MEETING;
        let listener = self.listen()?;
        let Introduced { star, token, next } =
            if self.rank == 0 { self.receive_all(&listener, end)? } else { self.call(&listener, end)? };
        let unreachable = |error: io::Error| Error::Unreachable {
            rank: (self.rank + 1) % self.size,
            address: next.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", "),
            reason: error.to_string(),
        };
        let to_next = net::call(&next).map_err(unreachable)?;
        send(&Message::Before { token, rank: self.rank }, &to_next).map_err(failed)?;
        let previous = self.accept(&listener, token, &star).map_err(failed)?;
        star.iter().chain([&to_next, &previous]).try_for_each(ready).map_err(failed)?;
        Ok(Tcp { rank: self.rank, size: self.size, next: to_next, previous, star })
    }

    /// Where this rank is called.
    fn listen(&self) -> Result<TcpListener, Error> {
        let port = if self.rank == 0 { self.meeting.port } else { 0 };
        net::listen(Some(self.meeting), port).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => Error::Taken { port },
            _ => failed(format!("port {port}: {error}")),
        })
    }

    fn resolved(&self) -> io::Result<Vec<SocketAddr>> {
        Ok((&*self.meeting.host, self.meeting.port).to_socket_addrs()?.collect())
    }

    /// On rank 0: waits for all others.
    fn receive_all(&self, listener: &TcpListener, end: Instant) -> Result<Introduced, Error> {
        let (size, meeting) = (self.size, self.meeting);
        let mut others: Vec<Option<(TcpStream, Vec<SocketAddr>)>> = (1..size).map(|_| None).collect();
        let mut patient = Some(Instant::now() + PATIENT);
        loop {
            if others.iter().all(Option::is_some) {
                // Who is gone again is not here.
                others.iter_mut().for_each(|other| drop(other.take_if(|(stream, _)| !lives(stream))));
            }
            let missing =
                (1..).zip(&others).filter(|(_, other)| other.is_none()).map(|(rank, _): (usize, _)| rank.to_string());
            let missing: Vec<String> = missing.collect();
            if missing.is_empty() {
                break;
            }
            let missing = format!("of {size} ranks those missing at {meeting} are {}", missing.join(", "));
            let Some(stream) = net::accept(listener, patient.unwrap_or(end)).map_err(failed)? else {
                if patient.take().is_none() {
                    return Err(failed(missing));
                }
                tracing::warn!("rank 0 waits: {missing}");
                continue;
            };
            // Whoever else calls here is not answered.
            let Ok(Message::Here { rank, size: theirs, mut addresses }) = receive(&stream) else { continue };
            let refused = match others.get(rank.wrapping_sub(1)) {
                Some(Some((other, _))) if theirs == size && lives(other) => {
                    Some(format!("there is a rank {rank} already"))
                }
                Some(_) if theirs == size => None,
                _ => Some(format!("this is rank {rank} of {theirs}, and rank 0 waits for {size}")),
            };
            if let Some(why) = refused {
                // A caller that is gone need not know.
                let _ = send(&Message::Refused(why), &stream);
                continue;
            }
            // Its address as it is seen from here is the one that others most likely see.
            let seen = stream.peer_addr().map_err(failed)?.ip().to_canonical();
            if let Some(port) = addresses.first().map(SocketAddr::port).filter(|_| !seen.is_loopback()) {
                addresses.insert(0, SocketAddr::new(seen, port));
            }
            others[rank - 1] = Some((stream, addresses));
        }
        let token = RandomState::new().hash_one(std::process::id());
        let (star, mut places): (Vec<_>, Vec<_>) = others.into_iter().flatten().unzip();
        places.push(Vec::new());
        for (stream, next) in star.iter().zip(&places[1..]) {
            send(&Message::Next { token, addresses: next.clone() }, stream).map_err(failed)?;
        }
        Ok(Introduced { star, token, next: places.swap_remove(0) })
    }

    /// On the others: calls rank 0 until it answers.
    fn call(&self, listener: &TcpListener, end: Instant) -> Result<Introduced, Error> {
        let addresses = net::addresses(listener).map_err(failed)?;
        let here = Message::Here { rank: self.rank, size: self.size, addresses };
        let ask = || -> io::Result<(TcpStream, Message)> {
            let stream = net::call(&self.resolved()?)?;
            send(&here, &stream)?;
            // It answers when all are there.
            stream.set_read_timeout(Some(end.saturating_duration_since(Instant::now()).max(AGAIN)))?;
            let answer = receive(&stream)?;
            Ok((stream, answer))
        };
        let mut patient = Some(Instant::now() + PATIENT);
        loop {
            let reason = match ask() {
                Ok((stream, Message::Next { token, addresses: next })) => {
                    let next = if self.rank + 1 == self.size { self.resolved().map_err(failed)? } else { next };
                    return Ok(Introduced { star: vec![stream], token, next });
                }
                Ok((_, Message::Refused(why))) => return Err(Error::Refused { address: self.meeting.clone(), why }),
                Ok((_, other)) => format!("it says {other:?}"),
                Err(error) => error.to_string(),
            };
            if Instant::now() > end {
                return Err(Error::Unreachable { rank: 0, address: self.meeting.to_string(), reason });
            }
            if patient.is_some_and(|time| Instant::now() > time) {
                patient = None;
                tracing::warn!("rank {} still looks for rank 0 at {}: {reason}", self.rank, self.meeting);
            }
            thread::sleep(AGAIN);
        }
    }

    /// The call of the rank before this one, while those that this one knows of are there.
    fn accept(&self, listener: &TcpListener, token: u64, star: &[TcpStream]) -> io::Result<TcpStream> {
        let before = (self.rank + self.size - 1) % self.size;
        while star.iter().all(lives) {
            let Some(stream) = net::accept(listener, Instant::now() + CONNECT)? else { continue };
            if let Ok(Message::Before { token: word, rank }) = receive(&stream)
                && (word, rank) == (token, before)
            {
                return Ok(stream);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            format!("rank {before} did not call, and others are gone"),
        ))
    }
}

/// Whether there is still somebody at the other end.
fn lives(stream: &TcpStream) -> bool {
    let heard = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    stream.set_nonblocking(false).is_ok()
        && match heard {
            Ok(bytes) => bytes > 0,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
}

/// For numbers, which come when they come; what lies between the machines must not forget the connection before.
fn ready(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(None)?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(QUIET).with_interval(QUIET))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    /// What a rank says first.
    pub fn here(stream: &TcpStream, rank: usize, size: usize) {
        send(&Message::Here { rank, size, addresses: vec![([127, 0, 0, 1], 1).into()] }, stream).unwrap();
    }
}
