//! How many of something there may be at a time: a number that a reload changes while some are taken. Must not know
//! what they are.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

/// So many seats, and those who wait for one: whoever has waited longest is next.
pub(super) struct Seats {
    free: Semaphore,
    count: Mutex<Count>,
}

struct Count {
    most: usize,
    /// How many more than that are taken. As many of those that come back are gone.
    surplus: usize,
}

/// One of them, until it is dropped.
pub(super) struct Seat(Arc<Seats>);

impl Seats {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { free: Semaphore::new(most), count: Mutex::new(Count { most, surplus: 0 }) })
    }

    /// A seat, as soon as one is free. At a change to fewer, who was about to have one waits anew.
    pub(super) async fn take(self: Arc<Self>) -> Seat {
        loop {
            self.free.acquire().await.expect("it is never closed").forget();
            if !self.lock().settle() {
                return Seat(self);
            }
        }
    }

    /// A seat, if one is free.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<Seat> {
        loop {
            self.free.try_acquire().ok()?.forget();
            if !self.lock().settle() {
                return Some(Seat(Arc::clone(self)));
            }
        }
    }

    /// Whether all are taken.
    pub(super) fn is_full(&self) -> bool {
        self.free.available_permits() == 0
    }

    /// Changes their number. Where more are taken than there are from now on, none is given out until enough have come
    /// back.
    pub(super) fn resize(&self, most: usize) {
        let mut count = self.lock();
        if most < count.most {
            let fewer = count.most - most;
            count.surplus += fewer - self.free.forget_permits(fewer);
        } else {
            let more = most - count.most;
            let settled = more.min(count.surplus);
            count.surplus -= settled;
            self.free.add_permits(more - settled);
        }
        count.most = most;
    }

    fn lock(&self) -> MutexGuard<'_, Count> {
        // Two numbers, and nothing between their changes panics.
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Count {
    /// Whether a seat that is free is one too many: then it is none. One that was on its way to somebody who has left
    /// is free without having been taken.
    fn settle(&mut self) -> bool {
        let settled = self.surplus > 0;
        self.surplus -= usize::from(settled);
        settled
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut count = self.0.lock();
        if !count.settle() {
            self.0.free.add_permits(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fewer_seats_hold_at_once_and_more_are_there_at_once() {
        let seats = Seats::new(2);
        let (one, two) = (seats.try_take().expect("free"), seats.try_take().expect("free"));
        assert!(seats.is_full());
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
        let Poll::Ready(two) = first.as_mut().poll(&mut cx) else { panic!("there are two") };
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(one);
        let Poll::Ready(three) = second.as_mut().poll(&mut cx) else { panic!("one has come back") };
        drop((two, three));
        assert!(!seats.is_full());
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
                prop_assert_eq!(seats.is_full(), taken.len() >= most);
            }
        }
    }
}
