//! Handshakes whose signature a token makes, aside of the reactors: rustls signs in the middle of one and its thread
//! stands still meanwhile. One thread for each upstream: a slow token keeps no other bank waiting, and one that hangs
//! no more than this thread. Must not know TLS.
//!
//! Only the handshake's future is polled here. Its socket was registered with the driver of the reactor that connected
//! it, and stays so: a tokio socket is bound to the driver and not to who polls it. Readiness is noted by the reactor's
//! driver, in a cell that both threads share, and wakes whichever task looked last; the handshake's is woken here, and
//! once the stream is handed back the first look of the connection's own task takes the waker's place. So nothing of a
//! finished stream is left here, this thread needs no driver, and may end before any stream does. Should the reactor go
//! first, the socket's next look is an error, as it is for whoever else has one of its sockets.

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::{Duration, Instant};

use thiserror::Error as ThisError;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::identity::signing_until;

/// The thread of one upstream.
pub(super) struct Aside {
    runtime: Handle,
    places: Arc<Semaphore>,
    capacity: usize,
    work: Arc<Mutex<Work>>,
    stop: Arc<Notify>,
}

/// What the thread has spent in handshakes. Each is a millisecond or two; what is more was spent waiting for the token.
#[derive(Default)]
struct Work {
    done: Duration,
    since: Option<Instant>,
}

impl Work {
    fn total(&self) -> Duration {
        self.done + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Aside {
    /// Starts the thread. At most `capacity` handshakes are on it at a time.
    pub(super) fn start(capacity: usize) -> io::Result<Self> {
        let (ready, started) = mpsc::channel();
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        std::thread::Builder::new().name("token-tls".into()).spawn(move || serve(&ready, &stopped))?;
        let runtime = take(&started)?;
        let work = Arc::default();
        Ok(Self { runtime, places: Arc::new(Semaphore::new(capacity)), capacity, work, stop })
    }

    /// Runs a handshake to its end, `limit` at most. Given up, or its caller gone, it is dropped as soon as the thread
    /// is free, and asks nothing of the token any more.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        handshake: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Unfinished> {
        let (began, before) = (Instant::now(), self.work().total());
        let ended = timeout(limit, async {
            let place = self.place().await?;
            let task = self.runtime.spawn(watched(Arc::clone(&self.work), began + limit, handshake, place));
            let _given_up = Abort(task.abort_handle());
            task.await.map_err(|_| Unfinished::Key(KeyFault::Gone))
        });
        ended.await.unwrap_or_else(|_| {
            // Who is late: the token, if the thread stood still for most of the time, or else the bank.
            let stood = self.work().total() - before;
            Err(if stood > limit / 2 { Unfinished::Key(KeyFault::Silent(limit)) } else { Unfinished::Late })
        })
    }

    /// Whether a handshake would be refused now: all places are taken, and the thread stands still. Otherwise it is the
    /// banks that are slow, and a place will be free in a moment.
    pub(super) fn admits(&self) -> Result<(), KeyFault> {
        let full = self.places.available_permits() == 0 && self.work().since.is_some();
        if full { Err(KeyFault::Busy(self.capacity)) } else { Ok(()) }
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit, Unfinished> {
        let mut place = pin!(Arc::clone(&self.places).acquire_owned());
        loop {
            self.admits().map_err(Unfinished::Key)?;
            // Those who come at once find the thread idle: whether it is stays to be seen.
            if let Ok(place) = timeout(LOOK, &mut place).await {
                return Ok(place.expect("the places are never closed"));
            }
        }
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        lock(&self.work)
    }
}

impl Drop for Aside {
    /// The thread ends once it is free. Nobody waits for it: it may hang in the token's module.
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

/// How often who waits for a place looks whether it is worth while: more than handshakes take, less than callers
/// notice.
const LOOK: Duration = Duration::from_millis(50);

/// Drives a handshake, and counts what that takes.
async fn watched<T>(
    work: Arc<Mutex<Work>>,
    deadline: Instant,
    handshake: impl Future<Output = T>,
    _place: OwnedSemaphorePermit,
) -> T {
    let mut handshake = pin!(handshake);
    let look = |cx: &mut Context<'_>| {
        let _working = Working::begin(&work);
        signing_until(deadline, || handshake.as_mut().poll(cx))
    };
    poll_fn(look).await
}

fn serve(ready: &Sender<io::Result<Handle>>, stopped: &Notify) {
    // Neither sockets nor timers are made here.
    let runtime = match Builder::new_current_thread().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    if ready.send(Ok(runtime.handle().clone())).is_ok() {
        runtime.block_on(stopped.notified());
    }
}

fn take(started: &Receiver<io::Result<Handle>>) -> io::Result<Handle> {
    started.recv().map_err(|_| io::Error::other("the thread of the handshakes ended at its start"))?
}

/// One look of the thread at a handshake.
struct Working<'a>(&'a Mutex<Work>);

impl<'a> Working<'a> {
    fn begin(work: &'a Mutex<Work>) -> Self {
        lock(work).since = Some(Instant::now());
        Self(work)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let mut work = lock(self.0);
        work.done = work.total();
        work.since = None;
    }
}

fn lock(work: &Mutex<Work>) -> MutexGuard<'_, Work> {
    // Two figures, whole after any panic.
    work.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends a handshake that nobody waits for.
struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why a handshake has no end.
#[derive(Debug)]
pub(super) enum Unfinished {
    /// The bank's fault.
    Late,
    /// The token's.
    Key(KeyFault),
}

/// Why the QWAC's key gave no signature.
#[derive(Debug, ThisError)]
pub enum KeyFault {
    /// As many handshakes as may are on their way to it.
    #[error("{0} handshakes wait for it already")]
    Busy(usize),
    /// It kept the handshake, or those before it, waiting.
    #[error("it did not sign within {0:?}")]
    Silent(Duration),
    /// What it said.
    #[error("{0}")]
    Refused(#[source] Arc<dyn Error + Send + Sync>),
    /// A fault of ours: a handshake has panicked.
    #[error("the thread that waits for it has ended")]
    Gone,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    fn key_fault<T>(result: Result<T, Unfinished>) -> Option<KeyFault> {
        match result {
            Err(Unfinished::Key(fault)) => Some(fault),
            _ => None,
        }
    }

    #[tokio::test]
    async fn a_socket_of_this_runtime_is_read_there_and_then_here_again() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut near = tokio::net::TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        let (mut far, _) = listener.accept().await.expect("accepted");
        let aside = Aside::start(1).expect("a thread");
        let reading = async move { (near.read_u8().await.expect("a byte"), std::thread::current().id(), near) };
        let writing = async {
            tokio::time::sleep(LIMIT / 4).await;
            far.write_u8(1).await.expect("written");
        };
        let (read, ()) = tokio::join!(aside.run(LIMIT * 10, reading), writing);
        let (byte, thread, mut near) = read.expect("in time");
        assert_eq!(byte, 1);
        assert_ne!(thread, std::thread::current().id());
        drop(aside);
        let writing = async {
            tokio::time::sleep(LIMIT / 4).await;
            far.write_u8(2).await.expect("written");
        };
        let (byte, ()) = tokio::join!(near.read_u8(), writing);
        assert_eq!(byte.expect("a byte, without that thread"), 2);
    }

    #[tokio::test]
    async fn who_is_late_is_told_and_a_full_queue_refuses_only_while_the_thread_stands_still() {
        let aside = Arc::new(Aside::start(2).expect("a thread"));
        let (one, other) = tokio::join!(aside.run(LIMIT, std::future::pending::<()>()), aside.run(LIMIT, async {}));
        assert!(matches!(one, Err(Unfinished::Late)) && other.is_ok());
        let (ran, released) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let stands = || {
            let (ran, released) = (Arc::clone(&ran), Arc::clone(&released));
            async move {
                ran.fetch_add(1, Ordering::SeqCst);
                while !released.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        };
        let (one, other, third) = tokio::join!(aside.run(LIMIT, stands()), aside.run(LIMIT, stands()), async {
            tokio::time::sleep(LIMIT / 4).await;
            aside.run(LIMIT, async {}).await
        });
        assert!(matches!(key_fault(one), Some(KeyFault::Silent(LIMIT))));
        assert!(matches!(key_fault(other), Some(KeyFault::Silent(LIMIT))));
        assert!(matches!(key_fault(third), Some(KeyFault::Busy(2))));
        released.store(true, Ordering::SeqCst);
        let began = Instant::now();
        while aside.run(LIMIT, async {}).await.is_err() {
            assert!(began.elapsed() < LIMIT * 50, "it does not go on");
        }
        assert_eq!(ran.load(Ordering::SeqCst), 1, "who has given up is dropped");
        // Telling where a thread has panicked may take it longer.
        let panicked = aside.run(LIMIT * 50, async { panic!("as told") });
        assert!(matches!(key_fault(panicked.await), Some(KeyFault::Gone)));
        assert!(aside.run(LIMIT * 50, async {}).await.is_ok());
    }
}
