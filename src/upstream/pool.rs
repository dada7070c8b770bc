//! The connections of one generation to one bank that wait for their next request. A short lock around a list:
//! newest of our own reactor first, then any. No thread-locals, so that few requests on many cores still meet.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use hyper::client::conn::http1::SendRequest;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use super::connector::Established;
use super::counted::Count;
use super::handback::Handback;
use super::{Payload, ReactorId};

/// The connections that wait, and the rules for them.
pub(super) struct Pool {
    waiting: Mutex<Waiting>,
    returned: Notify,
    /// Requests that wait for a connection to come back.
    queue: AtomicUsize,
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

/// A connection between two leases.
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

#[derive(Default)]
struct Waiting {
    /// Oldest first.
    idle: Vec<Idle>,
    /// Whether a task looks after them: one at a time, however often the list runs empty.
    pruned: bool,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    /// `max_idle` and `max_age` hold for each connection; a background task closes those past it.
    pub(super) fn new(max_idle: Duration, max_age: Duration) -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::default(),
            returned: Notify::new(),
            queue: AtomicUsize::new(0),
            retired: watch::Sender::new(None),
            max_idle,
            max_age,
        })
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

    /// The same, for somebody who has not waited: those who do come first, or a few callers would keep all connections
    /// among themselves.
    pub(super) fn take_unless_awaited(&self, reactor: ReactorId) -> Option<Connection> {
        if self.queue.load(Ordering::Acquire) > 0 { None } else { self.take(reactor) }
    }

    /// The newest live connection of this reactor, or else of any.
    pub(super) fn take(&self, reactor: ReactorId) -> Option<Connection> {
        let now = Instant::now();
        let idle = &mut self.lock().idle;
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
        // Whoever distrusts our certificate says so unasked: an alert from here on may speak of a request that was read.
        connection.unjudged = false;
        let idle = Idle { connection, since: Instant::now() };
        if idle.since - idle.connection.born < self.max_age {
            let mut waiting = self.lock();
            if self.retired.borrow().is_some() {
                return;
            }
            waiting.idle.push(idle);
            if !std::mem::replace(&mut waiting.pruned, true) {
                tokio::spawn(prune(Arc::downgrade(self), self.max_idle));
            }
        }
        self.returned.notify_one();
    }

    /// A place among those who wait for [`Pool::returned`].
    pub(super) fn place(&self) -> Place<'_> {
        self.queue.fetch_add(1, Ordering::AcqRel);
        // Several may have come back since somebody looked, and all but one untold.
        self.tell_of_idle();
        Place(self)
    }

    /// Whoever waits longest is told that there is a connection, if there is one.
    fn tell_of_idle(&self) {
        if !self.lock().idle.is_empty() {
            self.returned.notify_one();
        }
    }

    /// Waits until a connection may have come back, in the order of asking. One that comes back while nobody waits is
    /// told to the next who does.
    pub(super) fn returned(&self) -> Notified<'_> {
        self.returned.notified()
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

/// A request that waits for a connection to come back.
pub(super) struct Place<'a>(&'a Pool);

impl Drop for Place<'_> {
    /// Whoever came meanwhile has queued, though more may have come back than one.
    fn drop(&mut self) {
        let others = self.0.queue.fetch_sub(1, Ordering::AcqRel) > 1;
        if others {
            self.0.tell_of_idle();
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
        let waited = pool.take(HOME).expect("it is there");
        assert_eq!((waited.unjudged, waited.has_waited, waited.served), (false, true, 0));
    }

    #[tokio::test]
    async fn who_waits_comes_before_who_comes() {
        let pool = Pool::new(LONG, LONG);
        let waits = pool.place();
        pool.put(connection().await);
        assert!(pool.take_unless_awaited(HOME).is_none(), "it is somebody's who has waited");
        pool.returned().await;
        assert!(pool.take(HOME).is_some());
        drop(waits);
        pool.put(connection().await);
        assert!(pool.take_unless_awaited(HOME).is_some(), "nobody waits any more");
    }

    /// Two come back, of which one is told; the one who is told leaves before another one queues, who has looked already.
    #[tokio::test]
    async fn nobody_queues_beside_a_connection() {
        let pool = Pool::new(LONG, LONG);
        let first = pool.place();
        pool.put(connection().await);
        pool.put(connection().await);
        assert!(pool.take_unless_awaited(HOME).is_none(), "it is somebody's who has waited");
        pool.returned().await;
        assert!(pool.take(HOME).is_some());
        drop(first);
        let _second = pool.place();
        tokio::time::timeout(LONG / 30, pool.returned()).await.expect("told of the other one");
        assert!(pool.take(HOME).is_some());
    }

    #[tokio::test]
    async fn what_came_back_while_nobody_listened_reaches_all_who_wait() {
        let pool = Pool::new(LONG, LONG);
        let (first, _second) = (pool.place(), pool.place());
        pool.put(connection().await);
        pool.put(connection().await);
        pool.returned().await;
        assert!(pool.take(HOME).is_some());
        drop(first);
        tokio::time::timeout(LONG / 30, pool.returned()).await.expect("the second is told of the other one");
        assert!(pool.take(HOME).is_some());
    }
}
