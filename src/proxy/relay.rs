//! The body that a local client gets: the bank's, streamed frame by frame, or a problem. It carries the exchange's
//! record to its end, whichever end that is.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::clock::Busy;
use super::exchange::Exchange;
use super::headers;
use crate::upstream::{Answer, AnswerError};

/// A response body on its way to the local client.
pub(super) struct RelayBody {
    source: Source,
    exchange: Option<Exchange>,
    /// How long an answer that nobody waits for any more is read on.
    patience: Duration,
    busy: Option<Busy>,
}

enum Source {
    Problem(Option<Bytes>),
    Bank(Answer),
    Ended,
}

impl RelayBody {
    pub(super) fn problem(text: Bytes, exchange: Option<Exchange>) -> Self {
        Self { source: Source::Problem(Some(text)), exchange, patience: Duration::ZERO, busy: None }
    }

    pub(super) fn bank(answer: Answer, exchange: Exchange, patience: Duration) -> Self {
        Self { source: Source::Bank(answer), exchange: Some(exchange), patience, busy: None }
    }

    /// Keeps the connection busy for as long as this body lives.
    pub(super) fn hold(&mut self, busy: Busy) {
        self.busy = Some(busy);
    }

    /// Nobody waits for this answer any more.
    pub(super) fn caller_gone(&mut self) {
        if let Some(exchange) = &mut self.exchange {
            exchange.caller_gone();
        }
    }

    fn end(&mut self) {
        self.source = Source::Ended;
        self.exchange = None;
    }

    fn took(&mut self, frame: &Result<Frame<Bytes>, AnswerError>) {
        let Some(exchange) = &mut self.exchange else { return };
        match frame {
            Ok(frame) => exchange.relayed(frame.data_ref().map_or(0, |data| data.len() as u64)),
            Err(error) => exchange.cut(error),
        }
    }
}

impl Body for RelayBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let frame = match &mut self.source {
            Source::Ended => None,
            Source::Problem(text) => text.take().map(|text| Ok(Frame::data(text))),
            Source::Bank(answer) => ready!(Pin::new(answer).poll_frame(cx)),
        };
        let frame = frame.map(|result| result.map(without_our_words));
        match &frame {
            Some(result) => self.took(result),
            None => self.end(),
        }
        if matches!(frame, Some(Err(_))) {
            self.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Ended => true,
            Source::Problem(text) => text.is_none(),
            Source::Bank(answer) => answer.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Ended => SizeHint::with_exact(0),
            Source::Problem(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Source::Bank(answer) => answer.size_hint(),
        }
    }
}

fn without_our_words(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        headers::inbound_trailers(trailers);
    }
    frame
}

impl Drop for RelayBody {
    /// A caller that goes away in the middle cuts a safe request, and no other: the answer to an unsafe one is read to
    /// its end, so that the log knows what became of it.
    fn drop(&mut self) {
        if self.is_end_stream() {
            return;
        }
        self.caller_gone();
        let exchange = self.exchange.take();
        if let (Source::Bank(answer), Some(exchange)) = (std::mem::replace(&mut self.source, Source::Ended), exchange)
            && !exchange.is_safe()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(drain(answer, exchange, self.patience));
        }
    }
}

async fn drain(answer: Answer, exchange: Exchange, patience: Duration) {
    let mut rest = RelayBody::bank(answer, exchange, Duration::ZERO);
    let read = async { while let Some(Ok(_)) = std::future::poll_fn(|cx| Pin::new(&mut rest).poll_frame(cx)).await {} };
    // Past its patience the exchange is dropped, and logged as far as it came.
    if tokio::time::timeout(patience, read).await.is_err() {
        rest.end();
    }
}
