//! One acceptor per listener, bound exclusively: it hands each connection to the reactor with the fewest, and keeps
//! the number of connections under its limit. Not HTTP semantics.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio::runtime::Handle;

use super::Proxy;
use super::clock::{Clock, Usefulness};
use super::connection;
pub use super::connection::{Departure, Phase};
use super::problem::Problem;
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

/// One listener of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it listens.
    pub address: Address,
    /// On a Unix socket: the users whose processes may call; `None`: all that can open the socket.
    pub peers: Option<Vec<u32>>,
    /// On a Unix socket: the permissions of its file; `None`: what the umask leaves.
    pub mode: Option<u32>,
}

impl From<Address> for Settings {
    /// Open to all who reach it.
    fn from(address: Address) -> Self {
        Self { address, peers: None, mode: None }
    }
}

/// A bound listener.
pub struct Listener {
    socket: Socket,
    address: Address,
    peers: Option<Vec<u32>>,
}

enum Socket {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

/// Removes the socket's file when nobody listens there any more, unless it is another's by then: whoever starts anew
/// may have put its own in the place.
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), id: Self::id(path) }
    }

    fn id(path: &Path) -> Option<(u64, u64)> {
        std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.id.is_some() && Self::id(&self.path) == self.id {
            // Gone already is as good.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// Binds. A Unix socket that a dead process left behind is replaced; one that somebody answers is in use.
    pub async fn bind(settings: &Settings) -> io::Result<Self> {
        let peers = settings.peers.clone();
        match &settings.address {
            Address::Tcp(address) => {
                let listener = bind_tcp(*address)?;
                let address = Address::Tcp(listener.local_addr()?);
                Ok(Self { socket: Socket::Tcp(listener), address, peers })
            }
            Address::Unix(path) => {
                remove_stale_socket(path).await?;
                let listener = bind_unix(path, settings.mode)?;
                let socket = Socket::Unix { listener, _file: SocketFile::new(path) };
                Ok(Self { socket, address: settings.address.clone(), peers })
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
                    Ok(accepted) => hall.let_in(accepted, self.peers.as_deref()).await,
                    Err(error) => hall.no_connection(&error).await,
                },
            }
        }
        self.seat_the_queue(&hall).await;
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Tcp(listener) => Accepted::tcp(listener.accept().await?.0.into_std()?),
            Socket::Unix { listener, .. } => Accepted::unix(listener.accept().await?.0.into_std()?),
        }
    }

    /// Takes in those whom the kernel has let in already: closing the socket would reset them. Asks the kernel itself,
    /// because a runtime's readiness lags behind.
    async fn seat_the_queue(self, hall: &Arc<Hall>) {
        // A socket that cannot leave its runtime has no queue that could be asked for.
        match self.socket {
            Socket::Tcp(listener) => {
                let Ok(listener) = listener.into_std() else { return };
                hall.let_all_in(None, || listener.accept().and_then(|(stream, _)| Accepted::tcp(stream))).await;
            }
            Socket::Unix { listener, _file } => {
                let Ok(listener) = listener.into_std() else { return };
                let accept = || listener.accept().and_then(|(stream, _)| Accepted::unix(stream));
                hall.let_all_in(self.peers.as_deref(), accept).await;
            }
        }
    }
}

/// Connections over the limit, beside an eighth of it: on their way out, or asked to go in the moment of sending.
const FEW: usize = 16;
/// How often it is looked whether they have gone, and how many times for one newcomer.
const ROOM_LOOK: Duration = Duration::from_millis(1);
const ROOM_LOOKS: usize = 100;

/// After an accept that failed: long enough for a descriptor to come free, short enough for nobody to notice.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Where each descriptor that comes free is taken at once, every other attempt fails.
const BETWEEN_COMPLAINTS: Duration = Duration::from_secs(10);

/// For how long those are taken in who were in the queue when the drain began.
const LAST_ADMISSION: Duration = Duration::from_millis(500);

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

/// Binds with room for a crowd in the kernel's queue, which has 128 places where nobody says more.
fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // For a restart: without it the addresses of connections that have just ended are taken. Two may not listen at
    // once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Binds a socket whose file nobody else could open for a moment.
fn bind_unix(path: &Path, mode: Option<u32>) -> io::Result<UnixListener> {
    let Some(mode) = mode else { return UnixListener::bind(path) };
    let socket = UnixSocket::new_stream()?;
    // On Linux the file begins with the socket's own permissions, less the umask ...
    File::from(socket.as_fd().try_clone_to_owned()?).set_permissions(Permissions::from_mode(mode))?;
    socket.bind(path)?;
    // ... which is not asked here.
    std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)
}

/// Connections that may wait to be accepted; the system may allow less.
const BACKLOG: u32 = 1024;

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

    /// Says so to somebody for whom there is no seat.
    fn refuse(self, answer: &[u8]) {
        match self {
            Self::Tcp(stream) => dismiss(stream, answer),
            Self::Unix(stream) => dismiss(stream, answer),
        }
    }

    /// How the requests of this connection come in. The user is the one who connected, as the kernel tells (unix(7),
    /// SO_PEERCRED).
    fn transport(&self, peers: Option<&[u32]>) -> Transport {
        match (self, peers) {
            (Self::Tcp(_), _) => Transport::Tcp,
            (Self::Unix(_), None) => Transport::Unix,
            (Self::Unix(stream), Some(peers)) => match rustix::net::sockopt::socket_peercred(stream) {
                Ok(credentials) if peers.contains(&credentials.uid.as_raw()) => Transport::Unix,
                _ => Transport::Stranger,
            },
        }
    }
}

/// Does not wait. A new socket has room for the answer; one that is gone already needs none.
fn dismiss(mut stream: impl Read + Write, answer: &[u8]) {
    // A socket that is closed with bytes unread resets the connection, which may cost the caller the answer. What comes
    // later, or is larger, still may.
    let _ = stream.write(answer).and_then(|_| stream.read(&mut [0; UNREAD]));
}

/// Bytes of a request that is refused unread: most are smaller.
const UNREAD: usize = 16 * 1024;

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
    /// What whoever finds no seat is answered; made once, because they come in crowds.
    refusal: Vec<u8>,
    /// Whether every seat is taken. Answers then end their connection, so that callers make room themselves before
    /// somebody is evicted in the moment of sending.
    crowded: Arc<AtomicBool>,
    /// When the log was last told that no connection could be accepted.
    complained: Mutex<Option<Instant>>,
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
            refusal: Problem::Crowded(limit).answer_unread(),
            crowded: Arc::default(),
            complained: Mutex::default(),
            departure,
        })
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.lock().len()
    }

    async fn let_in(self: &Arc<Self>, accepted: Accepted, peers: Option<&[u32]>) {
        self.room().await;
        self.seat(accepted, peers);
    }

    /// Until nobody waits; but others come meanwhile, who might never end.
    async fn let_all_in(self: &Arc<Self>, peers: Option<&[u32]>, accept: impl Fn() -> io::Result<Accepted>) {
        let ends = Instant::now() + LAST_ADMISSION;
        while Instant::now() < ends {
            match accept() {
                Ok(accepted) => self.let_in(accepted, peers).await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => self.no_connection(&error).await,
            }
        }
    }

    /// Counts what kept a connection from being accepted, tells of it now and then, and waits a moment: running out of
    /// file descriptors passes.
    async fn no_connection(&self, error: &io::Error) {
        // A caller that has left while it waited.
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
            return;
        }
        let proxy = &self.reactors[0].proxy;
        proxy.metrics().failed_accepts.inc();
        if self.may_complain() {
            proxy.accept_failed(error);
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    fn may_complain(&self) -> bool {
        let now = Instant::now();
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        let may = complained.is_none_or(|last| now - last >= BETWEEN_COMPLAINTS);
        if may {
            *complained = Some(now);
        }
        may
    }

    fn seat(self: &Arc<Self>, accepted: Accepted, peers: Option<&[u32]>) {
        let transport = accepted.transport(peers);
        let reactor = (0..self.reactors.len())
            .min_by_key(|index| self.reactors[*index].connections.load(Ordering::Relaxed))
            .expect("a hall has a reactor");
        let Some(seat) = Seat::take(self, reactor) else {
            self.reactors[reactor].proxy.metrics().refused_connections.inc();
            return accepted.refuse(&self.refusal);
        };
        self.reactors[reactor].handle.spawn(seat.serve(accepted, transport));
    }

    /// At the limit the least useful connections are asked to go, the oldest of their kind: without a request yet, then
    /// idle, then those whose caller has kept them waiting for long, then those who have just come. As many as are too
    /// many for one more: of those who were asked before some may have stayed. `false` where all are of use.
    fn make_room(&self, seated: &BTreeMap<u64, Arc<Clock>>) -> bool {
        if seated.len() < self.limit {
            return true;
        }
        let staying = seated.iter().filter(|(_, clock)| !clock.is_going());
        let mut ranked: Vec<_> = staying.map(|(id, clock)| (clock.usefulness(), *id, clock)).collect();
        let Some(excess) = ranked.len().checked_sub(self.limit) else { return true };
        ranked.select_nth_unstable_by_key(excess, |(usefulness, id, _)| (*usefulness, *id));
        let going = ranked[..=excess].iter().filter(|(usefulness, ..)| *usefulness < Usefulness::Busy);
        going.inspect(|(.., clock)| clock.evict()).count() > 0
    }

    /// Waits until those who were asked to go have gone or stay, where they are more than a few: the others wait in the
    /// kernel's queue.
    async fn room(&self) {
        for _ in 0..ROOM_LOOKS {
            if !self.asks_for_room() {
                break;
            }
            tokio::time::sleep(ROOM_LOOK).await;
        }
    }

    /// Whether there is something to wait for: those who were asked to go, or are now. Where nobody can go, whoever
    /// comes is refused.
    fn asks_for_room(&self) -> bool {
        let seated = self.lock();
        self.is_full(&seated) && (seated.values().any(|clock| clock.is_going()) || self.make_room(&seated))
    }

    /// Whether those over the limit are as many as may be.
    fn is_full(&self, seated: &BTreeMap<u64, Arc<Clock>>) -> bool {
        seated.len() >= self.limit + self.limit / 8 + FEW
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
        if hall.is_full(&seated) || !hall.make_room(&seated) {
            return None;
        }
        seated.insert(id, Arc::clone(&clock));
        hall.count(&seated);
        drop(seated);
        hall.reactors[reactor].connections.fetch_add(1, Ordering::Relaxed);
        proxy.metrics().connections.inc();
        Some(Self { hall: Arc::clone(hall), id, reactor, clock })
    }

    async fn serve(self, accepted: Accepted, transport: Transport) {
        let (proxy, departure) = (self.hall.reactors[self.reactor].proxy.clone(), self.hall.departure.clone());
        let clock = Arc::clone(&self.clock);
        match accepted {
            Accepted::Tcp(stream) => {
                if let Ok(stream) = TcpStream::from_std(stream) {
                    connection::serve(stream, transport, proxy, clock, departure).await;
                }
            }
            Accepted::Unix(stream) => {
                if let Ok(stream) = UnixStream::from_std(stream) {
                    connection::serve(stream, transport, proxy, clock, departure).await;
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
