//! The connections of one generation to one bank that wait for their next request, or the requests that wait for a
//! connection. A short lock around two lists: of connections the newest of our own reactor first, then any; of requests
//! the one that has waited longest. No thread-locals, so that few requests on many cores still meet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use hyper::client::conn::http1::SendRequest;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use super::connector::Established;
use super::counted::Count;
use super::handback::Handback;
use super::{Payload, ReactorId};

/// What waits, and the rules for it.
pub(super) struct Pool {
    waiting: Mutex<Waiting>,
    retired: watch::Sender<Option<Retired>>,
    max_idle: Duration,
    max_age: Duration,
}

/// The end of a pool's use: its certificate or its trust has a successor.
#[derive(Clone, Copy)]
pub(super) struct Retired {
    /// When the last connection is cut that was there by then.
    pub(super) deadline: Instant,
    /// How long a later one has: where nobody has taken its place, some still need it.
    pub(super) grace: Duration,
    /// Whether the same request would find its way through another pool.
    pub(super) replaced: bool,
}

/// A connection between two leases. Dropped, it ends.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Payload>,
    pub(super) count: Arc<Count>,
    pub(super) handback: Arc<Handback>,
    pub(super) born: Instant,
    pub(super) home: ReactorId,
    /// Whether the bank judged our certificate only after the handshake.
    pub(super) unjudged: bool,
    pub(super) served: u64,
    /// Whether it was in a pool.
    pub(super) has_waited: bool,
}

impl Connection {
    /// One that has just been made.
    pub(super) fn new(Established { sender, count, handback, unjudged }: Established, home: ReactorId) -> Self {
        Self { sender, count, handback, unjudged, born: Instant::now(), home, served: 0, has_waited: false }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.handback.give_up();
    }
}

#[derive(Default)]
struct Waiting {
    /// Oldest first. Where there are any, nobody waits who would take one.
    idle: Vec<Idle>,
    /// Each is handed what comes back, whoever has waited longest first.
    queue: VecDeque<oneshot::Sender<Connection>>,
    /// Whether a task looks after them: one at a time, however often the list runs empty.
    pruned: bool,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Waiting {
    /// A place before all others.
    fn first(&mut self) -> oneshot::Receiver<Connection> {
        let (sender, receiver) = oneshot::channel();
        self.queue.push_front(sender);
        receiver
    }

    /// To whoever is next and still there; back where nobody is.
    fn hand_over(&mut self, mut connection: Connection) -> Option<Connection> {
        while let Some(next) = self.queue.pop_front() {
            match next.send(connection) {
                Ok(()) => return None,
                Err(back) => connection = back,
            }
        }
        Some(connection)
    }
}

impl Pool {
    /// `max_idle` and `max_age` hold for each connection; a background task closes those past it.
    pub(super) fn new(max_idle: Duration, max_age: Duration) -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::default(), retired: watch::Sender::new(None), max_idle, max_age })
    }

    /// Closes what waits, and keeps nothing from now on. What is leased has until the deadline.
    pub(super) fn retire(&self, retired: Retired) {
        // Set under the lock: whoever gives a connection back sees it, or is seen.
        let idle = {
            let mut waiting = self.lock();
            self.retired.send_replace(Some(retired));
            std::mem::take(&mut waiting.idle)
        };
        drop(idle);
    }

    /// Whether requests are to go through another pool.
    pub(super) fn is_replaced(&self) -> bool {
        self.retired.borrow().is_some_and(|retired| retired.replaced)
    }

    /// Whether its connections are being cut.
    pub(super) fn is_over(&self) -> bool {
        self.retired.borrow().is_some_and(|retired| retired.deadline <= Instant::now())
    }

    /// Ends at the deadline of a pool that was retired, and never of another.
    pub(super) fn cut(&self) -> impl Future<Output = ()> + Send + 'static {
        let (mut retired, born) = (self.retired.subscribe(), Instant::now());
        async move {
            let deadline = match retired.wait_for(Option::is_some).await {
                Ok(retired) => retired.map(|retired| retired.deadline.max(born + retired.grace)),
                Err(_) => None,
            };
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                // The pool is gone, and nobody can retire it any more.
                None => std::future::pending().await,
            }
        }
    }

    /// The newest live connection of this reactor, or else of any; where there is none, the last place among those who
    /// wait for one.
    pub(super) fn take(self: &Arc<Self>, reactor: ReactorId) -> Result<Connection, Place> {
        let mut waiting = self.lock();
        if let Some(connection) = self.newest(&mut waiting.idle, reactor) {
            return Ok(connection);
        }
        let (sender, receiver) = oneshot::channel();
        waiting.queue.push_back(sender);
        Err(Place { pool: Arc::clone(self), reactor: Some(reactor), receiver: Some(receiver) })
    }

    /// The first place among those who wait, for somebody whose turn has been: it is told of what comes back, and takes
    /// nothing that has been idle.
    pub(super) fn place_first(self: &Arc<Self>) -> Place {
        Place { pool: Arc::clone(self), reactor: None, receiver: Some(self.lock().first()) }
    }

    fn newest(&self, idle: &mut Vec<Idle>, reactor: ReactorId) -> Option<Connection> {
        let now = Instant::now();
        loop {
            let own = idle.iter().rposition(|idle| idle.connection.home == reactor);
            let newest = own.or_else(|| idle.len().checked_sub(1))?;
            let found = idle.remove(newest);
            if self.keeps(&found, now) && found.connection.sender.is_ready() {
                return Some(found.connection);
            }
        }
    }

    /// Takes a connection in that is ready for the next request: its last answer has ended, or it has had none.
    pub(super) fn put(self: &Arc<Self>, mut connection: Connection) {
        connection.has_waited = true;
        // Whoever distrusts our certificate says so unasked: an alert from here on may speak of a request that was
        // read.
        connection.unjudged = false;
        let since = Instant::now();
        if since - connection.born >= self.max_age {
            return;
        }
        let mut waiting = self.lock();
        if self.retired.borrow().is_some() {
            return;
        }
        let Some(connection) = waiting.hand_over(connection) else { return };
        waiting.idle.push(Idle { connection, since });
        if !std::mem::replace(&mut waiting.pruned, true) {
            tokio::spawn(prune(Arc::downgrade(self), self.max_idle));
        }
    }

    fn keeps(&self, idle: &Idle, now: Instant) -> bool {
        now - idle.since < self.max_idle && now - idle.connection.born < self.max_age
    }

    /// How many wait, live or not.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.lock().idle.len()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A list of connections is whole after any panic: nothing is written in halves.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's place among those who wait for a connection to come back.
pub(super) struct Place {
    pool: Arc<Pool>,
    /// Of whoever takes what is idle.
    reactor: Option<ReactorId>,
    /// `None` once it was served.
    receiver: Option<oneshot::Receiver<Connection>>,
}

impl Place {
    /// Waits for its turn. Asked once.
    pub(super) async fn served(&mut self) -> Connection {
        loop {
            let receiver = self.receiver.as_mut().expect("it is served once");
            let handed = receiver.await.ok().filter(|connection| connection.sender.is_ready());
            if let Some(connection) = handed.or_else(|| self.wait_again()) {
                self.receiver = None;
                return connection;
            }
        }
    }

    /// What was handed over has ended on its way here: it is still this one's turn.
    fn wait_again(&mut self) -> Option<Connection> {
        let mut waiting = self.pool.lock();
        if let Some(reactor) = self.reactor
            && let Some(connection) = self.pool.newest(&mut waiting.idle, reactor)
        {
            return Some(connection);
        }
        self.receiver = Some(waiting.first());
        None
    }
}

impl Drop for Place {
    /// What has come at the last moment is the next one's.
    fn drop(&mut self) {
        let Some(mut receiver) = self.receiver.take() else { return };
        receiver.close();
        match receiver.try_recv() {
            // Without a runtime the process is at its end.
            Ok(connection) if Handle::try_current().is_ok() => self.pool.put(connection),
            Ok(_) => {}
            Err(_) => self.pool.lock().queue.retain(|waiter| !waiter.is_closed()),
        }
    }
}

/// Closes what has been idle for too long, until the list is empty or the pool is gone.
async fn prune(pool: Weak<Pool>, max_idle: Duration) {
    loop {
        tokio::time::sleep((max_idle / 4).max(SHORTEST_LOOK)).await;
        let Some(pool) = pool.upgrade() else { return };
        let now = Instant::now();
        let mut waiting = pool.lock();
        waiting.idle.retain(|idle| pool.keeps(idle, now) && !idle.connection.sender.is_closed());
        if waiting.idle.is_empty() {
            waiting.pruned = false;
            return;
        }
    }
}

/// However short the idle time, looking costs next to nothing.
const SHORTEST_LOOK: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::handback;
    use super::*;

    const HOME: ReactorId = ReactorId(0);
    const LONG: Duration = Duration::from_secs(60);

    async fn connection() -> Connection {
        let (connection, bank, driver) = handback::tests::connection().await;
        tokio::spawn(async move {
            let _bank = bank;
            driver.await
        });
        connection
    }

    /// Its alerts prove nothing any more, or a payment would be sent once more that the bank has read.
    #[tokio::test]
    async fn a_connection_that_has_waited_is_judged_and_reused() {
        let pool = Pool::new(LONG, LONG);
        let mut fresh = connection().await;
        fresh.unjudged = true;
        assert!(!fresh.has_waited);
        pool.put(fresh);
        let Ok(waited) = pool.take(HOME) else { panic!("it is there") };
        assert_eq!((waited.unjudged, waited.has_waited, waited.served), (false, true, 0));
    }

    /// The newest, and of one's own reactor where there is one: any other costs two hops between threads.
    #[tokio::test]
    async fn what_is_idle_is_taken_by_its_own_reactor_first() {
        let (pool, away) = (Pool::new(LONG, LONG), ReactorId(1));
        for (home, served) in [(HOME, 1), (HOME, 2), (away, 3), (away, 4)] {
            let mut connection = connection().await;
            (connection.home, connection.served) = (home, served);
            pool.put(connection);
        }
        let taken = [HOME, away, HOME, HOME].map(|reactor| pool.take(reactor).map(|taken| taken.served).ok());
        assert_eq!(taken, [Some(2), Some(4), Some(1), Some(3)]);
    }

    /// Six wait, and connections come back two and three at a time.
    #[tokio::test]
    async fn who_has_waited_longest_is_next() {
        let pool = Pool::new(LONG, LONG);
        let served: Arc<Mutex<Vec<usize>>> = Arc::default();
        for waits in 0..6 {
            let Err(mut place) = pool.take(HOME) else { panic!("there is none") };
            let served = Arc::clone(&served);
            tokio::spawn(async move {
                let connection = place.served().await;
                served.lock().expect("no panic").push(waits);
                std::future::pending::<()>().await;
                drop(connection);
            });
        }
        for count in [2, 1, 3] {
            for _ in 0..count {
                pool.put(connection().await);
            }
            assert!(pool.take(HOME).is_err(), "it is somebody's who has waited");
            tokio::task::yield_now().await;
        }
        assert_eq!(*served.lock().expect("no panic"), [0, 1, 2, 3, 4, 5]);
        pool.put(connection().await);
        assert!(pool.take(HOME).is_ok(), "nobody waits any more");
    }

    #[tokio::test]
    async fn whoever_has_failed_is_next() {
        let pool = Pool::new(LONG, LONG);
        pool.put(connection().await);
        let mut again = pool.place_first();
        assert!(pool.take(HOME).is_ok(), "what was idle is for the others");
        let Err(mut other) = pool.take(HOME) else { panic!("there is none") };
        let mut again_first = pool.place_first();
        for place in [&mut again_first, &mut again, &mut other] {
            pool.put(connection().await);
            tokio::time::timeout(LONG / 30, place.served()).await.expect("its turn");
        }
    }

    /// Gone before it has looked at what it was handed, or long before.
    #[tokio::test]
    async fn what_was_meant_for_somebody_who_left_is_the_next_one_s() {
        let pool = Pool::new(LONG, LONG);
        let [Err(first), Err(second), Err(mut third)] = [(); 3].map(|()| pool.take(HOME)) else {
            panic!("there is none")
        };
        drop(second);
        assert_eq!(pool.lock().queue.len(), 2, "nothing is left of it");
        pool.put(connection().await);
        drop(first);
        tokio::time::timeout(LONG / 30, third.served()).await.expect("the third's turn");
        let Err(last) = pool.take(HOME) else { panic!("there is none") };
        pool.put(connection().await);
        drop(last);
        assert!(pool.take(HOME).is_ok(), "nobody else waits");
    }

    #[tokio::test]
    async fn what_has_ended_on_its_way_costs_nobody_a_turn() {
        let pool = Pool::new(LONG, LONG);
        let [Err(mut first), Err(mut second)] = [(); 2].map(|()| pool.take(HOME)) else { panic!("there is none") };
        let ends = async || {
            let (connection, bank, driver) = handback::tests::connection().await;
            pool.put(connection);
            drop(bank);
            driver.await.expect("it ends");
        };
        ends().await;
        let mut served = std::pin::pin!(first.served());
        assert!(served.as_mut().now_or_never().is_none());
        pool.put(connection().await);
        tokio::time::timeout(LONG / 30, served).await.expect("still its turn");
        ends().await;
        pool.put(connection().await);
        assert_eq!(pool.idle(), 1, "nobody else waited");
        tokio::time::timeout(LONG / 30, second.served()).await.expect("then the second's, which looks at what is idle");
    }
}
