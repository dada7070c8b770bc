//! How many of something there may be at a time: a number that a reload changes while some are taken. Must not know
//! what they are.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

/// So many seats, and those who wait for one: whoever has waited longest is next.
pub(super) struct Seats {
    free: Semaphore,
    /// How many more are taken than there are. As many of those that come back are gone. Read by every request, and
    /// never anything but zero but for a moment after a change.
    surplus: AtomicUsize,
    most: Mutex<usize>,
    /// How many wait for one.
    waiting: AtomicUsize,
}

/// One of them, until it is dropped.
pub(super) struct Seat(Arc<Seats>);

impl Seats {
    pub(super) fn new(most: usize) -> Arc<Self> {
        let (free, surplus, waiting) = (Semaphore::new(most), AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { free, surplus, most: Mutex::new(most), waiting })
    }

    /// A seat, as soon as one is free. At a change to fewer, who was about to have one waits anew.
    pub(super) async fn take(self: Arc<Self>) -> Seat {
        self.wait().await;
        Seat(self)
    }

    async fn wait(&self) {
        let _waits = Waits::new(&self.waiting);
        loop {
            self.free.acquire().await.expect("it is never closed").forget();
            if !self.settle() {
                return;
            }
        }
    }

    /// A seat, if one is free.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<Seat> {
        loop {
            self.free.try_acquire().ok()?.forget();
            if !self.settle() {
                return Some(Seat(Arc::clone(self)));
            }
        }
    }

    /// Whether somebody waits for one.
    pub(super) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Changes their number. Where more are taken than there are from now on, none is given out until enough have come
    /// back.
    pub(super) fn resize(&self, most: usize) {
        // A number, and nothing between its changes panics.
        let mut before = self.most.lock().unwrap_or_else(PoisonError::into_inner);
        if most < *before {
            let fewer = *before - most;
            self.surplus.fetch_add(fewer - self.free.forget_permits(fewer), Ordering::AcqRel);
        } else {
            let more = (*before..most).filter(|_| !self.settle()).count();
            self.free.add_permits(more);
        }
        *before = most;
    }

    /// Whether a seat that is free is one too many: then it is none. One may be free that was on its way to somebody
    /// who has left, or that came back during a change.
    fn settle(&self) -> bool {
        let less = |surplus: usize| surplus.checked_sub(1);
        self.surplus.load(Ordering::Acquire) > 0
            && self.surplus.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok()
    }
}

/// One who waits.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::AcqRel);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.0.settle() {
            self.0.free.add_permits(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;

    use super::*;

    fn is_full(seats: &Seats) -> bool {
        seats.free.available_permits() == 0
    }

    #[test]
    fn fewer_seats_hold_at_once_and_more_are_there_at_once() {
        let seats = Seats::new(2);
        let (one, two) = (seats.try_take().expect("free"), seats.try_take().expect("free"));
        assert!(is_full(&seats));
        seats.resize(1);
        drop(one);
        assert!(seats.try_take().is_none(), "the other has the only one");
        drop(two);
        let only = seats.try_take().expect("free");
        assert!(seats.try_take().is_none());
        seats.resize(2);
        let other = seats.try_take().expect("one more");
        assert!(seats.try_take().is_none());
        drop((only, other));
    }

    #[test]
    fn who_waits_is_served_by_a_change_and_by_what_comes_back() {
        let seats = Seats::new(1);
        let one = seats.try_take().expect("free");
        let (mut first, mut second) = (Box::pin(Arc::clone(&seats).take()), Box::pin(Arc::clone(&seats).take()));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(first.as_mut().poll(&mut cx).is_pending() && second.as_mut().poll(&mut cx).is_pending());
        seats.resize(2);
        assert!(seats.is_wanted());
        let Poll::Ready(two) = first.as_mut().poll(&mut cx) else { panic!("there are two") };
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(one);
        let Poll::Ready(three) = second.as_mut().poll(&mut cx) else { panic!("one has come back") };
        assert!(!seats.is_wanted());
        drop((two, three));
        assert!(!is_full(&seats));
    }

    #[test]
    fn one_that_nobody_took_is_gone_too() {
        let seats = Seats::new(2);
        let (one, two) = (seats.try_take().expect("free"), seats.try_take().expect("free"));
        let mut waiting = Box::pin(Arc::clone(&seats).take());
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(one);
        // It is on its way to whoever waits.
        seats.resize(1);
        drop(waiting);
        assert!(seats.try_take().is_none(), "the other has the only one");
        drop(two);
        assert!(seats.try_take().is_some());
    }

    proptest! {
        /// Against the plain rule: a seat is given out exactly where fewer are taken than there are.
        #[test]
        fn as_many_are_given_out_as_there_are(steps in prop::collection::vec((0..3_u8, 0..5_usize), 0..60)) {
            let (seats, mut taken, mut most) = (Seats::new(2), Vec::new(), 2);
            for (step, number) in steps {
                match step {
                    0 => {
                        let seat = seats.try_take();
                        prop_assert_eq!(seat.is_some(), taken.len() < most);
                        taken.extend(seat);
                    }
                    1 => drop(taken.pop()),
                    _ => {
                        seats.resize(number);
                        most = number;
                    }
                }
                prop_assert_eq!(is_full(&seats), taken.len() >= most);
            }
        }
    }
}
