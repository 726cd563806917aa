//! Sockets: where this machine can be reached, and who calls.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// How long one connection may take, and whoever calls to say who it is.
pub(crate) const CONNECT: Duration = Duration::from_secs(2);

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
    // With IPv6 it hears IPv4, too.
    TcpListener::bind(("::", port)).or_else(|error| match error.kind() {
        io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
        _ => TcpListener::bind(("0.0.0.0", port)),
    })
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
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "it said no address");
    for address in addresses {
        match TcpStream::connect_timeout(address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// The next who calls, to be heard for [`CONNECT`]; nobody after `end`.
pub(crate) fn accept(listener: &TcpListener, end: Instant) -> io::Result<Option<TcpStream>> {
    listener.set_nonblocking(true)?;
    while Instant::now() < end {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(CONNECT))?;
                return Ok(Some(stream));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
