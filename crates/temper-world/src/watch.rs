//! Who watches over the ranks: when one dies, hangs or fails, all end within seconds, with one message.
//!
//! MPI and TCP notice a process that dies, not one that is stopped, that hangs, or whose network is gone. So every rank holds a
//! connection to rank 0, over which each says twice a second what it does. Rank 0 judges, tells the others and ends; a rank that
//! rank 0 says nothing to ends by itself. A rank is
//!
//! - dead, when its connection ends without a goodbye;
//! - silent, when nothing came from it for [`Limits::silence`]: stopped, or cut off;
//! - hung, when others have waited for it for [`Limits::patience`] in an operation that it has not begun, or all of them have in
//!   one that does not end.
//!
//! Who was stopped together with all others (a scheduler may suspend a job) judges nobody by that time.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::frame::{Frame, Status, receive, send};
use crate::net::{self, CONNECT, Callers};
use crate::{Address, Collectives, Error, Place, WORLD_FAILED};

/// Between two signs of life.
const BEAT: Duration = Duration::from_millis(500);
/// How long ranks look for each other.
const MEETING: Duration = Duration::from_secs(60);

/// After how long a rank is given up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Without a sign of life.
    pub silence: Duration,
    /// While others wait for it.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { silence: Duration::from_secs(10), patience: Duration::from_secs(300) }
    }
}

/// Why all ranks end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The rank that is to blame.
    pub rank: usize,
    /// The step that it was at, from 1; 0 before the first.
    pub step: u64,
    /// What happened to it.
    pub cause: String,
    /// The exit code of every rank.
    pub code: u8,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            0 => write!(f, "rank {} before the first step: {}", self.rank, self.cause),
            step => write!(f, "rank {} at step {step}: {}", self.rank, self.cause),
        }
    }
}

/// What hears the verdict before the process ends, on the rank that tells the user.
pub(crate) type OnFailure = Box<dyn Fn(&Verdict) + Send + Sync>;

/// One rank's watch.
pub(crate) struct Watch(Arc<Shared>);

struct Shared {
    rank: usize,
    limits: Mutex<Limits>,
    on_failure: OnFailure,
    /// What this rank does.
    step: AtomicU64,
    begun: AtomicU64,
    waiting: AtomicBool,
    busy: AtomicBool,
    /// Everybody is done: what ends now is no failure.
    over: AtomicBool,
    /// A verdict has been heard.
    judged: AtomicBool,
    /// Those whom this rank hears: all others on rank 0, rank 0 on the others.
    peers: Vec<Peer>,
}

struct Peer {
    rank: usize,
    whence: String,
    stream: TcpStream,
    seen: Mutex<Seen>,
}

/// What is known of a peer.
struct Seen {
    status: Status,
    /// When it last said something.
    heard: Instant,
    /// It has said goodbye.
    gone: bool,
}

impl Peer {
    fn new(rank: usize, whence: String, stream: TcpStream) -> Self {
        let seen = Seen { status: Status::default(), heard: Instant::now(), gone: false };
        Self { rank, whence, stream, seen: Mutex::new(seen) }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The port at which rank 0 waits for the others.
pub(crate) struct Meeting {
    callers: Callers<Frame>,
    pub token: u64,
}

impl Meeting {
    /// At an address that those reach who met at `meeting`.
    pub fn open(meeting: Option<&Address>) -> io::Result<Self> {
        let token = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
        Ok(Self { callers: Callers::of(net::listen(meeting, 0)?)?, token })
    }
}

/// Where rank 0 waits for those who watch with it.
#[derive(Serialize, Deserialize)]
struct Invitation {
    addresses: Vec<SocketAddr>,
    token: u64,
}

impl Watch {
    /// Connects those who watch: rank 0 says over the engine where it is.
    pub fn join(engine: &dyn Collectives, place: &Place, on_failure: OnFailure) -> Result<Self, Error> {
        if place.rank == 0 {
            let meeting = Meeting::open(place.meeting.as_ref()).map_err(Error::meeting)?;
            let addresses = meeting.callers.addresses().map_err(Error::meeting)?;
            let own = postcard::to_stdvec(&Invitation { addresses, token: meeting.token }).map_err(Error::meeting)?;
            engine.exchange(&own)?;
            return Self::lead(&meeting, place.size - 1, on_failure);
        }
        let all = engine.exchange(&[])?;
        let Invitation { addresses, token } = postcard::from_bytes(&all[0]).map_err(Error::meeting)?;
        Self::follow(place.rank, &addresses, token, on_failure)
    }

    /// Rank 0 waits for the `others` that hold the token of the meeting.
    pub fn lead(meeting: &Meeting, others: usize, on_failure: OnFailure) -> Result<Self, Error> {
        let (mut peers, end) = (Vec::with_capacity(others), Instant::now() + MEETING);
        while peers.len() < others {
            let Some((stream, hello)) = meeting.callers.next(end).map_err(Error::meeting)? else {
                let reason = format!("{} of {others} came to rank 0 within a minute", peers.len());
                return Err(Error::meeting(reason));
            };
            // Whoever else calls here is not answered.
            if let Frame::Hello { rank, token, whence } = hello
                && token == meeting.token
            {
                peers.push(Peer::new(rank, whence, ready(stream).map_err(Error::meeting)?));
            }
        }
        Self::start(0, peers, on_failure).map_err(Error::meeting)
    }

    /// Another rank goes to the first of the addresses of rank 0 that answers.
    pub fn follow(rank: usize, addresses: &[SocketAddr], token: u64, on_failure: OnFailure) -> Result<Self, Error> {
        let called = net::call(addresses).and_then(|stream| {
            send(&Frame::Hello { rank, token, whence: whence() }, &stream)?;
            let lead = stream.peer_addr()?.ip().to_string();
            Self::start(rank, vec![Peer::new(0, lead, ready(stream)?)], on_failure)
        });
        called.map_err(|error| Error::unreachable(0, addresses, &error))
    }

    fn start(rank: usize, peers: Vec<Peer>, on_failure: OnFailure) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            rank,
            limits: Mutex::new(Limits::default()),
            on_failure,
            step: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            // Until the first step: weights are fetched and read.
            busy: AtomicBool::new(true),
            over: AtomicBool::new(false),
            judged: AtomicBool::new(false),
            peers,
        });
        for index in 0..shared.peers.len() {
            let shared = shared.clone();
            thread::Builder::new().name("watch".into()).spawn(move || shared.listen(index))?;
        }
        let own = shared.clone();
        thread::Builder::new().name("watch".into()).spawn(move || own.judge())?;
        Ok(Self(shared))
    }

    /// After how long ranks are given up from now on.
    pub fn set_limits(&self, limits: Limits) {
        *self.0.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// The step at hand.
    pub fn at(&self, step: u64) {
        self.0.step.store(step, Relaxed);
        self.0.busy.store(false, Relaxed);
    }

    /// Runs an operation with the other ranks.
    pub fn waiting<R>(&self, run: impl FnOnce() -> R) -> R {
        self.0.begun.fetch_add(1, Relaxed);
        self.0.waiting.store(true, Relaxed);
        let result = run();
        self.0.waiting.store(false, Relaxed);
        result
    }

    /// Runs something during which the others may wait as long as it takes.
    pub fn busy<R>(&self, run: impl FnOnce() -> R) -> R {
        let before = self.0.busy.swap(true, Relaxed);
        let result = run();
        self.0.busy.store(before, Relaxed);
        result
    }

    /// Ends all ranks for what happened on this one. Does not return.
    pub fn fail(&self, cause: String, code: u8) -> ! {
        self.0.fail(cause, code)
    }

    /// The same for another thread.
    pub fn ending(&self) -> impl Fn(String, u8) + Send + Sync + 'static {
        let shared = self.0.clone();
        move |cause, code| shared.fail(cause, code)
    }

    /// Waits for the rank that failed to say so; what this one knows of it is said if none does. Does not return.
    pub fn fail_elsewhere(&self, cause: String) -> ! {
        thread::sleep(self.0.limits().silence);
        self.fail(cause, WORLD_FAILED)
    }

    /// From now on nothing that another rank does is a failure.
    pub fn goodbye(&self) {
        self.0.over.store(true, Relaxed);
        for peer in &self.0.peers {
            // A peer that is gone needs no goodbye.
            let _ = send(&Frame::Goodbye, &peer.stream);
        }
    }
}

impl Shared {
    fn fail(&self, cause: String, code: u8) -> ! {
        let verdict = Verdict { rank: self.rank, step: self.step.load(Relaxed), cause, code };
        self.end(&verdict, true);
        park()
    }

    fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> Status {
        Status {
            step: self.step.load(Relaxed),
            begun: self.begun.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            busy: self.busy.load(Relaxed),
        }
    }

    /// Hears one peer out.
    fn listen(&self, index: usize) {
        let peer = &self.peers[index];
        loop {
            match receive(&peer.stream) {
                Ok(Frame::Beat(status)) => {
                    let mut seen = peer.seen();
                    (seen.status, seen.heard) = (status, Instant::now());
                }
                Ok(Frame::Failed(verdict)) => return self.end(&verdict, false),
                Ok(Frame::Goodbye) => {
                    peer.seen().gone = true;
                    return;
                }
                Ok(Frame::Hello { .. }) => {}
                Err(_) => {
                    if !self.over.load(Relaxed) {
                        let cause = format!("it died ({}): killed, out of memory, or crashed", peer.whence);
                        self.blame(peer, cause);
                    }
                    return;
                }
            }
        }
    }

    /// Says what this rank does, and looks after the others.
    fn judge(&self) {
        let (mut last, mut waited) = (Instant::now(), None);
        while !self.over.load(Relaxed) {
            thread::sleep(BEAT);
            let status = self.status();
            for peer in self.peers.iter().filter(|peer| !peer.seen().gone) {
                // A connection that is broken is heard of where it is read.
                let _ = send(&Frame::Beat(status), &peer.stream);
            }
            let (now, slept) = (Instant::now(), last.elapsed());
            last = now;
            if slept > 4 * BEAT {
                // This process was stopped, or starved: the others may have been too.
                self.peers.iter().for_each(|peer| peer.seen().heard = now);
                waited = None;
                continue;
            }
            let limits = self.limits();
            for peer in &self.peers {
                let silent = {
                    let seen = peer.seen();
                    !seen.gone && now.saturating_duration_since(seen.heard) > limits.silence
                };
                if silent && !self.over.load(Relaxed) {
                    let seconds = limits.silence.as_secs_f64();
                    let cause = format!(
                        "nothing was heard of it ({}) for {seconds} s: it is stopped, or its machine or network is gone",
                        peer.whence
                    );
                    self.blame(peer, cause);
                }
            }
            if self.rank == 0 {
                waited = self.wait_for(limits.patience, status, waited, now);
            }
        }
    }

    /// Blames a rank for which others have waited too long; otherwise since when they wait, and in which operation.
    fn wait_for(
        &self,
        patience: Duration,
        own: Status,
        waited: Option<(u64, Instant)>,
        now: Instant,
    ) -> Option<(u64, Instant)> {
        let own = (0, String::new(), own);
        let others = self.peers.iter().map(|peer| (peer.rank, peer.whence.clone(), peer.seen().status));
        let all: Vec<_> = std::iter::once(own).chain(others).collect();
        let ahead = all.iter().filter(|(_, _, status)| status.waiting).map(|(_, _, status)| status.begun).max()?;
        let late = all.iter().find(|(_, _, status)| status.begun < ahead);
        let stuck = late.is_none();
        let (rank, whence, late) =
            late.or_else(|| all.first().filter(|_| all.iter().all(|(_, _, own)| own.waiting)))?;
        let since = match waited {
            Some((operation, since)) if operation == ahead && !late.busy => since,
            _ => now,
        };
        if now - since > patience {
            let seconds = patience.as_secs_f64();
            let place = if whence.is_empty() { String::new() } else { format!(" ({whence})") };
            let cause = match stuck {
                true => format!("it hangs, as all others do: for {seconds} s all have waited for each other"),
                false => format!("it hangs{place}: the others have waited for it for {seconds} s"),
            };
            self.end(&Verdict { rank: *rank, step: late.step, cause, code: WORLD_FAILED }, true);
        }
        Some((ahead, since))
    }

    fn blame(&self, peer: &Peer, cause: String) {
        // It is where this one is, and may not have had the time to say so.
        let step = peer.seen().status.step.max(self.step.load(Relaxed));
        self.end(&Verdict { rank: peer.rank, step, cause, code: WORLD_FAILED }, true);
    }

    /// Tells the user, the others, and ends this process.
    fn end(&self, verdict: &Verdict, own: bool) {
        if self.judged.swap(true, Relaxed) {
            return;
        }
        // Rank 0 speaks; where rank 0 is to blame, rank 1.
        let lead_is_lost = own && verdict.rank == 0 && self.rank != 0;
        if self.rank == 0 || (lead_is_lost && self.rank == 1) {
            (self.on_failure)(verdict);
        }
        if own || self.rank == 0 {
            for peer in &self.peers {
                let _ = send(&Frame::Failed(verdict.clone()), &peer.stream);
            }
        }
        if self.rank != 0 {
            // Rank 0 gets the time to speak before a launcher that sees this process end stops it.
            thread::sleep(4 * BEAT);
        }
        exit(verdict.code);
    }
}

/// Ends the process at once, whatever other threads do.
fn exit(code: u8) -> ! {
    // SAFETY: `_exit` has no conditions. Handlers of exit are passed over, for they may wait for threads that hang.
    unsafe { libc::_exit(i32::from(code)) }
}

fn park() -> ! {
    loop {
        thread::park();
    }
}

/// A connection for small messages, that never holds up whoever writes.
fn ready(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(Some(CONNECT))?;
    Ok(stream)
}

/// This machine and process, for people.
fn whence() -> String {
    let mut name = [0; 256];
    // SAFETY: the pointer and the length are of `name`, of which the last byte stays 0.
    let found = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) } == 0;
    let name: Vec<u8> = name.into_iter().take_while(|&byte| byte != 0).collect();
    let host = if found { String::from_utf8_lossy(&name).into_owned() } else { "unknown host".into() };
    format!("{host}, process {}", std::process::id())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
