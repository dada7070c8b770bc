//! Counts the plaintext bytes that TLS accepted and delivered on one connection: the proof of `not_sent`. Keeps
//! the first fault that the connection met and what the bank asked for too late, because hyper does not always pass
//! the one on, and rustls answers the other on its own.

use std::io::{self, Read as _};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use rustls::{AlertDescription, HandshakeType, PeerMisbehaved, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

#[cfg(test)]
use super::places::{self, Gate};
use super::wire::Wire;

/// A connection to a bank whose plaintext is counted.
pub(super) struct Counted {
    stream: TlsStream<Wire>,
    count: Arc<Count>,
    /// Why nothing can be written any more, until whoever reads to the end is told.
    broken: Option<io::Error>,
    /// Why nothing comes any more, until what came before is read.
    ended: Option<io::Error>,
}

/// What one connection has carried. Shared by the connection and whoever leases it.
#[derive(Debug, Default)]
pub(super) struct Count {
    written: AtomicU64,
    read: AtomicU64,
    alert: OnceLock<AlertDescription>,
    /// Whether the bank had sent session tickets before it.
    accepted: AtomicBool,
    late: OnceLock<(Late, u64)>,
    /// Whether a write has failed.
    broken: AtomicBool,
    /// Whether a request is about to be written.
    looks: AtomicBool,
}

/// What a bank asks for after the handshake and rustls does not do: mostly our certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// Another handshake (TLS 1.2, RFC 5246 section 7.4.1.1).
    Renegotiation,
    /// Our certificate (TLS 1.3, RFC 8446 section 4.6.2).
    Certificate,
}

impl Count {
    /// Plaintext bytes that may have left.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Plaintext bytes that have come in.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Acquire)
    }

    /// The TLS alert with which the bank ended the connection.
    pub(super) fn alert(&self) -> Option<AlertDescription> {
        self.alert.get().copied()
    }

    /// Whether the bank has sent session tickets: it does so once it is content with the handshake, our certificate
    /// included (RFC 8446 section 4.6.1).
    pub(super) fn was_accepted(&self) -> bool {
        self.accepted.load(Ordering::Acquire)
    }

    /// What the bank asked for too late, if it has not said a word since.
    pub(super) fn late(&self) -> Option<Late> {
        self.late.get().filter(|(_, read)| *read == self.read()).map(|(late, _)| *late)
    }

    /// Whether a write has failed: what is read is the last that comes.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Before a request is written: the next read takes what the socket has, even where the event loop has not seen it.
    /// hyper reads first, and what it finds, an end or what nobody asked for, keeps the request here.
    pub(super) fn look(&self) {
        self.looks.store(true, Ordering::Release);
    }

    fn note(&self, error: &io::Error) {
        // The first of each is the cause, what follows is its echo.
        if let Some(alert) = alert_in(error) {
            let _ = self.alert.set(alert);
        }
        if let Some(late) = late_in(error) {
            self.note_late(late);
        }
    }

    fn note_late(&self, late: Late) {
        let _ = self.late.set((late, self.read()));
    }
}

/// The fatal alert inside an error of the TLS stream.
pub(super) fn alert_in(error: &io::Error) -> Option<AlertDescription> {
    match tls_error(error)? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// What TLS says inside an error of its stream.
pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn late_in(error: &io::Error) -> Option<Late> {
    match tls_error(error)? {
        rustls::Error::PeerMisbehaved(PeerMisbehaved::TooManyRenegotiationRequests) => Some(Late::Renegotiation),
        rustls::Error::InappropriateHandshakeMessage { got_type: HandshakeType::CertificateRequest, .. } => {
            Some(Late::Certificate)
        }
        _ => None,
    }
}

/// The most plaintext that rustls puts in one TLS record (RFC 8446 section 5.1).
const RECORD: usize = 16 * 1024;

impl Counted {
    pub(super) fn new(stream: TlsStream<Wire>, count: Arc<Count>) -> Self {
        Self { stream, count, broken: None, ended: None }
    }

    /// Whether rustls has something to say that nobody gave it to write, under TLS 1.2. After the handshake that is one
    /// thing alone: it declines to renegotiate. Nothing else tells that the bank asked; its second try is an error.
    fn declines(&self) -> bool {
        let tls = self.stream.get_ref().1;
        tls.wants_write() && tls.protocol_version() == Some(ProtocolVersion::TLSv1_2)
    }

    /// Before an error is told: whoever hears of it looks here.
    fn note_tickets(&self) {
        if self.stream.get_ref().1.tls13_tickets_received() > 0 {
            self.count.accepted.store(true, Ordering::Release);
        }
    }

    /// A write that fails because the bank hung up leaves unread what it said before: an answer that did not wait for
    /// the whole request, an alert. So it is taken for written, as far as hyper goes, which reads on (RFC 9112 section
    /// 9.5).
    fn written(&mut self, cx: &Context<'_>, result: io::Result<usize>, offered: usize) -> Poll<io::Result<usize>> {
        self.count.written.fetch_add(left(&result, offered), Ordering::AcqRel);
        let Err(error) = result else { return Poll::Ready(result) };
        self.note_tickets();
        self.count.note(&error);
        self.count.broken.store(true, Ordering::Release);
        self.broken = Some(error);
        // What has come in meanwhile has woken nobody yet.
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(offered))
    }

    /// Reads what TLS has. What came before an alert is not lost by it: rustls tells the error as soon as it has it,
    /// and what it has decrypted by then only to who asks again.
    fn read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ended.is_none() {
            match ready!(Pin::new(&mut self.stream).poll_read(cx, buf)) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(error) => self.ended = Some(error),
            }
        }
        let decrypted = self.stream.get_mut().1.reader().read(buf.initialize_unfilled()).unwrap_or_default();
        buf.advance(decrypted);
        let Some(error) = self.ended.take_if(|_| decrypted == 0) else { return Poll::Ready(Ok(())) };
        self.count.note(&error);
        Poll::Ready(Err(error))
    }

    /// What ended the writing is also what ended the reading, where that ends without a word: a bank that closes TLS
    /// has said all that it has to say.
    fn end(&mut self, result: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        let Poll::Ready(Err(error)) = result else { return result };
        if error.kind() != io::ErrorKind::UnexpectedEof {
            return Poll::Ready(Err(error));
        }
        // rustls says so with a page of its manual.
        let unsaid =
            || io::Error::new(io::ErrorKind::UnexpectedEof, "the end of TCP without that of TLS (close_notify)");
        Poll::Ready(Err(self.broken.take().unwrap_or_else(unsaid)))
    }
}

/// How many bytes a write of `offered` may have put on the wire.
///
/// A write that fails says nothing of how far it came. Up to one record it came nowhere: the record did not leave
/// whole, and a part of a record cannot be decrypted. Of several records the first may have left.
fn left(result: &io::Result<usize>, offered: usize) -> u64 {
    let left = match result {
        Ok(accepted) => *accepted,
        Err(_) if offered <= RECORD => 0,
        Err(_) => offered,
    };
    left as u64
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (before, unsent) = (buf.filled().len(), self.stream.get_ref().1.wants_write());
        if self.count.looks.swap(false, Ordering::AcqRel) {
            self.stream.get_mut().0.look();
        }
        let result = self.read(cx, buf);
        #[cfg(test)]
        places::note(Gate::FromBank, &buf.filled()[before..]);
        self.note_tickets();
        self.count.read.fetch_add((buf.filled().len() - before) as u64, Ordering::AcqRel);
        if !unsent && !matches!(result, Poll::Ready(Err(_))) && self.declines() {
            self.count.note_late(Late::Renegotiation);
        }
        self.end(result)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.count.is_broken() {
            return Poll::Ready(Ok(buf.len()));
        }
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        #[cfg(test)]
        places::note_written(Gate::ToBank, &[io::IoSlice::new(buf)], &result);
        self.written(cx, result, buf.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let offered = bufs.iter().map(|buf| buf.len()).sum();
        if self.count.is_broken() {
            return Poll::Ready(Ok(offered));
        }
        let result = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        #[cfg(test)]
        places::note_written(Gate::ToBank, bufs, &result);
        self.written(cx, result, offered)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.count.is_broken() {
            return Poll::Ready(Ok(()));
        }
        match ready!(Pin::new(&mut self.stream).poll_flush(cx)) {
            // Counted when it was written.
            Err(error) => self.written(cx, Err(error), 0).map_ok(drop),
            Ok(()) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_too_late_is_forgotten_at_the_next_word() {
        let count = Count::default();
        assert_eq!(count.late(), None);
        count.read.store(7, Ordering::Release);
        count.note_late(Late::Renegotiation);
        assert_eq!(count.late(), Some(Late::Renegotiation));
        count.read.store(8, Ordering::Release);
        assert_eq!(count.late(), None, "the bank went on without");
    }

    /// Or a payment whose first record left would be sent once more.
    #[test]
    fn of_a_write_that_failed_the_first_of_several_records_may_have_left() {
        let failed = || Err(io::ErrorKind::ConnectionReset.into());
        assert_eq!((left(&failed(), 1), left(&failed(), RECORD)), (0, 0));
        assert_eq!(left(&failed(), RECORD + 1), RECORD as u64 + 1);
        assert_eq!((left(&Ok(7), 9), left(&Ok(0), 9)), (7, 0));
    }

    #[test]
    fn only_these_errors_are_about_what_was_asked_too_late() {
        let late = |error: rustls::Error| late_in(&io::Error::other(error));
        let second = rustls::Error::PeerMisbehaved(PeerMisbehaved::TooManyRenegotiationRequests);
        assert_eq!(late(second), Some(Late::Renegotiation));
        let unexpected = |got_type| rustls::Error::InappropriateHandshakeMessage { expect_types: Vec::new(), got_type };
        assert_eq!(late(unexpected(HandshakeType::CertificateRequest)), Some(Late::Certificate));
        assert_eq!(late(unexpected(HandshakeType::Finished)), None);
        assert_eq!(late(rustls::Error::DecryptError), None);
        assert_eq!(late_in(&io::ErrorKind::ConnectionReset.into()), None);
    }
}
