//! How a connection gets back to its pool when its answer has ended, or nothing was sent on it: it is left for the task
//! that drives it. Must not know what a pool does with it.

use std::future::poll_fn;
use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures_util::task::AtomicWaker;
use tokio::time::timeout;

use super::ReactorId;
use super::connector::TURNAROUND;
use super::pool::{Connection, Pool};

/// What the task that drives a connection and whoever has leased it share.
#[derive(Default)]
pub(super) struct Handback {
    left: Mutex<Left>,
    driver: AtomicWaker,
}

#[derive(Default)]
enum Left {
    #[default]
    Nothing,
    Connection(Connection, Arc<Pool>),
    /// Nobody has it any more.
    GivenUp,
    /// Nobody takes it any more.
    TheDriverEnded,
}

impl Handback {
    /// Leaves a connection that is not in use any more, on the reactor of `reactor`.
    pub(super) fn leave(connection: Connection, pool: Arc<Pool>, reactor: ReactorId) {
        if connection.home != reactor {
            // Its driver may be at the end of a long turn of another thread's.
            return put_when_ready(connection, pool);
        }
        let handback = Arc::clone(&connection.handback);
        {
            let mut left = handback.lock();
            if matches!(*left, Left::Nothing) {
                *left = Left::Connection(connection, pool);
            }
        }
        handback.driver.wake();
    }

    /// For when a connection is dropped. hyper closes it by itself, but writes first what it holds of a request that
    /// was under way: to a bank that takes nothing, for as long as that is so.
    pub(super) fn give_up(&self) {
        let mut left = self.lock();
        if matches!(*left, Left::Nothing) {
            *left = Left::GivenUp;
        }
        drop(left);
        self.driver.wake();
    }

    /// Drives a connection to its end, and puts it back whenever it was left. Always after its turn at the socket:
    /// whatever the system has told by then, that the bank has closed without a word included, is noticed before a
    /// payment is sent. Given up, it has a moment to end by itself.
    pub(super) fn drive(self: Arc<Self>, http: impl Future) -> impl Future<Output = ()> {
        // The connection holds what holds it: however this ends, begun or not, they part.
        let driver = Driver(self);
        async move {
            let mut http = pin!(http);
            let driven = poll_fn(|cx| {
                driver.0.driver.register(cx.waker());
                if http.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(false);
                }
                if driver.0.put_back() { Poll::Ready(true) } else { Poll::Pending }
            });
            if driven.await {
                let _ = timeout(TURNAROUND, http).await;
            }
        }
    }

    /// Whether it was given up instead.
    fn put_back(&self) -> bool {
        // The pool takes or drops it with nothing locked here.
        let left = mem::take(&mut *self.lock());
        match left {
            Left::Connection(connection, pool) if connection.sender.is_ready() => pool.put(connection),
            Left::Connection(connection, pool) => put_when_ready(connection, pool),
            Left::GivenUp => return true,
            Left::Nothing | Left::TheDriverEnded => {}
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, Left> {
        // It is one of four whole states after any panic.
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In a task even where it is ready: its driver may have its turn meanwhile.
fn put_when_ready(mut connection: Connection, pool: Arc<Pool>) {
    tokio::spawn(async move {
        let ready = timeout(TURNAROUND, poll_fn(|cx| connection.sender.poll_ready(cx))).await;
        if matches!(ready, Ok(Ok(()))) {
            pool.put(connection);
        }
    });
}

struct Driver(Arc<Handback>);

impl Drop for Driver {
    fn drop(&mut self) {
        let left = mem::replace(&mut *self.0.lock(), Left::TheDriverEnded);
        drop(left);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use hyper_util::rt::TokioIo;
    use tokio::io::DuplexStream;
    use tokio::task::{JoinHandle, yield_now};

    use super::super::Payload;
    use super::super::connector::Established;
    use super::*;

    const HOME: ReactorId = ReactorId(0);
    const LONG: Duration = Duration::from_secs(60);

    /// A connection, its other end, and the task that drives it.
    pub(in crate::upstream) async fn connection() -> (Connection, DuplexStream, JoinHandle<()>) {
        let (ours, theirs) = tokio::io::duplex(64);
        let (sender, http) =
            hyper::client::conn::http1::handshake(TokioIo::new(ours)).await.expect("nothing is said yet");
        let handback = Arc::new(Handback::default());
        let driver = tokio::spawn(Arc::clone(&handback).drive(http));
        yield_now().await;
        let established = Established { sender, count: Arc::default(), handback, unjudged: false };
        (Connection::new(established, HOME), theirs, driver)
    }

    #[tokio::test]
    async fn what_is_left_is_put_back() {
        let pool = Pool::new(LONG, LONG);
        let (connection, _bank, _driver) = connection().await;
        Handback::leave(connection, Arc::clone(&pool), HOME);
        assert_eq!(pool.idle(), 0, "nobody has looked at its socket yet");
        yield_now().await;
        let Ok(connection) = pool.take(HOME) else { panic!("it is there") };
        Handback::leave(connection, Arc::clone(&pool), HOME);
        yield_now().await;
        assert!(pool.take(HOME).is_ok(), "and again");
    }

    #[tokio::test]
    async fn what_the_bank_has_closed_is_not_put_back() {
        let pool = Pool::new(LONG, LONG);
        let (connection, bank, _driver) = connection().await;
        drop(bank);
        Handback::leave(connection, Arc::clone(&pool), HOME);
        yield_now().await;
        assert_eq!(pool.idle(), 0, "a payment would be sent into it");
    }

    /// No turn of the driver's is waited for: it may be on a thread that is busy.
    #[tokio::test]
    async fn what_is_left_on_another_reactor_is_put_back_there() {
        let pool = Pool::new(LONG, LONG);
        let (connection, _bank, driver) = connection().await;
        let handback = Arc::clone(&connection.handback);
        Handback::leave(connection, Arc::clone(&pool), ReactorId(1));
        assert!(matches!(*handback.lock(), Left::Nothing));
        yield_now().await;
        assert!(pool.take(HOME).is_ok());
        drop(driver);
    }

    /// Also where the bank reads nothing: hyper has something to write first.
    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_ends() {
        let (mut connection, _bank, driver) = connection().await;
        let mut request = http::Request::new(Payload::default());
        request.headers_mut().insert(
            http::header::HOST,
            http::HeaderValue::from_static("a-name-that-is-longer-than-what-the-pipe-of-this-test-holds.example"),
        );
        assert!(timeout(TURNAROUND, connection.sender.try_send_request(request)).await.is_err(), "it is written");
        drop(connection);
        yield_now().await;
        assert!(!driver.is_finished(), "it ends by itself: this test shows nothing");
        assert!(timeout(2 * TURNAROUND, driver).await.is_ok());
    }

    #[tokio::test]
    async fn what_nobody_drives_is_let_go() {
        let pool = Pool::new(LONG, LONG);
        let unbegun = Arc::new(Handback::default());
        drop(Arc::clone(&unbegun).drive(std::future::pending::<()>()));
        assert!(matches!(*unbegun.lock(), Left::TheDriverEnded));
        for leaves_first in [true, false] {
            let (connection, _bank, driver) = connection().await;
            let handback = Arc::downgrade(&connection.handback);
            if leaves_first {
                Handback::leave(connection, Arc::clone(&pool), HOME);
                driver.abort();
                let _ = driver.await;
            } else {
                driver.abort();
                let _ = driver.await;
                Handback::leave(connection, Arc::clone(&pool), HOME);
            }
            assert!(handback.upgrade().is_none(), "connection and driver hold each other");
        }
    }
}
