//! Keys behind PKCS#11: RSA and EC on P-256 that never leave their token. Own sessions, each on a thread of its own, so
//! that a slow token stalls nobody but those who wait for it. Twin of `ring.rs` in what it signs.
//!
//! A lost token is looked for anew with the next signature. A PIN that was refused once is not tried again until its
//! file says something else: tokens lock themselves after three wrong ones.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::uri::TokenUri;
use super::{Error, Patience, Scheme, TokenSettings};

mod desk;
use desk::{Desk, Permit};

mod door;
use door::Door;

mod fault;
pub use fault::{Fault, Refusal};

mod mechanism;

mod module;
pub(super) use module::leave;

mod station;
use station::Station;

pub(super) struct Key {
    /// At least one.
    schemes: Vec<Scheme>,
    desk: Arc<Desk>,
    jobs: Sender<Job>,
}

/// One message to sign.
struct Job {
    scheme: Scheme,
    message: Vec<u8>,
    answer: oneshot::Sender<Result<Vec<u8>, Error>>,
    permit: Permit,
}

/// The right to one of the sessions.
pub(super) struct Turn {
    key: Arc<Key>,
    permit: Permit,
}

impl Key {
    /// Opens the first session and learns what the key is. Blocks for as long as the token takes, `patience` at most.
    pub(super) fn open(settings: &TokenSettings, patience: Duration) -> Result<Self, Error> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let door = Door::to(&settings.uri);
        let (ready, opened) = channel();
        let opening = Opening::begin(&settings.uri, patience).ok_or(Error::Token(Fault::Silent(patience)))?;
        let first = Station::new(&door);
        start(first, Arc::clone(&queue), Some(First { ready, opening }))?;
        let schemes = opened.recv_timeout(patience).map_err(|_| Error::Token(Fault::Silent(patience)))??;
        for _ in 1..settings.sessions {
            start(Station::new(&door), Arc::clone(&queue), None)?;
        }
        Ok(Self { schemes, desk: Desk::new(settings.sessions, settings.waiting), jobs })
    }

    pub(super) fn scheme(&self) -> Scheme {
        self.schemes[0]
    }

    pub(super) fn schemes(&self) -> Vec<Scheme> {
        self.schemes.clone()
    }

    /// Waits for a session, among a limited number and for no longer than is of use.
    pub(super) async fn turn(self: &Arc<Self>, patience: Patience) -> Result<Turn, Error> {
        let permit = self.desk.turn(patience).await?;
        Ok(Turn { key: Arc::clone(self), permit })
    }
}

impl Turn {
    /// `None`: with the scheme of seals.
    pub(super) fn sign(self, scheme: Option<Scheme>, message: &[u8]) -> oneshot::Receiver<Result<Vec<u8>, Error>> {
        let (answer, signature) = oneshot::channel();
        let scheme = scheme.unwrap_or(self.key.scheme());
        // Nobody works where every thread has panicked: the receiver then says so.
        let _ = self.key.jobs.send(Job { scheme, message: message.to_vec(), answer, permit: self.permit });
        signature
    }
}

fn start(mut station: Station, queue: Arc<Mutex<Receiver<Job>>>, first: Option<First>) -> Result<(), Error> {
    let work = move || {
        if let Some(First { ready, opening }) = first {
            let opened = station.open_at_first().map_err(Error::Token);
            drop(opening);
            let failed = opened.is_err();
            // Who waited for it may have lost patience: then nobody will ever ask for a signature either.
            if ready.send(opened).is_err() || failed {
                return;
            }
        }
        while let Some(Job { scheme, message, answer, mut permit }) = next(&queue) {
            // Whoever has given up meanwhile gets nothing, and costs the token nothing.
            if !answer.is_closed() {
                let signature = station.sign(scheme, &message).map_err(Error::Token);
                if signature.is_ok() {
                    permit.signed();
                }
                let _ = answer.send(signature);
            }
        }
    };
    let thread = std::thread::Builder::new().name("token".into()).spawn(work);
    thread.map(drop).map_err(|error| Error::Token(Fault::Thread(error)))
}

/// The next job; `None` where the key is gone.
fn next(queue: &Mutex<Receiver<Job>>) -> Option<Job> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// What the first station of a key has beside the others: somebody waits for it.
struct First {
    ready: Sender<Result<Vec<Scheme>, Error>>,
    opening: Opening,
}

/// The only attempt to open a key: where a token hangs, further ones would gather threads.
struct Opening(String);

static OPENING: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);

impl Opening {
    /// Waits for an earlier one to end; `None` if it has not within `patience`.
    fn begin(uri: &TokenUri, patience: Duration) -> Option<Self> {
        let (name, began) = (uri.to_string(), Instant::now());
        while !Self::claim(&name) {
            if began.elapsed() >= patience {
                return None;
            }
            std::thread::sleep(LOOK);
        }
        Some(Self(name))
    }

    fn claim(name: &str) -> bool {
        lock(&OPENING).insert(name.to_owned())
    }
}

const LOOK: Duration = Duration::from_millis(5);

impl Drop for Opening {
    fn drop(&mut self) {
        lock(&OPENING).remove(&self.0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these hold is whole after any panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
