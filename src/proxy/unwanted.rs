//! Work that goes on when its caller does not wait for it any more. Must not know what the work is.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Response;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::relay::{RelayBody, UNWANTED};

/// A request under way, and its answer. Dropped because the caller hung up, it goes on in a task of its own: one that
/// may change something at the bank to its end, so that its answer is read and logged; any other for a moment, because
/// an answer that is nearly there keeps a connection whose making costs more.
pub(super) struct ToTheEnd<F: Future<Output = Response<RelayBody>> + Send + 'static> {
    work: Option<Pin<Box<F>>>,
    /// For how long it goes on when nobody waits for it.
    unwanted: Duration,
    /// Whether the caller is there, and has another answer.
    told: bool,
}

impl<F: Future<Output = Response<RelayBody>> + Send + 'static> ToTheEnd<F> {
    /// Of a safe request, or of one that may change something. In its box: an argument of its size would be moved
    /// twice.
    pub(super) fn new(work: Pin<Box<F>>, is_safe: bool) -> Self {
        let unwanted = if is_safe { UNWANTED } else { Duration::MAX };
        Self { work: Some(work), unwanted, told: false }
    }

    /// The caller has had its answer without it.
    pub(super) fn told(mut self: Pin<&mut Self>) {
        self.told = true;
    }
}

impl<F: Future<Output = Response<RelayBody>> + Send + 'static> Future for ToTheEnd<F> {
    type Output = Response<RelayBody>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Taken out meanwhile: work that panics is not to go on.
        let mut work = self.work.take().expect("what has ended is not polled again");
        let polled = work.as_mut().poll(cx);
        if polled.is_pending() {
            self.work = Some(work);
        }
        polled
    }
}

impl<F: Future<Output = Response<RelayBody>> + Send + 'static> Drop for ToTheEnd<F> {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        let unwanted = self.unwanted;
        // Without a runtime the process is at its end, and the record says so.
        let Ok(runtime) = Handle::try_current() else { return };
        if self.told {
            runtime.spawn(timeout(unwanted, Unwanted::new(work, Audience::Told)));
        } else {
            runtime.spawn(async move {
                if let Ok(mut answer) = timeout(unwanted, Unwanted::new(work, Audience::Left)).await {
                    answer.body_mut().caller_gone();
                }
            });
        }
    }
}

/// Who waits for what a thread polls or drops at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    Waits,
    /// The caller has hung up.
    Left,
    /// The caller has had another answer: that the proxy stopped.
    Told,
}

thread_local! {
    static AUDIENCE: Cell<Audience> = const { Cell::new(Audience::Waits) };
}

/// Work that nobody waits for: it can ask whether that is so, and the records that are dropped with it say so.
struct Unwanted<F> {
    work: Option<Pin<Box<F>>>,
    audience: Audience,
}

impl<F> Unwanted<F> {
    fn new(work: Pin<Box<F>>, audience: Audience) -> Self {
        Self { work: Some(work), audience }
    }

    fn mark<R>(&mut self, act: impl FnOnce(&mut Option<Pin<Box<F>>>) -> R) -> R {
        let _mark = Mark(AUDIENCE.replace(self.audience));
        act(&mut self.work)
    }
}

/// Who waits for the work that asks, or for what is dropped with it.
pub(super) fn audience() -> Audience {
    AUDIENCE.get()
}

/// Whether the caller of the work that asks has left.
pub(super) fn is_unwanted() -> bool {
    audience() == Audience::Left
}

/// For as long as it lives, and not beyond a panic. Holds what was so before.
struct Mark(Audience);

impl Drop for Mark {
    fn drop(&mut self) {
        AUDIENCE.set(self.0);
    }
}

impl<F: Future> Future for Unwanted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.mark(|work| work.as_mut().expect("it is there until it is dropped").as_mut().poll(cx))
    }
}

impl<F> Drop for Unwanted<F> {
    fn drop(&mut self) {
        self.mark(|work| *work = None);
    }
}
