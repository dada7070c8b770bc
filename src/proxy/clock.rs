//! The clock of one accepted connection: what it is doing, since when, and until when it may. Shared with whoever has
//! to pick a connection to close. Not sockets.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep};

use super::Timeouts;

/// The states of a connection, and since when.
#[derive(Debug)]
pub(super) struct Clock {
    origin: Instant,
    state: AtomicU8,
    since: AtomicU64,
    under_way: AtomicUsize,
    /// Exchanges in flight that wait for the caller: for its body, or for it to take its answer; and when the last of
    /// them began to.
    waiting: AtomicUsize,
    waiting_since: AtomicU64,
    /// Since when the caller takes no byte that is written.
    blocked_since: AtomicU64,
    /// On HTTP/2: when each exchange in flight began. Empty and never touched on HTTP/1.1, which has one at a time.
    streams: Mutex<BTreeMap<u64, Millis>>,
    /// Whether it speaks HTTP/2, whose control frames are no request heads.
    multiplexed: AtomicBool,
    /// Bytes of answers on HTTP/2 that the caller was given and has not taken.
    in_hand: AtomicU64,
    /// Whether its caller has used up its patience: then nothing on it is worth keeping.
    given_up: AtomicBool,
    /// Wakes the connection for either of the next two.
    asked: Notify,
    asked_to_go: AtomicBool,
    asked_for_no_more: AtomicBool,
    /// Whether the next answer is to be the last: the process is on its way out, or ...
    leaving: AtomicBool,
    /// ... the hall is full.
    crowded: Arc<AtomicBool>,
    last_call: AtomicU64,
    limits: Timeouts,
}

/// For how long somebody who has just come may take to send: those who dial send at once, and their kernel or their
/// library takes a moment.
const NEW: Millis = 100;

/// Milliseconds since a clock's origin.
type Millis = u64;

/// How much would be lost with a connection: the least goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Usefulness {
    /// No request yet.
    None,
    /// Between two requests.
    Idle,
    /// Its caller has kept all its exchanges waiting for long.
    Stuck,
    /// No request yet, and no time to bring one.
    New,
    /// An exchange is in flight.
    Busy,
}

/// A connection without an exchange in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// Nothing has come in yet.
    Fresh = 0,
    /// A part of a head.
    Head = 1,
    /// Between two requests.
    Idle = 2,
    /// At least one exchange in flight.
    Busy = 3,
}

/// What a connection is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// To end at once, because its caller has used up its patience.
    Go,
    /// To end at once, to make room for another.
    MakeRoom,
    /// To take no further stream.
    NoMore,
}

impl Clock {
    /// Begins with the accepted connection. While `crowded`, every answer is the last of its connection.
    pub(super) fn new(limits: Timeouts, crowded: Arc<AtomicBool>) -> Arc<Self> {
        Arc::new(Self {
            origin: Instant::now(),
            state: AtomicU8::new(State::Fresh as u8),
            since: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            waiting_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(NEVER),
            streams: Mutex::default(),
            multiplexed: AtomicBool::new(false),
            in_hand: AtomicU64::new(0),
            given_up: AtomicBool::new(false),
            asked: Notify::new(),
            asked_to_go: AtomicBool::new(false),
            asked_for_no_more: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            crowded,
            last_call: AtomicU64::new(NEVER),
            limits,
        })
    }

    /// Asks the connection to end, which it does unless it is of use by then.
    pub(super) fn evict(&self) {
        self.asked_to_go.store(true, Ordering::Relaxed);
        self.asked.notify_one();
    }

    /// It was asked to end, and has something to do before that.
    pub(super) fn stays(&self) {
        self.asked_to_go.store(false, Ordering::Relaxed);
    }

    /// Whether it was asked to end and has not done so yet.
    pub(super) fn is_going(&self) -> bool {
        self.asked_to_go.load(Ordering::Relaxed)
    }

    /// Waits until the connection is asked to end while it is of no use, or to take no further stream.
    pub(super) async fn asked(&self) -> Ask {
        loop {
            if self.asked_for_no_more.swap(false, Ordering::Relaxed) {
                return Ask::NoMore;
            }
            if self.is_going() {
                // A request may be there that nobody has read: after a turn of the event loop whoever owns the socket
                // has.
                yield_now().await;
                if self.given_up.load(Ordering::Acquire) {
                    return Ask::Go;
                }
                if self.usefulness() < Usefulness::Busy {
                    return Ask::MakeRoom;
                }
                self.asked_to_go.store(false, Ordering::Relaxed);
            }
            self.asked.notified().await;
        }
    }

    /// How much would be lost with the connection.
    pub(super) fn usefulness(&self) -> Usefulness {
        match self.state() {
            _ if self.given_up.load(Ordering::Acquire) => Usefulness::None,
            State::Fresh | State::Head if self.now().saturating_sub(self.since.load(Ordering::Relaxed)) < NEW => {
                Usefulness::New
            }
            State::Fresh | State::Head => Usefulness::None,
            // The end of an answer is still on its way.
            State::Idle if self.blocked_since.load(Ordering::Relaxed) != NEVER => Usefulness::Busy,
            State::Idle => Usefulness::Idle,
            State::Busy if self.is_stuck() => Usefulness::Stuck,
            State::Busy => Usefulness::Busy,
        }
    }

    /// Whether every exchange in flight has waited for the caller for longer than a head may take.
    fn is_stuck(&self) -> bool {
        let since = self.at(self.waiting_since.load(Ordering::Relaxed));
        self.waiting.load(Ordering::Acquire) >= self.under_way.load(Ordering::Acquire)
            && since + self.limits.header <= Instant::now()
    }

    /// The caller takes no byte, or takes them again.
    pub(super) fn blocked(&self, blocked: bool) {
        let was = self.blocked_since.load(Ordering::Relaxed) != NEVER;
        if blocked != was {
            self.blocked_since.store(if blocked { self.now() } else { NEVER }, Ordering::Relaxed);
        }
    }

    /// The answers from here on say that the connection ends with them.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether an answer that goes out now is to be the last.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed) || self.crowded.load(Ordering::Relaxed)
    }

    /// Asks an HTTP/2 connection, whose answers cannot say so, to take no further stream.
    pub(super) fn say_goodbye(&self) {
        self.asked_for_no_more.store(true, Ordering::Relaxed);
        self.asked.notify_one();
    }

    /// A request that has not come in by [`GRACE`] from now is not waited for.
    pub(super) fn last_call(&self) {
        self.leave();
        self.last_call.store(self.now() + millis(GRACE), Ordering::Relaxed);
    }

    pub(super) fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            _ if self.under_way.load(Ordering::Acquire) > 0 => State::Busy,
            0 => State::Fresh,
            1 => State::Head,
            _ => State::Idle,
        }
    }

    pub(super) fn is_multiplexed(&self) -> bool {
        self.multiplexed.load(Ordering::Relaxed)
    }

    pub(super) fn multiplex(&self) {
        self.multiplexed.store(true, Ordering::Relaxed);
    }

    fn now(&self) -> Millis {
        millis(self.origin.elapsed())
    }

    fn enter(&self, state: State) {
        self.since.store(self.now(), Ordering::Relaxed);
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// From here on somebody listens to the caller, whose time begins: a busy reactor may have taken longer to turn to
    /// it than a head may take.
    pub(super) fn start(&self) {
        self.enter(State::Fresh);
    }

    /// The first bytes, already read: the head's time began with the connection.
    pub(super) fn first_bytes_came_in(&self) {
        self.state.store(State::Head as u8, Ordering::Relaxed);
    }

    pub(super) fn bytes_came_in(&self) {
        if self.state() == State::Idle && !self.is_multiplexed() {
            self.enter(State::Head);
        }
    }

    /// When the present state has lasted long enough.
    fn deadline(&self) -> Instant {
        // Whoever minds the answer comes first, and knows which it is.
        let blocked = self.at(self.blocked_since.load(Ordering::Relaxed)) + self.limits.body + LAST_WORDS;
        self.deadline_of_state().min(blocked)
    }

    fn deadline_of_state(&self) -> Instant {
        let since = self.at(self.since.load(Ordering::Relaxed));
        match self.state() {
            State::Fresh | State::Head => {
                (since + self.limits.header).min(self.at(self.last_call.load(Ordering::Relaxed)))
            }
            // Asked to leave, it has nothing to wait for: on HTTP/2 a caller that does not listen would not go.
            State::Idle if self.leaving.load(Ordering::Relaxed) && self.is_multiplexed() => since + GRACE,
            State::Idle => since + self.limits.client_idle,
            // An exchange has a deadline of its own; this one ends a caller that stopped reading its answer.
            State::Busy => self.oldest_stream().unwrap_or(since) + self.limits.exchange + LAST_WORDS,
        }
    }

    fn at(&self, millis: Millis) -> Instant {
        self.origin + Duration::from_millis(millis)
    }

    fn oldest_stream(&self) -> Option<Instant> {
        if !self.is_multiplexed() {
            return None;
        }
        self.lock().values().min().map(|began| self.at(*began))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Millis>> {
        // A map of numbers is whole after any panic.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(NEVER)
}

/// Far from the end of an `Instant`: a century.
const NEVER: Millis = 100 * 365 * 24 * 3600 * 1000;

/// For the answer to an exchange whose deadline has passed, and for whoever is to say why a connection ends.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// For the request of a connection that came in at the very end: callers send within a round trip of connecting.
const GRACE: Duration = Duration::from_secs(1);

/// An exchange in flight on a connection.
pub(super) struct Busy {
    clock: Arc<Clock>,
    stream: u64,
    waits: AtomicBool,
    in_hand: AtomicU64,
}

impl Busy {
    pub(super) fn new(clock: &Arc<Clock>) -> Self {
        let mut stream = 0;
        if clock.is_multiplexed() {
            let mut streams = clock.lock();
            stream = streams.last_key_value().map_or(0, |(last, _)| last + 1);
            streams.insert(stream, clock.now());
        }
        if clock.under_way.fetch_add(1, Ordering::AcqRel) == 0 {
            clock.enter(State::Idle);
        }
        Self { clock: Arc::clone(clock), stream, waits: AtomicBool::new(false), in_hand: AtomicU64::new(0) }
    }

    /// Another one on the same connection, that waits for its caller from the start: what he still sends begins no
    /// request.
    pub(super) fn beside(&self) -> Self {
        let busy = Self::new(&self.clock);
        busy.waits();
        busy
    }

    pub(super) fn is_multiplexed(&self) -> bool {
        self.clock.is_multiplexed()
    }

    /// The caller was given so many bytes, and has taken those before. Returns what its connection has in hand in all.
    pub(super) fn hands(&self, bytes: u64) -> u64 {
        let before = self.in_hand.swap(bytes, Ordering::AcqRel);
        self.clock.in_hand.fetch_add(bytes, Ordering::AcqRel);
        self.clock.in_hand.fetch_sub(before, Ordering::AcqRel) - before
    }

    /// The exchange waits for its caller from here on.
    pub(super) fn waits(&self) {
        if !self.waits.swap(true, Ordering::Relaxed) {
            // Before it is counted: all wait since the last one began to.
            self.clock.waiting_since.store(self.clock.now(), Ordering::Relaxed);
            self.clock.waiting.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The caller has done its part.
    pub(super) fn goes_on(&self) {
        if self.waits.swap(false, Ordering::Relaxed) {
            self.clock.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Busy {
    /// Ends the connection too: at once, or on HTTP/2 once the other exchanges on it have ended. What HTTP/2 still
    /// holds of this one goes with the connection.
    pub(super) fn hang_up(self) {
        let clock = Arc::clone(&self.clock);
        drop(self);
        if clock.is_multiplexed() {
            clock.leave();
            clock.say_goodbye();
        } else {
            clock.given_up.store(true, Ordering::Release);
            clock.evict();
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.goes_on();
        self.hands(0);
        if self.clock.is_multiplexed() {
            self.clock.lock().remove(&self.stream);
        }
        self.clock.enter(State::Idle);
        self.clock.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Ends when the clock's present state has lasted too long. Polled whenever the connection is, it looks at the clock
/// anew each time, and touches its timer only where the new deadline is the earlier one.
pub(super) struct Expiry<'a> {
    clock: &'a Clock,
    sleep: Pin<Box<Sleep>>,
}

impl<'a> Expiry<'a> {
    pub(super) fn of(clock: &'a Clock) -> Self {
        Self { clock, sleep: Box::pin(tokio::time::sleep_until(clock.deadline())) }
    }
}

impl Future for Expiry<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let deadline = self.clock.deadline();
            if deadline < self.sleep.deadline() {
                self.sleep.as_mut().reset(deadline);
            }
            ready!(self.sleep.as_mut().poll(cx));
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const LIMITS: Timeouts = Timeouts {
        header: Duration::from_secs(10),
        body: Duration::from_secs(30),
        body_total: Duration::from_secs(300),
        client_idle: Duration::from_secs(600),
        seal: Duration::from_secs(2),
        exchange: Duration::from_secs(60),
    };

    fn clock() -> Arc<Clock> {
        Clock::new(LIMITS, Arc::default())
    }

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    fn seconds_left(clock: &Clock) -> f64 {
        (clock.deadline() - Instant::now()).as_secs_f64().round()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_from_its_first_byte() {
        let clock = clock();
        pass(4).await;
        clock.first_bytes_came_in();
        assert_eq!(
            (clock.state(), seconds_left(&clock)),
            (State::Head, 6.0),
            "the first from the connection's beginning"
        );
        drop(Busy::new(&clock));
        assert_eq!((clock.state(), seconds_left(&clock)), (State::Idle, 600.0));
        pass(100).await;
        clock.bytes_came_in();
        pass(1).await;
        clock.bytes_came_in();
        assert_eq!((clock.state(), seconds_left(&clock)), (State::Head, 9.0), "further bytes win no time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_nobody_reads_does_not_live_on_the_others() {
        let clock = clock();
        clock.multiplex();
        let stalled = Busy::new(&clock);
        for _ in 0..5 {
            pass(10).await;
            drop(Busy::new(&clock));
        }
        assert_eq!((clock.state(), seconds_left(&clock)), (State::Busy, 12.0));
        let other = Busy::new(&clock);
        drop(stalled);
        assert_eq!(seconds_left(&clock), 62.0);
        drop(other);
        assert_eq!((clock.state(), seconds_left(&clock)), (State::Idle, 600.0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_stuck_once_all_on_it_have_waited_for_long() {
        let clock = clock();
        clock.multiplex();
        let (first, second) = (Busy::new(&clock), Busy::new(&clock));
        first.waits();
        pass(11).await;
        assert_eq!(clock.usefulness(), Usefulness::Busy, "the second is with the bank");
        second.waits();
        first.goes_on();
        drop(first);
        pass(9).await;
        assert_eq!(clock.usefulness(), Usefulness::Busy, "all that is left has waited for nine seconds");
        pass(2).await;
        assert_eq!(clock.usefulness(), Usefulness::Stuck);
        let third = Busy::new(&clock);
        assert_eq!(clock.usefulness(), Usefulness::Busy);
        third.waits();
        drop(second);
        assert_eq!(clock.usefulness(), Usefulness::Busy, "nor is it told by those who went before");
    }

    /// The order in which connections make room: who has just come is about to send.
    #[tokio::test(start_paused = true)]
    async fn whoever_has_just_come_is_worth_more_than_whoever_waits_or_has_not_sent_in_time() {
        let (early, idle, stuck) = (clock(), clock(), clock());
        drop(Busy::new(&idle));
        let waiting = Busy::new(&stuck);
        waiting.waits();
        pass(11).await;
        let late = clock();
        late.first_bytes_came_in();
        let rank = || [&early, &idle, &stuck, &late].map(|clock| clock.usefulness());
        assert_eq!(rank(), [Usefulness::None, Usefulness::Idle, Usefulness::Stuck, Usefulness::New]);
        assert!(rank().is_sorted() && Usefulness::New < Usefulness::Busy);
        tokio::time::advance(Duration::from_millis(NEW - 1)).await;
        assert_eq!(late.usefulness(), Usefulness::New);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(late.usefulness(), Usefulness::None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_call_waits_for_no_request_and_cuts_none() {
        let clock = clock();
        clock.last_call();
        assert_eq!(seconds_left(&clock), 1.0);
        let busy = Busy::new(&clock);
        assert_eq!(seconds_left(&clock), 62.0);
        drop(busy);
        assert!(clock.is_leaving());
    }

    #[test]
    fn answers_in_a_crowd_are_the_last_of_their_connection() {
        let crowded = Arc::new(AtomicBool::new(false));
        let clock = Clock::new(LIMITS, Arc::clone(&crowded));
        assert!(!clock.is_leaving());
        crowded.store(true, Ordering::Relaxed);
        assert!(clock.is_leaving());
        crowded.store(false, Ordering::Relaxed);
        assert!(!clock.is_leaving());
    }
}
