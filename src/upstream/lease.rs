//! The use of one connection for one exchange: sends a request, relays its answer, and says what is known where there
//! is none. Must not know how a connection was made.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use rustls::AlertDescription;
use tokio::runtime::Handle;
use tokio::time::error::Elapsed;
use tokio::time::{Sleep, timeout_at};

use super::connector;
use super::counted::Late;
use super::handback::Handback;
use super::pool::{Connection, Pool};
use super::seats::Seat;
use super::{AcquireError, AnswerError, Cause, Destination, Outcome, Payload, ReactorId, SendError, Upstream};

/// The use of one connection for one exchange. Dropped before anything was sent, it gives the connection back.
pub struct Lease {
    /// `None` once it is sent on.
    held: Option<Held>,
}

/// What a lease holds, and its answer after it.
struct Held {
    connection: Connection,
    /// Of whoever has it.
    reactor: ReactorId,
    pool: Arc<Pool>,
    destination: Arc<Destination>,
    _under_way: UnderWay,
    written: u64,
    read: u64,
    /// Whether the bank cannot be relied upon to end this answer where it ends.
    is_last: bool,
}

/// Counts an exchange as under way for as long as it lives.
pub(super) struct UnderWay {
    destination: Arc<Destination>,
    _seat: Seat,
}

impl UnderWay {
    /// Refuses where as many exchanges are under way as the upstream's limit allows.
    pub(super) fn new(destination: &Arc<Destination>) -> Result<Self, AcquireError> {
        let seat = destination.in_flight.try_take().ok_or(AcquireError::Busy(destination.settings.in_flight))?;
        destination.metrics.in_flight.inc();
        Ok(Self { destination: Arc::clone(destination), _seat: seat })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.destination.metrics.in_flight.dec();
    }
}

impl Lease {
    pub(super) fn new(connection: Connection, upstream: &Upstream, under_way: UnderWay, reactor: ReactorId) -> Self {
        let held = Held {
            reactor,
            written: connection.count.written(),
            read: connection.count.read(),
            connection,
            pool: Arc::clone(&upstream.pool),
            _under_way: under_way,
            destination: Arc::clone(&upstream.destination),
            is_last: false,
        };
        Self { held: Some(held) }
    }

    /// Whether the connection has waited for a request before: the bank may be closing it at this moment.
    pub fn is_reused(&self) -> bool {
        self.held().connection.has_waited
    }

    fn held(&self) -> &Held {
        self.held.as_ref().expect("it is not sent on yet")
    }

    /// Sends a request, origin-form and with `Host`, and waits for the response's head.
    pub async fn send(self, request: Request<Payload>) -> Result<Response<Answer>, SendError> {
        let limit = self.held().destination.settings.timeouts.response;
        self.send_until(request, tokio::time::Instant::now() + limit).await
    }

    /// The same, and waits until `deadline` at most. The request is on its way with the call.
    pub fn send_until(
        mut self,
        request: Request<Payload>,
        deadline: tokio::time::Instant,
    ) -> impl Future<Output = Result<Response<Answer>, SendError>> + Send {
        let began = Instant::now();
        let mut held = self.held.take().expect("it is sent on once");
        let limit = held.destination.settings.timeouts.response;
        let deadline = deadline.min(tokio::time::Instant::from_std(began) + limit);
        held.connection.served += 1;
        held.connection.count.look();
        // Mapped rather than awaited: a future that awaits what it was given holds it twice, and every request moves
        // it.
        timeout_at(deadline, held.connection.sender.try_send_request(request))
            .map(move |sent| held.conclude(sent, began, limit))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Without a runtime the process is at its end.
        if let Some(held) = self.held.take().filter(|_| Handle::try_current().is_ok()) {
            held.give_back();
        }
    }
}

impl Held {
    fn give_back(self) {
        let Self { connection, pool, reactor, is_last, .. } = self;
        if !is_last && !connection.sender.is_closed() && !connection.count.is_broken() {
            Handback::leave(connection, pool, reactor);
        }
    }

    fn conclude(
        mut self,
        sent: Result<Result<Response<Incoming>, TrySendError<Request<Payload>>>, Elapsed>,
        began: Instant,
        limit: Duration,
    ) -> Result<Response<Answer>, SendError> {
        let result = match sent {
            // Nobody asked to switch: a bank that does speaks about something else.
            Ok(Ok(response)) if response.status().is_informational() => {
                Err(SendError { cause: Cause::Switched, outcome: Outcome::Unknown })
            }
            Ok(Ok(response)) if !is_plainly_framed(response.headers()) => {
                Err(SendError { cause: Cause::TransferCoding, outcome: Outcome::Answered })
            }
            Ok(Ok(response)) => Ok(response),
            Ok(Err(mut error)) => Err(self.failure(error.take_message().is_some(), error.into_error())),
            // The connection's task may be writing at this very moment, on another core: nothing is proven.
            Err(_) => Err(SendError {
                cause: self.late().unwrap_or(Cause::ResponseTimeout(limit)),
                outcome: Outcome::Unknown,
            }),
        };
        match result {
            Ok(response) => {
                self.is_last = announces_what_never_comes(&response);
                let took = began.elapsed();
                self.destination.metrics.response.observe(took.as_secs_f64());
                self.destination.skew.observe(response.headers(), began, took);
                Ok(response.map(|incoming| Answer::new(incoming, self, took)))
            }
            // What we cut ourselves is not the bank's failure.
            Err(SendError { cause: Cause::ClosedBeforeHead(_) | Cause::ClosedInHead(_), outcome })
                if self.pool.is_over() =>
            {
                Err(SendError { cause: Cause::Retired, outcome })
            }
            Err(error) => {
                self.destination.metrics.fail(error.cause.kind());
                Err(error)
            }
        }
    }

    /// Says what is known of a request whose connection has ended, and why it ended.
    fn failure(&self, unstarted: bool, error: hyper::Error) -> SendError {
        let count = &self.connection.count;
        let answered = count.read() > self.read;
        let (unjudged, served) = (self.connection.unjudged, self.connection.served);
        let unjudged = unjudged && !count.was_accepted();
        let refused = count.alert().filter(|alert| is_refusal(*alert, unjudged, served, count.read()));
        let proven = unstarted || count.written() == self.written || refused.is_some_and(speaks_of_a_certificate);
        let cause = match (refused, self.late()) {
            (Some(alert), _) => Cause::QwacRefused(alert),
            (None, Some(late)) => late,
            (None, None) if answered && unstarted => Cause::Unasked(error),
            (None, None) if answered && error.is_parse() => Cause::MalformedHead(error),
            (None, None) if answered => Cause::ClosedInHead(error),
            (None, None) => Cause::ClosedBeforeHead(error),
        };
        SendError { cause, outcome: if proven { Outcome::NotSent } else { Outcome::Unknown } }
    }

    /// What the bank wanted instead of answering.
    fn late(&self) -> Option<Cause> {
        Some(match self.connection.count.late()? {
            Late::Renegotiation => Cause::Renegotiation,
            Late::Certificate => Cause::PostHandshakeAuthentication,
        })
    }
}

/// Whether the only transfer coding is the one that hyper undoes (RFC 9112 section 7). Named once more, it is applied
/// twice (section 6.1).
pub fn is_plainly_framed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    // Twice chunked is undone once.
    codings.next().is_none_or(is_chunked) && codings.next().is_none()
}

/// Whether a body was announced where there is none (RFC 9110 section 8.6, RFC 9112 section 6.1): a bank that sends it
/// all the same, if only the chunk that ends it, would have it read as the next one's answer.
fn announces_what_never_comes(response: &Response<Incoming>) -> bool {
    let headers = response.headers();
    let has_length = || headers.get_all(CONTENT_LENGTH).iter().any(|length| length.as_bytes() != b"0");
    response.status() == StatusCode::NO_CONTENT && (has_length() || headers.contains_key(TRANSFER_ENCODING))
}

/// Whether an alert can still be about our certificate. A bank that did not ask for it has none to judge; in TLS 1.2 it
/// was judged before the lease began, and so it was on any connection that has served a request before, carried a byte
/// of an answer or a session ticket: what comes later speaks of the request, which may have been acted on.
fn is_refusal(alert: AlertDescription, unjudged: bool, served: u64, read: u64) -> bool {
    unjudged && served == 1 && read == 0 && connector::refuses_certificate(alert)
}

/// Whether it cannot be about anything else, so that no request was read before it. `access_denied` is for access
/// control (RFC 8446 section 6.2), which may have read one.
fn speaks_of_a_certificate(alert: AlertDescription) -> bool {
    alert != AlertDescription::AccessDenied
}

/// A response's body, frame by frame. Its end gives the connection back; dropped before, it closes it.
pub struct Answer {
    incoming: Incoming,
    held: Option<Held>,
    took: Duration,
    limit: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Answer {
    fn new(incoming: Incoming, held: Held, took: Duration) -> Self {
        let limit = held.destination.settings.timeouts.response_frame;
        let mut answer = Self { incoming, held: Some(held), took, limit, deadline: None };
        answer.give_back_at_end();
        answer
    }

    /// From the request's sending to the answer's head.
    pub fn took(&self) -> Duration {
        self.took
    }

    fn give_back_at_end(&mut self) {
        if self.incoming.is_end_stream() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        if let Some(held) = self.held.take() {
            held.give_back();
        }
    }

    /// Gives the connection up.
    fn fail(&mut self, error: AnswerError) -> AnswerError {
        let Some(held) = self.held.take() else { return error };
        if held.pool.is_over() {
            return AnswerError::Retired;
        }
        held.destination.metrics.fail(error.kind());
        error
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit))).as_mut().poll(cx)
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            ready!(self.poll_deadline(cx));
            let limit = self.limit;
            return Poll::Ready(Some(Err(self.fail(AnswerError::Timeout(limit)))));
        };
        self.deadline = None;
        match &frame {
            None => self.give_back(),
            // Nothing comes after them (RFC 9112 section 7.1), and hyper does not say so.
            Some(Ok(frame)) if frame.is_trailers() => self.give_back(),
            Some(Ok(_)) => self.give_back_at_end(),
            Some(Err(_)) => {}
        }
        Poll::Ready(frame.map(|result| result.map_err(|error| self.fail(AnswerError::Cut(error)))))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream() || self.held.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_proves_nothing_unless_our_certificate_was_still_to_be_judged() {
        let denied = AlertDescription::AccessDenied;
        assert!(is_refusal(denied, true, 1, 0));
        assert!(!is_refusal(denied, false, 1, 0), "TLS 1.2 judged it in the handshake, or nobody asked for it");
        assert!(!is_refusal(denied, true, 2, 0), "an earlier request was served");
        assert!(!is_refusal(denied, true, 1, 1), "an answer has begun");
        assert!(!is_refusal(AlertDescription::InternalError, true, 1, 0));
    }
}
