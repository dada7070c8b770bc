//! One acceptor per listener, bound exclusively: it hands each connection to the reactor with the fewest, and keeps
//! the number of connections under its limit. Not HTTP semantics.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Handle;

use super::Proxy;
use super::clock::{Clock, State};
use super::connection;
pub use super::connection::{Departure, Phase};
use super::route::Transport;

/// Where local clients reach the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound listener.
pub struct Listener {
    socket: Socket,
    address: Address,
}

enum Socket {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

/// Removes the socket's file when nobody listens there any more.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Binds. A Unix socket that a dead process left behind is replaced; one that somebody answers is in use.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address).await?;
                let address = Address::Tcp(listener.local_addr()?);
                Ok(Self { socket: Socket::Tcp(listener), address })
            }
            Address::Unix(path) => {
                remove_stale_socket(path).await?;
                let listener = UnixListener::bind(path)?;
                Ok(Self {
                    socket: Socket::Unix { listener, _file: SocketFile(path.clone()) },
                    address: address.clone(),
                })
            }
        }
    }

    /// Where it listens, with the port that the system chose where the configuration said 0.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Accepts until the drain begins, and then whoever waits in the queue. Never returns an error: running out of file
    /// descriptors passes.
    pub async fn serve(self, hall: Arc<Hall>) {
        let mut departure = hall.departure.clone();
        loop {
            tokio::select! {
                biased;
                () = departure.reaches(Phase::Draining) => break,
                accepted = self.accept() => match accepted {
                    Ok(accepted) => hall.seat(accepted),
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
            }
        }
        self.seat_the_queue(&hall);
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Tcp(listener) => Accepted::tcp(listener.accept().await?.0.into_std()?),
            Socket::Unix { listener, .. } => Accepted::unix(listener.accept().await?.0.into_std()?),
        }
    }

    /// Takes in those whom the kernel has let in already: closing the socket would reset them. Asks the kernel itself,
    /// because a runtime's readiness lags behind.
    fn seat_the_queue(self, hall: &Arc<Hall>) {
        // A socket that cannot leave its runtime has no queue that could be asked for.
        match self.socket {
            Socket::Tcp(listener) => {
                let Ok(listener) = listener.into_std() else { return };
                while let Ok(accepted) = listener.accept().and_then(|(stream, _)| Accepted::tcp(stream)) {
                    hall.seat(accepted);
                }
            }
            Socket::Unix { listener, _file } => {
                let Ok(listener) = listener.into_std() else { return };
                while let Ok(accepted) = listener.accept().and_then(|(stream, _)| Accepted::unix(stream)) {
                    hall.seat(accepted);
                }
            }
        }
    }
}

/// After an accept that failed: long enough for a descriptor to come free, short enough for nobody to notice.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Removes a socket that nobody listens on, and never anything else: a wrong path may name a key.
async fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let Ok(there) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !there.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens on this socket already")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// A connection between acceptor and reactor: not registered with either.
enum Accepted {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Accepted {
    fn tcp(stream: std::net::TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self::Tcp(stream))
    }

    fn unix(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self::Unix(stream))
    }
}

/// One reactor: a current-thread runtime, by its handle.
pub struct Reactor {
    handle: Handle,
    connections: AtomicUsize,
    proxy: Proxy,
}

impl Reactor {
    /// A reactor whose requests `proxy` serves.
    pub fn new(handle: Handle, proxy: Proxy) -> Self {
        Self { handle, connections: AtomicUsize::new(0), proxy }
    }
}

/// Where accepted connections are seated: the reactors, and the list of who sits.
pub struct Hall {
    reactors: Vec<Reactor>,
    seated: Mutex<BTreeMap<u64, Arc<Clock>>>,
    next: AtomicU64,
    limit: usize,
    /// Whether every seat is taken. Answers then end their connection, so that callers make room themselves before
    /// somebody is evicted in the moment of sending.
    crowded: Arc<AtomicBool>,
    departure: Departure,
}

impl Hall {
    /// Seats at most `limit` connections. Not empty: at least one reactor.
    pub fn new(reactors: Vec<Reactor>, limit: usize, departure: Departure) -> Arc<Self> {
        Arc::new(Self {
            reactors,
            seated: Mutex::default(),
            next: AtomicU64::default(),
            limit,
            crowded: Arc::default(),
            departure,
        })
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.lock().len()
    }

    fn seat(self: &Arc<Self>, accepted: Accepted) {
        let reactor = (0..self.reactors.len())
            .min_by_key(|index| self.reactors[*index].connections.load(Ordering::Relaxed))
            .expect("a hall has a reactor");
        let Some(seat) = Seat::take(self, reactor) else { return };
        self.reactors[reactor].handle.spawn(seat.serve(accepted));
    }

    /// At the limit the oldest connection without an exchange in flight goes: fresh and mid-head before idle.
    fn make_room(&self, seated: &BTreeMap<u64, Arc<Clock>>) -> bool {
        if seated.len() < self.limit {
            return true;
        }
        let waiting = seated.iter().map(|(id, clock)| (clock.state().max(State::Head), *id, clock));
        let oldest = waiting.filter(|(state, ..)| *state != State::Busy).min_by_key(|(state, id, _)| (*state, *id));
        oldest.inspect(|(.., clock)| clock.evict()).is_some()
    }

    fn count(&self, seated: &BTreeMap<u64, Arc<Clock>>) {
        self.crowded.store(seated.len() >= self.limit, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Clock>>> {
        // A map of clocks is whole after any panic.
        self.seated.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place in the hall, given back when it ends.
struct Seat {
    hall: Arc<Hall>,
    id: u64,
    reactor: usize,
    clock: Arc<Clock>,
}

impl Seat {
    /// `None` where every seat is taken by a connection with an exchange in flight.
    fn take(hall: &Arc<Hall>, reactor: usize) -> Option<Self> {
        let proxy = &hall.reactors[reactor].proxy;
        let clock = Clock::new(proxy.timeouts(), Arc::clone(&hall.crowded));
        let id = hall.next.fetch_add(1, Ordering::Relaxed);
        let mut seated = hall.lock();
        if !hall.make_room(&seated) {
            return None;
        }
        seated.insert(id, Arc::clone(&clock));
        hall.count(&seated);
        drop(seated);
        hall.reactors[reactor].connections.fetch_add(1, Ordering::Relaxed);
        proxy.metrics().connections.inc();
        Some(Self { hall: Arc::clone(hall), id, reactor, clock })
    }

    async fn serve(self, accepted: Accepted) {
        let (proxy, departure) = (self.hall.reactors[self.reactor].proxy.clone(), self.hall.departure.clone());
        let clock = Arc::clone(&self.clock);
        match accepted {
            Accepted::Tcp(stream) => {
                if let Ok(stream) = TcpStream::from_std(stream) {
                    connection::serve(stream, Transport::Tcp, proxy, clock, departure).await;
                }
            }
            Accepted::Unix(stream) => {
                if let Ok(stream) = UnixStream::from_std(stream) {
                    connection::serve(stream, Transport::Unix, proxy, clock, departure).await;
                }
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seated = self.hall.lock();
        seated.remove(&self.id);
        self.hall.count(&seated);
        drop(seated);
        let reactor = &self.hall.reactors[self.reactor];
        reactor.connections.fetch_sub(1, Ordering::Relaxed);
        reactor.proxy.metrics().connections.dec();
    }
}
