//! One accepted connection: its first bytes, its clock, its HTTP. Not what a request means.
//!
//! The clock is ours: hyper's header timeout also ends idle kept-alive connections, and nothing of hyper's limits
//! the time before the first bytes.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, Sleep, timeout};

use super::relay::RelayBody;
use super::route::Transport;
use super::{Limits, Proxy, Timeouts};

/// Whether the process is on its way out.
#[derive(Clone)]
pub struct Drain(watch::Receiver<bool>);

impl Drain {
    /// Begins when the channel says `true`.
    pub fn new(begins: watch::Receiver<bool>) -> Self {
        Self(begins)
    }

    /// Waits until it begins.
    pub(super) async fn begins(&mut self) {
        // A channel without a sender will never say so: the process is ending without a drain.
        let _ = self.0.wait_for(|begun| *begun).await;
    }
}

/// What a listener accepts.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// Serves one connection to its end.
pub(super) async fn serve(
    mut stream: impl Stream,
    transport: Transport,
    proxy: Proxy,
    clock: Arc<Clock>,
    mut drain: Drain,
) {
    let first = tokio::select! {
        biased;
        first = timeout(clock.limits.header, first_bytes(&mut stream)) => first,
        // Without a request under way nothing is owed to this connection.
        () = drain.begins() => return,
        () = clock.evicted() => return,
    };
    match first {
        Ok(Ok((First::Http1, bytes))) => {
            serve_http1(Rewound::new(bytes, stream, &clock), transport, proxy, clock, drain).await;
        }
        Ok(Ok((First::Http2, bytes))) => {
            clock.multiplexed.store(1, Ordering::Relaxed);
            serve_http2(Rewound::new(bytes, stream, &clock), transport, proxy, clock, drain).await;
        }
        Ok(Ok((First::Tls, _))) => {
            proxy.malformed("tls", "a TLS hello on a plain-HTTP port: use http:// in the caller's URL");
        }
        Ok(Ok((First::Nothing, _)) | Err(_)) => {}
        Err(_) => proxy.malformed("silent", "no request within the header timeout"),
    }
}

async fn serve_http1(io: Rewound<impl Stream>, transport: Transport, proxy: Proxy, clock: Arc<Clock>, drain: Drain) {
    let Limits { header_bytes, headers, .. } = proxy.limits();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        // hyper's buffer never shrinks below 8 KiB, and the configuration knows.
        .max_buf_size(header_bytes)
        .max_headers(headers)
        .serve_connection(TokioIo::new(io), service(transport, &proxy, &clock));
    drive(connection, &proxy, &clock, drain).await;
}

async fn serve_http2(io: Rewound<impl Stream>, transport: Transport, proxy: Proxy, clock: Arc<Clock>, drain: Drain) {
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(proxy.limits().header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS)
        .serve_connection(TokioIo::new(io), service(transport, &proxy, &clock));
    drive(connection, &proxy, &clock, drain).await;
}

fn service(
    transport: Transport,
    proxy: &Proxy,
    clock: &Arc<Clock>,
) -> impl Service<
    Request<Incoming>,
    Response = Response<RelayBody>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<RelayBody>, Infallible>> + Send + 'static,
> + 'static {
    let (proxy, clock) = (proxy.clone(), Arc::clone(clock));
    service_fn(move |request| {
        let (proxy, busy) = (proxy.clone(), Busy::new(&clock));
        async move { Ok(proxy.call(request, transport, busy).await) }
    })
}

/// Requests at a time on one HTTP/2 connection: RFC 9113 section 6.5.2 asks for at least 100.
const STREAMS: u32 = 128;

/// Runs a connection until it ends, its clock runs out, it is evicted, or the drain finds it without a request.
async fn drive<C>(connection: C, proxy: &Proxy, clock: &Clock, mut drain: Drain)
where
    C: GracefulConnection<Error = hyper::Error>,
{
    let mut connection = pin!(connection);
    let mut expiry = Expiry::of(clock);
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            result = &mut connection => {
                if let Err(error) = result {
                    report(proxy, &error);
                }
                return;
            }
            () = &mut expiry => {
                if clock.state() == State::Head {
                    proxy.malformed("slow", "a request's head was not whole within the header timeout");
                }
                return;
            }
            () = clock.evicted() => return,
            () = drain.begins(), if !draining => {
                if !clock.is_busy() {
                    return;
                }
                connection.as_mut().graceful_shutdown();
                draining = true;
            }
        }
    }
}

/// Heads that hyper answered itself (400 or 431, without a body) had no exchange: this line is all there is of them.
fn report(proxy: &Proxy, error: &hyper::Error) {
    if error.is_parse() || error.is_parse_too_large() {
        proxy.malformed("http", &error.to_string());
    }
}

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Http1,
    /// The preface of HTTP/2 with prior knowledge (RFC 9113 section 3.4).
    Http2,
    /// A TLS record of type handshake.
    Tls,
    Nothing,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const TLS_HANDSHAKE: u8 = 0x16;

async fn first_bytes(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(First, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(2 * 1024);
    while PREFACE.starts_with(&bytes) && bytes.len() < PREFACE.len() {
        if stream.read_buf(&mut bytes).await? == 0 {
            break;
        }
    }
    let first = match bytes.first() {
        None => First::Nothing,
        Some(&TLS_HANDSHAKE) => First::Tls,
        Some(_) if bytes.starts_with(PREFACE) => First::Http2,
        Some(_) => First::Http1,
    };
    Ok((first, bytes))
}

/// The states of a connection, and since when. Shared with whoever has to pick one to close.
#[derive(Debug)]
pub(super) struct Clock {
    origin: Instant,
    state: AtomicU8,
    since: AtomicU64,
    under_way: AtomicUsize,
    /// 1 on HTTP/2, whose control frames are no request heads.
    multiplexed: AtomicU8,
    evict: Notify,
    limits: Timeouts,
}

/// A connection without an exchange in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// Nothing has come in yet.
    Fresh = 0,
    /// A part of a head.
    Head = 1,
    /// Between two requests.
    Idle = 2,
    /// At least one exchange in flight.
    Busy = 3,
}

impl Clock {
    pub(super) fn new(limits: Timeouts) -> Arc<Self> {
        Arc::new(Self {
            origin: Instant::now(),
            state: AtomicU8::new(State::Fresh as u8),
            since: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            multiplexed: AtomicU8::new(0),
            evict: Notify::new(),
            limits,
        })
    }

    /// Asks the connection to end, which it does unless it is busy by then.
    pub(super) fn evict(&self) {
        self.evict.notify_one();
    }

    async fn evicted(&self) {
        loop {
            self.evict.notified().await;
            if !self.is_busy() {
                return;
            }
        }
    }

    pub(super) fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            _ if self.under_way.load(Ordering::Acquire) > 0 => State::Busy,
            0 => State::Fresh,
            1 => State::Head,
            _ => State::Idle,
        }
    }

    fn is_busy(&self) -> bool {
        self.state() == State::Busy
    }

    fn enter(&self, state: State) {
        let now = self.origin.elapsed();
        self.since.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// The first bytes, already read: the head's time began with the connection.
    fn first_bytes_came_in(&self) {
        self.state.store(State::Head as u8, Ordering::Relaxed);
    }

    fn bytes_came_in(&self) {
        if self.state() == State::Idle && self.multiplexed.load(Ordering::Relaxed) == 0 {
            self.enter(State::Head);
        }
    }

    /// When the present state has lasted long enough.
    fn deadline(&self) -> Instant {
        let since = self.origin + Duration::from_millis(self.since.load(Ordering::Relaxed));
        match self.state() {
            State::Fresh | State::Head => since + self.limits.header,
            State::Idle => since + self.limits.client_idle,
            // An exchange has a deadline of its own; this one ends a caller that stopped reading its answer.
            State::Busy => since + self.limits.exchange + LAST_WORDS,
        }
    }
}

/// For the answer to an exchange whose deadline has passed.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// An exchange in flight on a connection.
pub(super) struct Busy(Arc<Clock>);

impl Busy {
    fn new(clock: &Arc<Clock>) -> Self {
        if clock.under_way.fetch_add(1, Ordering::AcqRel) == 0 {
            clock.enter(State::Idle);
        }
        Self(Arc::clone(clock))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.enter(State::Idle);
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Ends when the clock's present state has lasted too long. Polled whenever the connection is, it looks at the clock
/// anew each time, and touches its timer only where the new deadline is the earlier one.
struct Expiry<'a> {
    clock: &'a Clock,
    sleep: Pin<Box<Sleep>>,
}

impl<'a> Expiry<'a> {
    fn of(clock: &'a Clock) -> Self {
        Self { clock, sleep: Box::pin(tokio::time::sleep_until(clock.deadline())) }
    }
}

impl Future for Expiry<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let deadline = self.clock.deadline();
            if deadline < self.sleep.deadline() {
                self.sleep.as_mut().reset(deadline);
            }
            ready!(self.sleep.as_mut().poll(cx));
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(deadline);
        }
    }
}

/// A stream whose first bytes were read already. Tells the clock when more come in.
struct Rewound<S> {
    first: Vec<u8>,
    stream: S,
    clock: Arc<Clock>,
}

impl<S> Rewound<S> {
    fn new(first: Vec<u8>, stream: S, clock: &Arc<Clock>) -> Self {
        clock.first_bytes_came_in();
        Self { first, stream, clock: Arc::clone(clock) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let taken = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first[..taken]);
            self.first.drain(..taken);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.clock.bytes_came_in();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn first(bytes: &[u8]) -> First {
        first_bytes(&mut &*bytes).await.expect("a slice does not fail").0
    }

    #[tokio::test]
    async fn the_first_bytes_tell_the_protocol() {
        assert_eq!(first(b"GET / HTTP/1.1\r\n").await, First::Http1);
        assert_eq!(first(b"PROPFIND / HTTP/1.1\r\n").await, First::Http1);
        assert_eq!(first(PREFACE).await, First::Http2);
        assert_eq!(first(b"\x16\x03\x01\x02\x00").await, First::Tls);
        assert_eq!(first(b"").await, First::Nothing);
    }
}
