//! The end of the process for what is under way, and how long work may take. Must not know what the work is.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Whether the proxy has stopped. All who ask hear of it from the same moment on, whoever is woken first.
pub(super) struct Stop {
    has_come: AtomicBool,
    wakes: watch::Sender<bool>,
}

/// Why work was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interruption {
    Stopped,
    Late,
}

impl Stop {
    pub(super) fn new() -> Self {
        Self { has_come: AtomicBool::new(false), wakes: watch::Sender::new(false) }
    }

    /// From now on.
    pub(super) fn come(&self) {
        self.has_come.store(true, Ordering::Release);
        self.wakes.send_replace(true);
    }

    pub(super) fn has_come(&self) -> bool {
        self.has_come.load(Ordering::Acquire)
    }

    /// Ends when it comes.
    async fn comes(&self) {
        let mut wakes = self.wakes.subscribe();
        let mut woken = pin!(wakes.wait_for(|has_come| *has_come));
        poll_fn(|cx| if self.has_come() { Poll::Ready(()) } else { woken.as_mut().poll(cx).map(drop) }).await;
    }

    /// Does what is mostly done at once, and then needs neither a timer nor an ear for the stop.
    pub(super) async fn in_time<T>(
        &self,
        deadline: Instant,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, Interruption> {
        if let Some(done) = at_once(work.as_mut()).await {
            return Ok(done);
        }
        // In a box: most work is done by now, and of every request's state this would be a part.
        Box::pin(async {
            tokio::select! {
                biased;
                done = work => Ok(done),
                () = self.comes() => Err(Interruption::Stopped),
                () = sleep_until(deadline) => Err(Interruption::Late),
            }
        })
        .await
    }

    /// `None` if the stop comes first, and the work, which may know more of where it was, has nothing to say to that.
    /// The work stays where it is: an argument of its own size would be held twice.
    pub(super) async fn unless_stopped<T>(&self, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        tokio::select! {
            biased;
            done = work.as_mut() => Some(done),
            () = self.comes() => at_once(work).await,
        }
    }
}

/// What a piece of work comes to if it need not wait.
fn at_once<T>(mut work: Pin<&mut impl Future<Output = T>>) -> impl Future<Output = Option<T>> {
    poll_fn(move |cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => Poll::Ready(None),
    })
}

/// The same for work that waits for what has come in already: hyper hands a body that came with its head over a turn
/// later.
pub(super) fn soon<T>(mut work: Pin<&mut impl Future<Output = T>>) -> impl Future<Output = Option<T>> {
    let mut looked = false;
    poll_fn(move |cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending if std::mem::replace(&mut looked, true) => Poll::Ready(None),
        Poll::Pending => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
}
