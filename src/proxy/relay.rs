//! The body that a local client gets: the bank's, streamed frame by frame, or a problem. It carries the exchange's
//! record to its end, whichever end that is.
//!
//! A caller that does not take its answer must not keep the bank's connection with it: after a moment the rest is read
//! ahead, within the budget of buffered bytes, and after a while the caller is cut.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::body::{Budget, Charge};
use super::clock::Busy;
use super::exchange::Exchange;
use super::headers;
use crate::upstream::{Answer, AnswerError};

/// A response body on its way to the local client.
pub(super) struct RelayBody(Hold);

#[expect(clippy::large_enum_variant, reason = "most answers are whole with their first frame and never leave it")]
enum Hold {
    /// Nobody else looks at it: a problem, or an answer that may be whole with its first frame.
    Own(Relay),
    /// Watched over while the caller takes it.
    Shared(Arc<Mutex<Relay>>),
}

/// What an answer may cost.
#[derive(Clone)]
pub(super) struct Patience {
    /// How long an answer that nobody waits for any more is read on.
    pub(super) unwanted: Duration,
    /// How long a caller may take over one piece.
    pub(super) stalled: Duration,
    /// How many bytes are read ahead for one that is slow.
    pub(super) ahead: u64,
    /// What those bytes are charged to.
    pub(super) budget: Arc<Budget>,
}

/// Why a relayed body ends early.
#[derive(Debug, Error)]
pub(super) enum RelayError {
    /// On the bank's side.
    #[error(transparent)]
    Upstream(#[from] AnswerError),
    /// On the caller's.
    #[error("the caller did not take its answer in time")]
    Stalled,
}

impl RelayBody {
    pub(super) fn problem(text: Bytes, exchange: Option<Exchange>) -> Self {
        Self(Hold::Own(Relay::new(Source::Problem(Some(text)), exchange, None)))
    }

    pub(super) fn bank(answer: Answer, exchange: Exchange, patience: Patience) -> Self {
        Self(Hold::Own(Relay::new(Source::Bank(answer), Some(exchange), Some(patience))))
    }

    /// Keeps the connection busy for as long as this body lives.
    pub(super) fn hold(&mut self, busy: Busy) {
        self.with(|relay| relay.busy = Some(busy));
    }

    /// Nobody waits for this answer any more.
    pub(super) fn caller_gone(&mut self) {
        self.with(Relay::caller_gone);
    }

    fn with<T>(&mut self, work: impl FnOnce(&mut Relay) -> T) -> T {
        match &mut self.0 {
            Hold::Own(relay) => work(relay),
            Hold::Shared(relay) => work(&mut lock(relay)),
        }
    }

    fn look<T>(&self, look: impl FnOnce(&Relay) -> T) -> T {
        match &self.0 {
            Hold::Own(relay) => look(relay),
            Hold::Shared(relay) => look(&lock(relay)),
        }
    }

    /// The answer has more than one frame: from here on somebody minds how fast the caller takes them.
    fn watch_over(&mut self) {
        let Hold::Own(relay) = &mut self.0 else { return };
        let Some(patience) = relay.patience.clone() else { return };
        let shared = Arc::new(Mutex::new(mem::replace(relay, Relay::new(Source::Ended, None, None))));
        tokio::spawn(mind(Arc::downgrade(&shared), patience.stalled));
        self.0 = Hold::Shared(shared);
    }
}

impl Body for RelayBody {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        let frame = ready!(self.with(|relay| relay.poll_next(cx)));
        if matches!(frame, Some(Ok(_))) && !self.is_end_stream() {
            self.watch_over();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.look(Relay::is_end)
    }

    fn size_hint(&self) -> SizeHint {
        self.look(Relay::size_hint)
    }
}

impl Drop for RelayBody {
    /// A caller that goes away in the middle cuts a safe request, and no other: the answer to an unsafe one is read to
    /// its end, so that the log knows what became of it.
    fn drop(&mut self) {
        self.with(Relay::abandon);
    }
}

struct Relay {
    source: Source,
    /// What the caller's connection is told next, and last.
    failed: Option<RelayError>,
    /// Read ahead, and charged.
    ahead: VecDeque<Result<Frame<Bytes>, RelayError>>,
    charge: Option<Charge>,
    exchange: Option<Exchange>,
    busy: Option<Busy>,
    patience: Option<Patience>,
    /// Since when the caller has had a frame in hand.
    handed: Option<Instant>,
    /// How long it had the earlier ones, all together.
    waited: Duration,
    /// Who reads the bank's answer.
    reader: Reader,
}

enum Source {
    Problem(Option<Bytes>),
    Bank(Answer),
    Ended,
}

enum Reader {
    /// The caller's connection, whenever it has room.
    Caller,
    /// A task that reads ahead; holds the caller's waker where it has run dry.
    Ahead(Option<Waker>),
}

impl Relay {
    fn new(source: Source, exchange: Option<Exchange>, patience: Option<Patience>) -> Self {
        Self {
            source,
            failed: None,
            ahead: VecDeque::new(),
            charge: None,
            exchange,
            busy: None,
            patience,
            handed: None,
            waited: Duration::ZERO,
            reader: Reader::Caller,
        }
    }

    /// The next frame, as the caller asks for it.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        self.waited += self.handed.take().map_or(Duration::ZERO, |since| since.elapsed());
        if let Some(error) = self.failed.take() {
            self.end();
            return Poll::Ready(Some(Err(error)));
        }
        let frame = match self.take_ahead() {
            Some(frame) => Some(frame),
            None => match &mut self.reader {
                Reader::Caller => ready!(self.poll_source(cx)),
                Reader::Ahead(waker) => {
                    *waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            },
        };
        match frame {
            Some(Ok(_)) => self.handed = Some(Instant::now()),
            None => self.end(),
            Some(Err(error)) => {
                // hyper throws away what it has not flushed when a body fails. A head lost so would leave an empty close,
                // after which HTTP libraries send again: pending, it is flushed first.
                self.failed = Some(error);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(frame)
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        let frame = match &mut self.source {
            Source::Ended => None,
            Source::Problem(text) => text.take().map(|text| Ok(Frame::data(text))),
            Source::Bank(answer) => ready!(Pin::new(answer).poll_frame(cx)),
        };
        let frame = frame.map(|result| result.map(without_our_words));
        if let (Some(exchange), Some(frame)) = (&mut self.exchange, &frame) {
            match frame {
                Ok(frame) => exchange.relayed(frame.data_ref().map_or(0, |data| data.len() as u64)),
                Err(error) => exchange.cut(error),
            }
        }
        if matches!(frame, Some(Err(_))) {
            self.source = Source::Ended;
        }
        Poll::Ready(frame.map(|result| result.map_err(RelayError::Upstream)))
    }

    fn take_ahead(&mut self) -> Option<Result<Frame<Bytes>, RelayError>> {
        let frame = self.ahead.pop_front()?;
        if let Some(charge) = &mut self.charge {
            charge.remove(size(&frame));
        }
        Some(frame)
    }

    /// Whether the caller, not the bank, is what the answer waits for, and nothing has been read ahead for it.
    fn keeps_the_bank_waiting(&self, handed: Duration) -> bool {
        matches!((&self.reader, &self.source), (Reader::Caller, Source::Bank(_)))
            && self.ahead.is_empty()
            && self.waited + handed >= LOOK
    }

    /// Reads ahead until the answer ends or its room does.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Source::Bank(_) = self.source {
            let Some(frame) = ready!(self.poll_source(cx)) else {
                self.source = Source::Ended;
                break;
            };
            if !self.keep(frame) {
                break;
            }
        }
        if let (Source::Ended, Some(exchange)) = (&self.source, &mut self.exchange) {
            exchange.done_with_the_bank();
        }
        if let Reader::Ahead(Some(waker)) = mem::replace(&mut self.reader, Reader::Caller) {
            waker.wake();
        }
        Poll::Ready(())
    }

    /// Keeps a frame for the caller, and wakes it. Returns whether there is room for another.
    fn keep(&mut self, frame: Result<Frame<Bytes>, RelayError>) -> bool {
        let bytes = size(&frame);
        self.ahead.push_back(frame);
        if let Reader::Ahead(waker) = &mut self.reader {
            waker.take().into_iter().for_each(Waker::wake);
        }
        let Some(patience) = &self.patience else { return false };
        let charge = self.charge.get_or_insert_with(|| Charge::none(&patience.budget));
        charge.add(bytes).is_ok() && charge.bytes() < patience.ahead
    }

    fn is_end(&self) -> bool {
        self.failed.is_none()
            && self.ahead.is_empty()
            && match &self.source {
                Source::Ended => true,
                Source::Problem(text) => text.is_none(),
                Source::Bank(answer) => answer.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = match &self.source {
            Source::Ended => SizeHint::with_exact(0),
            Source::Problem(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Source::Bank(answer) => answer.size_hint(),
        };
        let ahead: u64 = self.ahead.iter().map(size).sum();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + ahead);
        }
        hint.set_lower(hint.lower() + ahead);
        hint
    }

    fn end(&mut self) {
        self.source = Source::Ended;
        self.ahead.clear();
        self.charge = None;
        self.exchange = None;
    }

    fn caller_gone(&mut self) {
        if let Some(exchange) = &mut self.exchange {
            exchange.caller_gone();
        }
    }

    /// Ends without the caller. Where the bank has yet to end the answer to an unsafe request, it is read on.
    fn abandon(&mut self) {
        if self.is_end() {
            return;
        }
        self.caller_gone();
        let source = mem::replace(&mut self.source, Source::Ended);
        let (exchange, patience) = (self.exchange.take(), self.patience.take());
        self.end();
        if let (Source::Bank(answer), Some(exchange), Some(patience)) = (source, exchange, patience)
            && !exchange.is_safe()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(drain(answer, exchange, patience));
        }
    }

    /// The caller has had its time: it keeps nothing but its connection, and that only on HTTP/2, where a stream that does
    /// not move cannot be told of it.
    fn cut(&mut self) {
        if let Some(exchange) = &mut self.exchange {
            exchange.stalled();
        }
        self.abandon();
        self.ahead.push_back(Err(RelayError::Stalled));
        self.busy.take().into_iter().for_each(Busy::hang_up);
    }
}

fn size(frame: &Result<Frame<Bytes>, RelayError>) -> u64 {
    frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64)
}

fn without_our_words(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        headers::inbound_trailers(trailers);
    }
    frame
}

fn lock(relay: &Mutex<Relay>) -> MutexGuard<'_, Relay> {
    // A panic in the middle of a frame ends the exchange; what is left is only dropped.
    relay.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks after an answer while its caller takes it.
async fn mind(relay: Weak<Mutex<Relay>>, limit: Duration) {
    loop {
        tokio::time::sleep(LOOK.min(limit)).await;
        let Some(relay) = relay.upgrade() else { return };
        let mut now = lock(&relay);
        if now.is_end() {
            return;
        }
        let handed = now.handed.map_or(Duration::ZERO, |since| since.elapsed());
        if handed >= limit {
            return now.cut();
        }
        if now.keeps_the_bank_waiting(handed) {
            (now.reader, now.waited) = (Reader::Ahead(None), Duration::ZERO);
            drop(now);
            tokio::spawn(poll_fn(move |cx| lock(&relay).poll_ahead(cx)));
        }
    }
}

/// How often it is looked, and how long a caller may keep the bank waiting before the rest is read without it: long for a
/// machine that reads, short for a bank's connection.
const LOOK: Duration = Duration::from_millis(500);

async fn drain(answer: Answer, exchange: Exchange, patience: Patience) {
    let limit = patience.unwanted;
    let mut rest = Relay::new(Source::Bank(answer), Some(exchange), None);
    let read = async { while let Some(Ok(_)) = poll_fn(|cx| rest.poll_next(cx)).await {} };
    // Past its patience the exchange is dropped, and logged as far as it came.
    if tokio::time::timeout(limit, read).await.is_err() {
        rest.end();
    }
}
