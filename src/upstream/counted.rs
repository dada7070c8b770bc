//! Counts the plaintext bytes that TLS accepted and delivered on one connection: the proof of `not_sent`. Keeps
//! the first fault that the connection met, because hyper does not always pass it on.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose plaintext is counted.
pub(super) struct Counted<S> {
    stream: S,
    count: Arc<Count>,
}

/// What one connection has carried. Shared by the connection and whoever leases it.
#[derive(Debug, Default)]
pub(super) struct Count {
    written: AtomicU64,
    read: AtomicU64,
    alert: OnceLock<AlertDescription>,
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

    fn note(&self, error: &io::Error) {
        if let Some(alert) = alert_in(error) {
            // The first alert is the cause, what follows is its echo.
            let _ = self.alert.set(alert);
        }
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

/// The most plaintext that rustls puts in one TLS record (RFC 8446 section 5.1).
const RECORD: usize = 16 * 1024;

impl<S> Counted<S> {
    pub(super) fn new(stream: S, count: Arc<Count>) -> Self {
        Self { stream, count }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Counted<S> {
    /// Counts what a write of `offered` bytes may have put on the wire.
    ///
    /// A write that fails says nothing of how far it came. Up to one record it came nowhere: the record did not
    /// leave whole, and a part of a record cannot be decrypted. Of several records the first may have left.
    fn count_write(&self, result: &io::Result<usize>, offered: usize) {
        let left = match result {
            Ok(accepted) => *accepted,
            Err(_) if offered <= RECORD => 0,
            Err(_) => offered,
        };
        self.count.written.fetch_add(left as u64, Ordering::AcqRel);
    }

    /// A write that fails because the bank hung up often leaves the reason unread: an alert, sent before.
    fn look_for_alert(&mut self, cx: &mut Context<'_>, error: &io::Error) {
        self.count.note(error);
        let mut byte = [0];
        if let Poll::Ready(Err(reason)) = Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(&mut byte)) {
            self.count.note(&reason);
        }
    }

    fn written(&mut self, cx: &mut Context<'_>, result: io::Result<usize>, offered: usize) -> Poll<io::Result<usize>> {
        self.count_write(&result, offered);
        if let Err(error) = &result {
            self.look_for_alert(cx, error);
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        self.count.read.fetch_add((buf.filled().len() - before) as u64, Ordering::AcqRel);
        if let Err(error) = &result {
            self.count.note(error);
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        self.written(cx, result, buf.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let offered = bufs.iter().map(|buf| buf.len()).sum();
        let result = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        self.written(cx, result, offered)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
