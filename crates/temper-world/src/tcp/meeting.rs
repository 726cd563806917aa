//! How ranks find each other that know one address.
//!
//! Rank 0 is called there. Every other rank calls, and says where the one before it can call; then rank 0 calls the roll, again and
//! again, and who does not answer is not there: a machine that lost its power says no goodbye. When all are there, rank 0 tells each
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
use crate::frame::{receive_by, send};
use crate::net::{self, Address, Callers};

/// How long ranks wait for each other: their machines may start minutes apart.
const MEETING: Duration = Duration::from_secs(600);
/// How long those that are there may take to stand in the ring.
const RING: Duration = Duration::from_secs(60);
/// Between two calls of the roll, and how long all together may take to answer.
const ROLL: Duration = Duration::from_secs(2);
/// How long another rank hears nothing of rank 0 before it calls anew.
const SILENCE: Duration = Duration::from_secs(10);
/// After how long a rank that waits says so.
const PATIENT: Duration = Duration::from_secs(20);
/// Between two calls of rank 0.
const AGAIN: Duration = Duration::from_millis(100);
/// How long a port may be taken: by a run that is ending.
const TAKEN: Duration = Duration::from_secs(5);
/// After how long a connection that says nothing shows that it is there.
const QUIET: Duration = Duration::from_secs(30);
/// Addresses of a machine.
const ADDRESSES: usize = 32;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// To rank 0: one of so many of a run is here, and can be called there.
    Here { run: String, rank: usize, size: usize, addresses: Vec<SocketAddr> },
    /// From rank 0: are you?
    Roll,
    /// To rank 0: I am.
    Still,
    /// From rank 0: all are here, and the next one is there. The last one knows where rank 0 is.
    Next { token: u64, addresses: Vec<SocketAddr> },
    /// From rank 0: why this one cannot be one of them.
    Refused(String),
    /// To the next rank.
    Before { token: u64, rank: usize },
}

/// One rank of `size`, on its way to the others.
pub(super) struct Guest<'a> {
    /// The name of what they are to do; none is whatever the others do.
    pub run: &'a str,
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

/// On rank 0: one that has called, and where the one before it can.
type Seat = Option<(TcpStream, Vec<SocketAddr>)>;

impl Guest<'_> {
    pub fn meet(&self) -> Result<Tcp, Error> {
        let end = Instant::now() + MEETING;
        let callers = Callers::of(self.listen()?).map_err(Error::meeting)?;
        let Introduced { star, token, next } =
            if self.rank == 0 { self.receive_all(&callers, end)? } else { self.call(&callers, end)? };
        let to_next =
            net::call(&next).map_err(|error| Error::unreachable((self.rank + 1) % self.size, &next, &error))?;
        send(&Message::Before { token, rank: self.rank }, &to_next).map_err(Error::meeting)?;
        let previous = self.previous(&callers, token)?;
        star.iter().chain([&to_next, &previous]).try_for_each(ready).map_err(Error::meeting)?;
        Ok(Tcp { rank: self.rank, size: self.size, next: to_next, previous, star })
    }

    /// Where this rank is called.
    fn listen(&self) -> Result<TcpListener, Error> {
        let port = if self.rank == 0 { self.meeting.port } else { 0 };
        let end = Instant::now() + TAKEN;
        loop {
            match net::listen(Some(self.meeting), port) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => thread::sleep(AGAIN),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(Error::Taken { port }),
                listener => return listener.map_err(|error| Error::meeting(format!("port {port}: {error}"))),
            }
        }
    }

    /// Whether a rank of that run is one of those.
    fn knows(&self, run: &str) -> bool {
        run == self.run || run.is_empty() || self.run.is_empty()
    }

    fn resolved(&self) -> io::Result<Vec<SocketAddr>> {
        Ok((&*self.meeting.host, self.meeting.port).to_socket_addrs()?.collect())
    }

    /// On rank 0: waits for all others.
    fn receive_all(&self, callers: &Callers<Message>, end: Instant) -> Result<Introduced, Error> {
        let (size, mut seats) = (self.size, (1..self.size).map(|_| None).collect::<Vec<Seat>>());
        let (mut patient, mut roll) = (Some(Instant::now() + PATIENT), Instant::now() + ROLL);
        loop {
            if Instant::now() > roll || seats.iter().all(Option::is_some) {
                call_the_roll(&mut seats);
                roll = Instant::now() + ROLL;
            }
            let missing: Vec<String> =
                (1..size).filter(|rank| seats[rank - 1].is_none()).map(|rank| rank.to_string()).collect();
            if missing.is_empty() {
                break;
            }
            let local = if self.meeting.is_local() { ", which only this machine reaches," } else { "" };
            let missing =
                format!("of {size} ranks those missing at {}{local} are {}", self.meeting, missing.join(", "));
            if Instant::now() > end {
                return Err(Error::meeting(missing));
            }
            if patient.take_if(|time| Instant::now() > *time).is_some() {
                tracing::warn!("rank 0 waits: {missing}");
            }
            // Whoever says something else is not answered.
            let Some((stream, Message::Here { run, rank, size: theirs, addresses })) =
                callers.next(roll).map_err(Error::meeting)?
            else {
                continue;
            };
            let refused = match seats.get_mut(rank.wrapping_sub(1)).filter(|_| theirs == size && self.knows(&run)) {
                None => Some(format!(
                    "this is rank {rank} of {theirs} for `{run}`, and rank 0 waits for {size} for `{}`",
                    self.run
                )),
                Some(seat) => {
                    call_the_roll(std::slice::from_mut(seat));
                    seat.is_some().then(|| format!("there is a rank {rank} already"))
                }
            };
            if let Some(why) = refused {
                // A caller that is gone need not know.
                let _ = send(&Message::Refused(why), &stream);
            } else if let Ok(peer) = stream.peer_addr() {
                seats[rank - 1] = Some((stream, seen_at(peer, addresses)));
            }
        }
        let token = RandomState::new().hash_one(std::process::id());
        let (star, mut places): (Vec<_>, Vec<_>) = seats.into_iter().flatten().unzip();
        places.push(Vec::new());
        for (stream, next) in star.iter().zip(&places[1..]) {
            send(&Message::Next { token, addresses: next.clone() }, stream).map_err(Error::meeting)?;
        }
        Ok(Introduced { star, token, next: places.swap_remove(0) })
    }

    /// On the others: calls rank 0 until it answers.
    fn call(&self, callers: &Callers<Message>, end: Instant) -> Result<Introduced, Error> {
        let mut addresses = callers.addresses().map_err(Error::meeting)?;
        addresses.truncate(ADDRESSES);
        let here = Message::Here { run: self.run.to_owned(), rank: self.rank, size: self.size, addresses };
        // What rank 0 says once it is not the roll.
        let ask = || -> io::Result<(TcpStream, Message)> {
            let stream = net::call(&self.resolved()?)?;
            send(&here, &stream)?;
            loop {
                match receive_by(&stream, Instant::now() + SILENCE)? {
                    Message::Roll => send(&Message::Still, &stream)?,
                    answer => return Ok((stream, answer)),
                }
            }
        };
        let mut patient = Some(Instant::now() + PATIENT);
        loop {
            let reason = match ask() {
                Ok((stream, Message::Next { token, addresses: next })) => {
                    let next = if self.rank + 1 == self.size { self.resolved().map_err(Error::meeting)? } else { next };
                    return Ok(Introduced { star: vec![stream], token, next });
                }
                Ok((_, Message::Refused(why))) => return Err(Error::Refused { address: self.meeting.clone(), why }),
                Ok((_, other)) => format!("it says {other:?}"),
                Err(error) => error.to_string(),
            };
            if Instant::now() > end {
                return Err(Error::Unreachable { rank: 0, address: self.meeting.to_string(), reason });
            }
            if patient.take_if(|time| Instant::now() > *time).is_some() {
                tracing::warn!("rank {} still looks for rank 0 at {}: {reason}", self.rank, self.meeting);
            }
            thread::sleep(AGAIN);
        }
    }

    /// The connection of the rank before this one.
    fn previous(&self, callers: &Callers<Message>, token: u64) -> Result<TcpStream, Error> {
        let (before, end) = ((self.rank + self.size - 1) % self.size, Instant::now() + RING);
        while let Some((stream, message)) = callers.next(end).map_err(Error::meeting)? {
            if matches!(message, Message::Before { token: word, rank } if (word, rank) == (token, before)) {
                return Ok(stream);
            }
        }
        Err(Error::meeting(format!("rank {before} was there, and has not called the next one")))
    }
}

/// Empties the seats of those that do not answer.
fn call_the_roll(seats: &mut [Seat]) {
    let end = Instant::now() + ROLL;
    for seat in &mut *seats {
        seat.take_if(|(stream, _)| send(&Message::Roll, stream).is_err());
    }
    for seat in seats {
        seat.take_if(|(stream, _)| !matches!(receive_by(stream, end), Ok(Message::Still)));
    }
}

/// Where others can call a rank whose own addresses those are: first, where rank 0 sees it.
fn seen_at(peer: SocketAddr, mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let (seen, port) = (peer.ip().to_canonical(), addresses.first().map(SocketAddr::port));
    if let Some(port) = port.filter(|_| !seen.is_loopback()) {
        // At its loopback others would find themselves.
        addresses.retain(|address| !address.ip().is_loopback() && address.ip() != seen);
        addresses.insert(0, SocketAddr::new(seen, port));
    }
    addresses.truncate(ADDRESSES);
    addresses
}

/// For numbers; what lies between the machines must not forget the connection before they come.
fn ready(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(RING))?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(QUIET).with_interval(QUIET))
}
