//! The body that a local client gets: the bank's, streamed frame by frame, or a problem. It carries the exchange's
//! record to its end, whichever end that is.
//!
//! A caller that does not take its answer must not keep the bank's connection with it: after a moment the rest is read
//! ahead, within a budget, and after a while the caller is cut.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::body::{Budget, Charge};
use super::clock::Busy;
use super::exchange::Exchange;
use super::headers;
use crate::upstream::{Answer, AnswerError};

/// A response body on its way to the local client.
pub(super) struct RelayBody(Hold);

enum Hold {
    /// Nobody else looks at it: an answer that is whole with its first frame, on HTTP/1.1.
    Own(Box<Relay>),
    /// Watched over while the caller takes it.
    Shared(Arc<Mutex<Relay>>),
}

/// What an answer may cost.
#[derive(Clone)]
pub(super) struct Patience {
    /// How long a caller may take over one piece, and keep the bank waiting in all.
    pub(super) stalled: Duration,
    /// The end of the exchange as a whole.
    pub(super) deadline: Instant,
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
    /// The exchange as a whole.
    #[error("the exchange took longer than it may as a whole")]
    Deadline,
}

impl RelayBody {
    pub(super) fn problem(text: Bytes, exchange: Option<Box<Exchange>>) -> Self {
        Self(Hold::Own(Box::new(Relay::new(Source::Problem(Some(text)), exchange, None))))
    }

    /// An answer that was read to its end before it is relayed, and what it is charged. It goes out in pieces: what the
    /// caller does not take stays here, counted and under watch.
    pub(super) fn whole(mut body: Bytes, charge: Charge, exchange: Box<Exchange>) -> Self {
        let mut relay = Relay::new(Source::Ended, Some(exchange), None);
        relay.kept = Some(charge);
        while !body.is_empty() {
            relay.ahead.push_back(Ok(Frame::data(body.split_to(body.len().min(PIECE)))));
        }
        Self(Hold::Own(Box::new(relay)))
    }

    pub(super) fn bank(answer: Answer, exchange: Box<Exchange>, patience: Patience) -> Self {
        Self(Hold::Own(Box::new(Relay::new(Source::Bank(answer), Some(exchange), Some(patience)))))
    }

    /// Keeps the connection busy for as long as this body lives. `patience` is for what the bank has no part in.
    pub(super) fn hold(&mut self, busy: Busy, patience: impl FnOnce() -> Patience) {
        // A stream of HTTP/2 can be stuck with its only frame in hand, which nobody but us would notice.
        let multiplexed = busy.is_multiplexed();
        self.with(|relay| {
            relay.multiplexed = multiplexed;
            relay.busy = Some(busy);
            relay.patience.get_or_insert_with(patience);
        });
        if multiplexed {
            self.watch_over();
        }
    }

    /// Takes the content of a problem away, for an answer that has none. Returns its length.
    pub(super) fn without_content(&mut self) -> Option<u64> {
        self.with(|relay| match &mut relay.source {
            Source::Problem(text) => text.take().map(|text| text.len() as u64),
            _ => None,
        })
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

    /// From here on somebody minds how fast the caller takes its frames.
    fn watch_over(&mut self) {
        let Hold::Own(relay) = &mut self.0 else { return };
        let Some(patience) = relay.patience.clone() else { return };
        let shared = Arc::new(Mutex::new(mem::replace(&mut **relay, Relay::new(Source::Ended, None, None))));
        tokio::spawn(mind(Arc::downgrade(&shared), patience));
        self.0 = Hold::Shared(shared);
    }
}

impl Body for RelayBody {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        let polled = self.with(|relay| relay.poll_next(cx));
        let goes_on = match &polled {
            // The bank pauses: the exchange as a whole has its end all the same.
            Poll::Pending => self.look(Relay::waits_for_the_bank),
            Poll::Ready(frame) => matches!(frame, Some(Ok(_))) && !self.is_end_stream(),
        };
        if goes_on {
            self.watch_over();
        }
        polled
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
    /// its end, so that the log knows what became of it. Of a safe one it is read where that takes but a moment.
    fn drop(&mut self) {
        self.with(|relay| {
            if relay.is_end() {
                relay.end();
                relay.busy = None;
            } else {
                relay.caller_gone();
                relay.abandon();
            }
        });
    }
}

struct Relay {
    source: Source,
    /// What the caller's connection is told next, and last.
    failed: Option<RelayError>,
    is_flushed: bool,
    /// Read ahead, and charged.
    ahead: VecDeque<Result<Frame<Bytes>, RelayError>>,
    charge: Option<Charge>,
    /// For an answer that is one piece of memory, however much of it has been taken.
    kept: Option<Charge>,
    exchange: Option<Box<Exchange>>,
    busy: Option<Busy>,
    patience: Option<Patience>,
    /// HTTP/2 keeps a frame that it cannot send yet, of which there may be many on a connection: it is charged.
    multiplexed: bool,
    in_hand: u64,
    /// The last byte of the frame that was handed over, which may be the answer's.
    last: Bytes,
    /// Since when the caller has had a frame in hand.
    handed: Option<Instant>,
    /// How long it had the earlier ones: since the last reading ahead, and all together while the bank waited.
    waited: Duration,
    kept_waiting: Duration,
    /// The task that reads ahead, while it does.
    reading_ahead: Option<AbortHandle>,
    /// Of a caller that waits for the next frame.
    caller: Option<Waker>,
}

enum Source {
    Problem(Option<Bytes>),
    Bank(Answer),
    Ended,
}

impl Relay {
    fn new(source: Source, exchange: Option<Box<Exchange>>, patience: Option<Patience>) -> Self {
        Self {
            source,
            failed: None,
            is_flushed: false,
            ahead: VecDeque::new(),
            charge: None,
            kept: None,
            exchange,
            busy: None,
            patience,
            multiplexed: false,
            in_hand: 0,
            last: Bytes::new(),
            handed: None,
            waited: Duration::ZERO,
            kept_waiting: Duration::ZERO,
            reading_ahead: None,
            caller: None,
        }
    }

    /// The next frame, as the caller asks for it.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        self.caller_asks();
        if self.failed.is_some() && !mem::replace(&mut self.is_flushed, true) {
            // hyper throws away what it has not flushed when a body fails. A head lost so would leave an empty close,
            // or the end of a stream, after which HTTP libraries send again: pending, it is flushed first.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(error) = self.failed.take() {
            self.end();
            return Poll::Ready(Some(Err(error)));
        }
        let frame = match self.next(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                self.caller = Some(cx.waker().clone());
                return Poll::Pending;
            }
        };
        match frame {
            Some(Ok(frame)) => {
                let frame = self.without_last(frame);
                self.hand_over(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                self.end();
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                self.failed = Some(error);
                self.poll_next(cx)
            }
        }
    }

    /// hyper gives a frame to HTTP/2 as soon as the caller's window has room for one byte of it, and lets go of an
    /// answer whose last one that is. So that the rest is not left to HTTP/2, where nobody would count it and nobody
    /// mind how long it stays, a byte goes by itself: hyper asks for it early, and holds it, and with it the answer,
    /// until there is room for all that comes before it.
    fn without_last(&mut self, mut frame: Frame<Bytes>) -> Frame<Bytes> {
        let may_be_last = self.is_spent() || self.size_hint().upper().is_none();
        if let Some(data) = frame.data_mut()
            && data.len() > 1
            && self.multiplexed
            && may_be_last
        {
            self.last = data.split_off(data.len() - 1);
        }
        frame
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        if !self.last.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(mem::take(&mut self.last)))));
        }
        match self.take_ahead() {
            Some(frame) => Poll::Ready(Some(frame)),
            None if self.reading_ahead.is_some() => Poll::Pending,
            None => self.poll_source(cx),
        }
    }

    fn caller_asks(&mut self) {
        if let Some(since) = self.handed.take() {
            let waited = since.elapsed();
            self.waited += waited;
            if matches!(self.source, Source::Bank(_)) {
                self.kept_waiting += waited;
            }
        }
        // The last byte does not wait for what comes before it: both are in hand.
        if self.last.is_empty() {
            self.lay_down();
        }
        if let Some(busy) = &self.busy {
            busy.goes_on();
        }
    }

    fn lay_down(&mut self) {
        if let (Some(charge), in_hand @ 1..) = (&mut self.charge, mem::take(&mut self.in_hand)) {
            charge.remove(in_hand);
        }
        if let Some(busy) = &self.busy {
            busy.hands(0);
        }
    }

    fn hand_over(&mut self, frame: &Frame<Bytes>) {
        // hyper lets go of a body with its last frame, on HTTP/2 with trailers alone: nobody looks at these clocks any
        // more.
        if self.is_end() && (!self.multiplexed || frame.is_trailers()) {
            return;
        }
        self.handed = Some(Instant::now());
        if let Some(busy) = &self.busy {
            busy.waits();
        }
        if self.multiplexed && self.patience.is_some() {
            let more = length(frame);
            self.in_hand += more;
            let fits = self.charge(more);
            let on_connection = self.busy.as_ref().map_or(0, |busy| busy.hands(self.in_hand));
            let share = self.patience.as_ref().map_or(0, |patience| patience.budget.share());
            // Too many callers that take nothing: this one is told so with its next frame. One that has the whole of
            // its answer in hand is not, unless that is much and its connection one of those that hold the most.
            if !fits && (!self.is_spent() || (on_connection > share && self.in_hand > LEAST_COST)) {
                self.fail(RelayError::Stalled);
            }
        }
    }

    /// Counts bytes, whether they may be held or not.
    fn charge(&mut self, bytes: u64) -> bool {
        let Some(patience) = &self.patience else { return true };
        self.charge.get_or_insert_with(|| Charge::none(&patience.budget)).add(bytes).is_ok()
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        let frame = match &mut self.source {
            Source::Ended => None,
            Source::Problem(text) => text.take().map(|text| Ok(Frame::data(text))),
            // hyper may take a while to say so.
            Source::Bank(answer) if answer.is_end_stream() => None,
            Source::Bank(answer) => ready!(Pin::new(answer).poll_frame(cx)),
        };
        let frame = frame.map(|result| result.map(without_our_words));
        if let (Source::Bank(answer), Some(exchange)) = (&self.source, &mut self.exchange) {
            match &frame {
                Some(Ok(frame)) => exchange.relayed(frame.data_ref().map_or(0, |data| data.len() as u64)),
                Some(Err(error)) => exchange.cut(error),
                None => {}
            }
            if answer.is_end_stream() || !matches!(frame, Some(Ok(_))) {
                exchange.done_with_the_bank();
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
            charge.remove(cost(&frame));
        }
        Some(frame)
    }

    /// Whether the caller, not the bank, is what the answer waits for, and nothing has been read ahead for it.
    fn keeps_the_bank_waiting(&self, handed: Duration) -> bool {
        self.waits_for_the_bank() && self.ahead.is_empty() && self.waited + handed >= LOOK
    }

    /// Whether the bank's connection depends on the caller.
    fn waits_for_the_bank(&self) -> bool {
        self.reading_ahead.is_none() && matches!(&self.source, Source::Bank(answer) if !answer.is_end_stream())
    }

    /// Reads ahead until the answer ends or its room does.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Source::Bank(_) = self.source {
            match ready!(self.poll_source(cx)) {
                None => self.source = Source::Ended,
                Some(frame) => {
                    if !self.keep(frame) {
                        break;
                    }
                }
            }
        }
        self.reading_ahead = None;
        self.wake_caller();
        Poll::Ready(())
    }

    /// Keeps a frame for the caller, and wakes it. Returns whether there is room for another.
    fn keep(&mut self, frame: Result<Frame<Bytes>, RelayError>) -> bool {
        // A frame in the list costs more than a few bytes: small ones are joined.
        let frame = match (self.ahead.pop_back(), frame) {
            (Some(Ok(last)), Ok(next)) if is_small(&last) && is_small(&next) => {
                if let Some(charge) = &mut self.charge {
                    charge.remove(cost_of(&last));
                }
                Ok(joined(last, next))
            }
            (last, next) => {
                self.ahead.extend(last);
                next
            }
        };
        let cost = cost(&frame);
        self.ahead.push_back(frame);
        self.wake_caller();
        let fits = self.charge(cost);
        let most = self.patience.as_ref().map_or(0, |patience| patience.ahead);
        fits && self.charge.as_ref().is_some_and(|charge| charge.bytes() < most)
    }

    fn wake_caller(&mut self) {
        self.caller.take().into_iter().for_each(Waker::wake);
    }

    fn is_end(&self) -> bool {
        self.last.is_empty() && self.is_spent()
    }

    /// The same, but for the last byte.
    fn is_spent(&self) -> bool {
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
        let ahead = |frame: &Result<Frame<Bytes>, RelayError>| frame.as_ref().map_or(0, length);
        let ahead = self.ahead.iter().map(ahead).sum::<u64>() + self.last.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + ahead);
        }
        hint.set_lower(hint.lower() + ahead);
        hint
    }

    fn end(&mut self) {
        self.source = Source::Ended;
        self.last = Bytes::new();
        self.ahead = VecDeque::new();
        self.charge = None;
        self.kept = None;
        self.in_hand = 0;
        self.exchange = None;
        if let Some(reading) = self.reading_ahead.take() {
            reading.abort();
        }
    }

    fn caller_gone(&mut self) {
        if let Some(exchange) = &mut self.exchange {
            exchange.caller_gone();
        }
    }

    /// Ends without the caller. Where the bank has yet to end the answer to an unsafe request, it is read on, and to
    /// any other if little is left of it.
    fn abandon(&mut self) {
        let source = mem::replace(&mut self.source, Source::Ended);
        let (exchange, patience) = (self.exchange.take(), self.patience.clone());
        self.end();
        self.busy = None;
        if let (Source::Bank(answer), Some(mut exchange), Some(patience)) = (source, exchange, patience)
            && !answer.is_end_stream()
            && let Some(deadline) = unwanted(&answer, &exchange, &patience)
            && let Ok(runtime) = Handle::try_current()
        {
            exchange.reads_on();
            runtime.spawn(drain(answer, exchange, deadline));
        }
    }

    /// The caller has had its time: it keeps nothing but its connection, and that only for a moment.
    fn cut(&mut self, why: RelayError) {
        let busy = self.busy.take();
        self.fail(why);
        self.wake_caller();
        busy.into_iter().for_each(Busy::hang_up);
    }

    /// Gives up all that belongs to the answer; the caller's connection is told with the next frame, if it asks.
    fn fail(&mut self, why: RelayError) {
        if let Some(exchange) = &mut self.exchange {
            match why {
                RelayError::Deadline => exchange.timed_out(),
                _ => exchange.stalled(),
            }
        }
        let busy = self.busy.take();
        self.abandon();
        self.busy = busy;
        self.failed = Some(why);
    }
}

fn length(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}

/// What a frame costs while it is kept.
fn cost(frame: &Result<Frame<Bytes>, RelayError>) -> u64 {
    frame.as_ref().map_or(LEAST_COST, cost_of)
}

fn cost_of(frame: &Frame<Bytes>) -> u64 {
    length(frame).max(LEAST_COST)
}

/// A frame's own size in the list, and that of its buffer's head.
const LEAST_COST: u64 = 256;

fn is_small(frame: &Frame<Bytes>) -> bool {
    frame.data_ref().is_some_and(|data| data.len() < SMALL)
}

/// Of an answer that is held as a whole.
const PIECE: usize = 16 * 1024;

/// As in a request's body: below this a copy costs less than a frame of its own.
const SMALL: usize = 4096;

fn joined(first: Frame<Bytes>, second: Frame<Bytes>) -> Frame<Bytes> {
    let (Ok(first), Ok(second)) = (first.into_data(), second.into_data()) else {
        unreachable!("small frames are data")
    };
    let mut buffer = first.try_into_mut().unwrap_or_else(|shared| {
        let mut buffer = BytesMut::with_capacity(2 * SMALL);
        buffer.extend_from_slice(&shared);
        buffer
    });
    buffer.extend_from_slice(&second);
    Frame::data(buffer.freeze())
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

/// Looks after an answer while its caller takes it, and while the bank is at it.
async fn mind(relay: Weak<Mutex<Relay>>, patience: Patience) {
    let limit = patience.stalled;
    loop {
        sleep_until((Instant::now() + LOOK.min(limit)).min(patience.deadline)).await;
        let Some(relay) = relay.upgrade() else { return };
        let mut now = lock(&relay);
        let handed = now.handed.map_or(Duration::ZERO, |since| since.elapsed());
        if handed >= limit || (now.waits_for_the_bank() && now.kept_waiting + handed >= limit) {
            return now.cut(RelayError::Stalled);
        }
        if Instant::now() >= patience.deadline {
            return now.cut(RelayError::Deadline);
        }
        if now.keeps_the_bank_waiting(handed) {
            now.waited = Duration::ZERO;
            let reader = Arc::downgrade(&relay);
            // Nobody to read for any more: then it ends.
            let reading =
                poll_fn(move |cx| reader.upgrade().map_or(Poll::Ready(()), |relay| lock(&relay).poll_ahead(cx)));
            now.reading_ahead = Some(tokio::spawn(reading).abort_handle());
        }
    }
}

/// How often it is looked, and how long a caller may keep the bank waiting before the rest is read without it: long for
/// a machine that reads, short for a bank's connection.
const LOOK: Duration = Duration::from_millis(500);

/// Until when an answer is read on that nobody waits for. `None`: it is cut.
fn unwanted(answer: &Answer, exchange: &Exchange, patience: &Patience) -> Option<Instant> {
    if !exchange.is_safe() {
        return Some(patience.deadline);
    }
    let is_little = answer.size_hint().upper().is_some_and(|rest| rest <= LITTLE);
    is_little.then(|| patience.deadline.min(Instant::now() + UNWANTED))
}

/// For how long the answer to a safe request is awaited when nobody waits for it, and up to which length it is read: to
/// make a connection anew takes round trips and signatures, and a caller that has run out of patience often comes back
/// at once.
pub(super) const UNWANTED: Duration = Duration::from_millis(250);
const LITTLE: u64 = 256 * 1024;

async fn drain(answer: Answer, exchange: Box<Exchange>, deadline: Instant) {
    let mut rest = Relay::new(Source::Bank(answer), Some(exchange), None);
    let read = async { while let Some(Ok(_)) = poll_fn(|cx| rest.poll_next(cx)).await {} };
    // Past its patience the exchange is dropped, and logged as far as it came.
    if tokio::time::timeout_at(deadline, read).await.is_err() {
        match &mut rest.exchange {
            // It is mostly given up sooner, and nothing is wrong with it.
            Some(exchange) if exchange.is_safe() => exchange.given_up(),
            Some(exchange) => exchange.timed_out(),
            None => {}
        }
        rest.end();
    }
}
