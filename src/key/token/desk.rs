//! Who signs next with a key that takes its time. A queue in the order of arrival, which takes in nobody who would
//! leave it without a signature. Must not know what a signature is.
//!
//! A queue whose members lose patience serves nobody under a lasting overload, however slight: it grows until whoever
//! comes to its head has waited for all of his time, and the key then works for those who are just leaving. So the desk
//! sees how long a signature takes, and refuses at once whoever would not have one well within his patience. Estimates
//! err, and so it looks once more when a turn has come: who has too little time left costs the key nothing then. Who is
//! let in is served in time, and the key is never without work while somebody asks. What is known of a slow key fades
//! while it is idle, by a half each second: one that hung and is back is tried again.
//!
//! What is signed holds the time and ages while the key works. Many tokens sign one message at a time whatever their
//! sessions, and each signature then takes as long as all that are under way. So no more are begun at a time than are
//! made quickly enough: one less after each that was too slow, and one more after a number that were not.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::super::{Error, Patience};

pub(super) struct Desk {
    limit: usize,
    state: Mutex<State>,
}

struct State {
    signing: usize,
    waiting: VecDeque<Waiter>,
    /// How many have come, which gives each his number.
    came: u64,
    pace: Pace,
}

struct Waiter {
    number: u64,
    patience: Patience,
    turn: oneshot::Sender<Result<Permit, Error>>,
}

impl Desk {
    /// `sessions`: signatures at a time. `limit`: how many may wait beyond them.
    pub(super) fn new(sessions: usize, limit: usize) -> Arc<Self> {
        let state = State { signing: 0, waiting: VecDeque::new(), came: 0, pace: Pace::new(sessions) };
        Arc::new(Self { limit, state: Mutex::new(state) })
    }

    /// Waits for the right to sign. Refuses at once who would wait in vain.
    pub(super) async fn turn(self: &Arc<Self>, patience: Patience) -> Result<Permit, Error> {
        let (turn, granted) = oneshot::channel();
        let _place = self.stand(patience, turn)?;
        granted.await.expect("whoever stands here is told")
    }

    fn stand(
        self: &Arc<Self>,
        patience: Patience,
        turn: oneshot::Sender<Result<Permit, Error>>,
    ) -> Result<Place<'_>, Error> {
        let (mut state, now) = (self.state(), Instant::now());
        let would_wait = !state.waiting.is_empty() || !state.has_room();
        if would_wait && state.waiting.len() >= self.limit {
            return Err(Error::Busy(self.limit));
        }
        state.pace.admit(state.signing + state.waiting.len(), patience, now)?;
        let number = state.came;
        state.came += 1;
        state.waiting.push_back(Waiter { number, patience, turn });
        self.serve(&mut state, now);
        Ok(Place { desk: self, number })
    }

    /// Gives out what turns there are.
    fn serve(self: &Arc<Self>, state: &mut State, now: Instant) {
        while state.has_room()
            && let Some(Waiter { patience, turn, .. }) = state.waiting.pop_front()
        {
            let admitted = state.pace.admit(state.signing, patience, now);
            let granted = admitted.map(|()| Permit { desk: Some(Arc::clone(self)), patience, now, signed: false });
            if granted.is_ok() {
                state.begin(now);
            }
            // Gone meanwhile. The lock is ours, and what was meant for him must not ask for it.
            if let Err(Ok(mut unwanted)) = turn.send(granted) {
                unwanted.desk = None;
                state.end(now);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// One signature may always be begun.
    fn has_room(&self) -> bool {
        self.signing == 0 || self.signing < self.pace.room
    }

    fn begin(&mut self, now: Instant) {
        self.pace.wake(now);
        self.signing += 1;
    }

    fn end(&mut self, now: Instant) {
        self.signing -= 1;
        if self.signing == 0 {
            self.pace.idle = Some(now);
        }
    }
}

/// A place in the queue, given up with its value.
struct Place<'a> {
    desk: &'a Desk,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.desk.state().waiting.retain(|waiter| waiter.number != self.number);
    }
}

/// The right to sign once. It goes back when the key is done, not when its holder has given up: a key that hangs must
/// not gather work.
pub(super) struct Permit {
    /// `None`: nobody ever had it.
    desk: Option<Arc<Desk>>,
    patience: Patience,
    /// When it was given.
    now: Instant,
    signed: bool,
}

impl Permit {
    /// Says that the key has signed: it tells how fast the key is.
    pub(super) fn signed(&mut self) {
        self.signed = true;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(desk) = self.desk.take() else { return };
        let (mut state, now) = (desk.state(), Instant::now());
        if self.signed {
            state.pace.learn(self.now, self.patience.signing, now);
        }
        state.end(now);
        desk.serve(&mut state, now);
    }
}

/// How fast the key is.
struct Pace {
    /// What a signature takes with as many at a time as there is room for, smoothed; as of when the key became idle.
    took: Duration,
    idle: Option<Instant>,
    /// How many are begun at a time; at least one, and at most `sessions`.
    room: usize,
    sessions: usize,
    /// When that changed, and how many were quick since.
    changed: Option<Instant>,
    quick: usize,
}

impl Pace {
    /// Of a key that nothing is known of.
    fn new(sessions: usize) -> Self {
        Self { took: Duration::ZERO, idle: None, room: sessions, sessions, changed: None, quick: 0 }
    }

    /// Refuses whoever has so many before him that his signature would not be there in three quarters of his time; the
    /// fourth is for what the estimate does not know.
    fn admit(&self, ahead: usize, patience: Patience, now: Instant) -> Result<(), Error> {
        let expected = self.expected(ahead, now);
        let left = patience.until.saturating_duration_since(now);
        // Of a key that is quick nothing is expected.
        if expected * 4 <= left * 3 || expected < QUICK { Ok(()) } else { Err(Error::Behind(expected)) }
    }

    fn expected(&self, ahead: usize, now: Instant) -> Duration {
        let number = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        self.took(now).saturating_mul(number((ahead + 1).max(self.room))) / number(self.room)
    }

    fn took(&self, now: Instant) -> Duration {
        let idle = self.idle.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.took.mul_f64((-idle.as_secs_f64()).exp2())
    }

    fn wake(&mut self, now: Instant) {
        self.took = self.took(now);
        self.idle = None;
    }

    /// Learns from a signature that was begun and is there `now`, and was to take `limit` at most.
    fn learn(&mut self, begun: Instant, limit: Duration, now: Instant) {
        let took = now.saturating_duration_since(begun);
        self.took = (self.took * 3 + took.min(HUNG)) / 4;
        // What was begun with more room, or with less, says nothing of the present one.
        if self.changed.is_some_and(|changed| begun < changed) {
            return;
        }
        self.quick = if took > limit { 0 } else { self.quick + 1 };
        match self.quick {
            0 if self.room > 1 => self.make(self.room - 1, now),
            ENOUGH.. if self.room < self.sessions => self.make(self.room + 1, now),
            _ => {}
        }
    }

    fn make(&mut self, room: usize, now: Instant) {
        let number = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        // As if they were made one after the other: where they are not, the next ones say so.
        self.took = self.took * number(room) / number(self.room);
        (self.room, self.changed, self.quick) = (room, Some(now), 0);
    }
}

/// What takes longer is no measure of a signature, but a token that did not answer for a while.
const HUNG: Duration = Duration::from_secs(5);
/// Too little to refuse anybody for.
const QUICK: Duration = Duration::from_millis(5);
/// So many quick signatures, and one more is tried at a time: where that is too many, one in so many is too slow.
const ENOUGH: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn patience(now: Instant) -> Patience {
        Patience { until: now + 2000 * MS, signing: 800 * MS }
    }

    /// Makes so many signatures at a time, each of which takes so long if alone, as a token that makes one after the
    /// other.
    fn work(pace: &mut Pace, mut now: Instant, each: Duration, rounds: usize) -> Instant {
        pace.wake(now);
        for _ in 0..rounds {
            let begun = now;
            now += each * u32::try_from(pace.room).expect("few");
            pace.learn(begun, 800 * MS, now);
        }
        pace.idle = Some(now);
        now
    }

    #[test]
    fn whoever_would_not_be_served_in_time_is_refused() {
        let mut pace = Pace::new(4);
        let start = Instant::now();
        assert!(pace.admit(1000, patience(start), start).is_ok(), "nothing is known");
        let now = work(&mut pace, start, 100 * MS, 20);
        let ahead = (0..100).take_while(|ahead| pace.admit(*ahead, patience(now), now).is_ok()).count();
        assert!((14..=15).contains(&ahead), "at ten a second 15 are made in one and a half: {ahead}");
        let short = Patience { until: now + 500 * MS, signing: 800 * MS };
        assert!(matches!(pace.admit(0, short, now), Err(Error::Behind(_))), "with four at a time one takes 400 ms");
    }

    #[test]
    fn a_key_that_hung_is_tried_again() {
        let mut pace = Pace::new(1);
        let now = work(&mut pace, Instant::now(), 60_000 * MS, 20);
        assert!(pace.admit(0, patience(now), now).is_err());
        let later = now + 2000 * MS;
        assert!(pace.admit(0, patience(later), later).is_ok());
        let now = work(&mut pace, later, 10 * MS, 8);
        assert!(pace.admit(10, patience(now), now).is_ok(), "and one that is quick again is seen to be");
    }

    #[test]
    fn no_more_are_made_at_a_time_than_are_made_quickly() {
        for (each, fits) in [(100, 4), (250, 3), (500, 1), (900, 1)] {
            let mut pace = Pace::new(4);
            let now = work(&mut pace, Instant::now(), each * MS, 12);
            assert_eq!(pace.room, fits, "{each} ms each");
            work(&mut pace, now, MS, 80);
            assert_eq!(pace.room, 4);
        }
    }

    #[tokio::test]
    async fn who_gives_up_leaves_no_trace() {
        let desk = Desk::new(1, 1);
        let patience = || patience(Instant::now());
        let first = desk.turn(patience()).await.expect("nobody is before us");
        for _ in 0..3 {
            let waiting = tokio::time::timeout(5 * MS, desk.turn(patience()));
            assert!(waiting.await.is_err(), "one signs");
        }
        let (second, ()) = tokio::join!(desk.turn(patience()), async {
            assert!(matches!(desk.turn(patience()).await, Err(Error::Busy(1))));
            drop(first);
        });
        drop(second.expect("it is our turn"));
        let state = desk.state();
        assert_eq!((state.signing, state.waiting.len()), (0, 0));
    }
}
