//! Sockets: where this machine can be reached, and who calls.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use socket2::{Domain, Socket, Type};

use crate::frame::receive_by;

/// How long one connection may take, and whoever calls to say who it is.
pub(crate) const CONNECT: Duration = Duration::from_secs(2);
/// How many may call at once.
const BACKLOG: i32 = 1024;

/// Where ranks meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An IPv6 address has colons of its own.
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{open}{}{close}:{}", self.host, self.port)
    }
}

impl Address {
    /// One that only this machine can reach, of a port that is free now, and that no system gives to whoever asks for any.
    ///
    /// # Errors
    /// When there is none.
    pub fn local() -> io::Result<Self> {
        let host = Ipv4Addr::LOCALHOST;
        let start = RandomState::new().hash_one(std::process::id());
        let ports = (0..1000).map(|number| 20_000 + ((start.wrapping_add(number * 7)) % 10_000) as u16);
        let mut free = ports.filter(|port| TcpListener::bind((host, *port)).is_ok());
        let port = free.next().ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, "no port is free"))?;
        Ok(Self { host: host.to_string(), port })
    }

    /// Whether only this machine can reach it.
    pub(crate) fn is_local(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }
}

/// A socket that is called at this port (0: a free one), by this machine alone where ranks meet on it, else at every address.
pub(crate) fn listen(meeting: Option<&Address>, port: u16) -> io::Result<TcpListener> {
    if let Some(local) = meeting.filter(|meeting| meeting.is_local()) {
        return TcpListener::bind((&*local.host, port));
    }
    on_every(Domain::IPV6, Ipv6Addr::UNSPECIFIED, port).or_else(|error| match error.kind() {
        io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
        _ => on_every(Domain::IPV4, Ipv4Addr::UNSPECIFIED, port),
    })
}

/// With IPv6 it hears IPv4, too.
fn on_every(domain: Domain, any: impl Into<IpAddr>, port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
    }
    // A port at which nobody listens any more is free, whatever its last connections are at.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(any.into(), port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Where it can be called, at what only this machine can reach last.
pub(crate) fn addresses(listener: &TcpListener) -> io::Result<Vec<SocketAddr>> {
    let own = listener.local_addr()?;
    if own.ip().is_loopback() {
        return Ok(vec![own]);
    }
    let mut all: Vec<IpAddr> = if_addrs::get_if_addrs()?.into_iter().map(|interface| interface.ip()).collect();
    // Those mean something only together with an interface.
    all.retain(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()));
    all.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6()));
    Ok(all.into_iter().map(|ip| SocketAddr::new(ip, own.port())).collect())
}

/// Calls the first of these addresses that answers.
pub(crate) fn call(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut failed = None;
    for address in addresses {
        match TcpStream::connect_timeout(address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(error) => _ = failed.get_or_insert(error),
        }
    }
    Err(failed.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it said no address")))
}

/// Those who call and say something, each within [`CONNECT`] of its own: who is mute or slow holds up nobody.
pub(crate) struct Callers<M> {
    listener: TcpListener,
    sender: Sender<(TcpStream, M)>,
    heard: Receiver<(TcpStream, M)>,
}

impl<M: DeserializeOwned + Send + 'static> Callers<M> {
    pub fn of(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (sender, heard) = mpsc::channel();
        Ok(Self { listener, sender, heard })
    }

    /// Where they call.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        addresses(&self.listener)
    }

    /// The next of them, and what it says; nobody after `end`.
    pub fn next(&self, end: Instant) -> io::Result<Option<(TcpStream, M)>> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let sender = self.sender.clone();
                    thread::Builder::new().spawn(move || {
                        let heard =
                            stream.set_nonblocking(false).and_then(|()| receive_by(&stream, Instant::now() + CONNECT));
                        // Whoever says nothing that can be understood is not answered.
                        heard.map(|message| sender.send((stream, message)))
                    })?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // One that is gone again.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            }
            if let Ok(caller) = self.heard.recv_timeout(Duration::from_millis(5)) {
                return Ok(Some(caller));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
        }
    }
}
