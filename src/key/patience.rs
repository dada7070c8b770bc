//! How long a signature is waited for; and how long a thread may stand still for one, where it does nothing else: a
//! reactor has no patience of that kind, and gets an error in place of a wait.

use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a signature is worth waiting for. Keys in memory do not ask.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until when, the wait for the key included.
    pub until: Instant,
    /// What the signature itself should take at most. A token that is given less to do at a time takes less for each.
    pub signing: Duration,
}

impl Patience {
    /// From now on for so long, of which a half is for the signature itself.
    pub fn of(limit: Duration) -> Self {
        Self { until: Instant::now() + limit, signing: limit / 2 }
    }

    /// The patience of this thread, see [`until`].
    pub(super) fn here() -> Self {
        let left = DEADLINE.get().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        Self::of(left.unwrap_or_default())
    }
}

thread_local! {
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Runs `work`, within which [`wait`] waits until `deadline`.
pub(super) fn until<T>(deadline: Instant, work: impl FnOnce() -> T) -> T {
    /// Puts back what was before, also where `work` panics.
    struct Before(Option<Instant>);
    impl Drop for Before {
        fn drop(&mut self) {
            DEADLINE.set(self.0);
        }
    }
    let _before = Before(DEADLINE.replace(Some(deadline)));
    work()
}

/// Drives a future to its end on this thread; `None` where the deadline comes first. What is ready at once needs none.
///
/// tokio's `block_on` would do the same and panics within a runtime, where handshakes are.
pub(super) fn wait<T>(future: impl Future<Output = T>) -> Option<T> {
    let deadline = DEADLINE.get();
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    // Without it a task that has used up its share of a turn would be put off until its runtime goes on, which is us.
    let mut future = pin!(tokio::task::unconstrained(future));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        let left = deadline?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        thread::park_timeout(left);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[test]
    fn a_thread_waits_as_long_as_it_may_and_no_longer() {
        assert_eq!(wait(ready(1)), Some(1));
        assert_eq!(wait(pending::<u8>()), None, "without patience it does not wait");
        let (began, limit) = (Instant::now(), Duration::from_millis(50));
        assert_eq!(until(began + limit, || wait(pending::<u8>())), None);
        assert!((limit..limit * 20).contains(&began.elapsed()));
        assert_eq!(wait(pending::<u8>()), None, "the patience ended with the work");
        let (send, received) = tokio::sync::oneshot::channel();
        let sender = thread::spawn(move || {
            thread::sleep(limit);
            send.send(2)
        });
        assert_eq!(until(Instant::now() + 100 * limit, || wait(received)), Some(Ok(2)));
        assert_eq!(sender.join().expect("no panic"), Ok(()));
    }
}
