//! One accepted connection: its first bytes, its clock, its HTTP. Not what a request means.
//!
//! The clock is ours: hyper's header timeout also ends idle kept-alive connections, and nothing of hyper's limits
//! the time before the first bytes.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::BufMut as _;
use futures_util::FutureExt as _;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::timeout;

use super::clock::{self, Busy, Clock, Expiry, State, Usefulness};
use super::relay::RelayBody;
use super::route::Transport;
use super::{Limits, Proxy};

/// How far the process is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Connections come and stay.
    Serving,
    /// Whoever comes is served once, and told that the connection ends.
    Lingering,
    /// Nobody new is let in, and what is in flight finishes.
    Draining,
}

/// Tells how far the process is on its way out.
#[derive(Clone)]
pub struct Departure(watch::Receiver<Phase>);

impl Departure {
    /// Follows a channel whose phases only advance.
    pub fn new(phases: watch::Receiver<Phase>) -> Self {
        Self(phases)
    }

    /// Waits until a phase has begun.
    pub(super) async fn reaches(&mut self, phase: Phase) {
        // A channel without a sender will never say so: the process is ending without ceremony.
        let _ = self.0.wait_for(|now| *now >= phase).await;
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
    mut departure: Departure,
) {
    match tell_first_bytes(&mut stream, &clock, &mut departure).await {
        Ok((First::Http1, bytes)) => {
            serve_http1(Rewound::new(bytes, stream, &clock), transport, proxy, clock, departure).await;
        }
        Ok((First::Http2, bytes)) => {
            clock.multiplex();
            serve_http2(Rewound::new(bytes, stream, &clock), transport, proxy, clock, departure).await;
        }
        Ok((First::Tls, _)) => {
            proxy.malformed("tls", "a TLS hello on a plain-HTTP port: use http:// in the caller's URL");
        }
        Err(NoFirstBytes::Evicted) => proxy.metrics().evicted_connections.inc(),
        Err(NoFirstBytes::Late) => proxy.malformed("silent", "no request within the header timeout"),
        Ok((First::Nothing, _)) | Err(NoFirstBytes::Gone) => {}
    }
}

/// Why a connection has no first bytes.
enum NoFirstBytes {
    /// Its time is over.
    Late,
    /// Its place was needed.
    Evicted,
    /// It broke, or the process ends.
    Gone,
}

async fn tell_first_bytes(
    stream: &mut impl Stream,
    clock: &Clock,
    departure: &mut Departure,
) -> Result<(First, Vec<u8>), NoFirstBytes> {
    clock.start();
    let mut first = pin!(first_bytes(stream));
    let mut expiry = Expiry::of(clock);
    let mut last_call = false;
    loop {
        tokio::select! {
            biased;
            first = &mut first => return first.map_err(|_| NoFirstBytes::Gone),
            () = &mut expiry => return Err(if last_call { NoFirstBytes::Gone } else { NoFirstBytes::Late }),
            _ = clock.asked() => return Err(NoFirstBytes::Evicted),
            () = departure.reaches(Phase::Draining), if !last_call => {
                clock.last_call();
                last_call = true;
            }
        }
    }
}

async fn serve_http1(
    io: Rewound<impl Stream>,
    transport: Transport,
    proxy: Proxy,
    clock: Arc<Clock>,
    departure: Departure,
) {
    let Limits { header_bytes, headers, .. } = proxy.limits();
    let mut http = http1::Builder::new();
    // hyper's buffer never shrinks below 8 KiB, and the configuration knows.
    http.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(header_bytes);
    // Told its own default it fills a table of that size for each request.
    if headers != HYPERS_OWN_HEADERS {
        http.max_headers(headers);
    }
    let connection = Box::pin(http.serve_connection(TokioIo::new(io), service(transport, &proxy, &clock)));
    drive(connection, &proxy, &clock, departure).await;
}

/// How many fields hyper takes unless it is told.
const HYPERS_OWN_HEADERS: usize = 100;

async fn serve_http2(
    io: Rewound<impl Stream>,
    transport: Transport,
    proxy: Proxy,
    clock: Arc<Clock>,
    departure: Departure,
) {
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(proxy.limits().header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS)
        // What a caller does not take stays with us, where it is counted.
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(TokioIo::new(io), service(transport, &proxy, &clock));
    drive(Box::pin(connection), &proxy, &clock, departure).await;
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
        let clock = Arc::clone(&clock);
        // Mapped rather than awaited: a future that awaits another one holds it twice, and hyper moves it with each
        // request.
        proxy.call(request, transport, Busy::new(&clock)).map(move |mut response| {
            if clock.is_leaving() {
                say_goodbye(&mut response, &clock);
            }
            Ok(response)
        })
    })
}

/// Tells the caller to come back on another connection: HTTP/2 by GOAWAY (RFC 9113 section 6.8), HTTP/1.1 in the
/// answer (RFC 9112 section 9.6), upon which hyper closes.
fn say_goodbye(response: &mut Response<RelayBody>, clock: &Clock) {
    if clock.is_multiplexed() {
        clock.say_goodbye();
    } else {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Requests at a time on one HTTP/2 connection: RFC 9113 section 6.5.2 asks for at least 100.
const STREAMS: u32 = 100;
/// Bytes of one answer that HTTP/2 holds: a frame of its default size.
const SEND_BUFFER: usize = 16 * 1024;

/// Runs a connection until it ends, its clock runs out, it is evicted, or the departure finds it without a request.
/// The connection is in a box, or each future on the way here would hold it twice.
async fn drive<C>(mut connection: Pin<Box<C>>, proxy: &Proxy, clock: &Clock, mut departure: Departure)
where
    C: GracefulConnection<Error = hyper::Error>,
{
    let mut expiry = Expiry::of(clock);
    let mut next = Some(Phase::Lingering);
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
                return take_leave(connection, clock, proxy.timeouts().exchange).await;
            }
            asked = clock.asked() => match asked {
                clock::Ask::Go => return,
                clock::Ask::MakeRoom => {
                    proxy.metrics().evicted_connections.inc();
                    return take_leave(connection, clock, proxy.timeouts().exchange).await;
                }
                clock::Ask::NoMore => connection.as_mut().graceful_shutdown(),
            },
            () = reaches(&mut departure, next) => {
                if wind_down(clock, next) {
                    connection.as_mut().graceful_shutdown();
                }
                next = (next == Some(Phase::Lingering)).then_some(Phase::Draining);
            }
        }
    }
}

/// Over HTTP/2 a caller is told which of its requests were taken before the connection ends (RFC 9113 section 6.8): one
/// that sends at this very moment knows then that it can send again. What was taken is answered, unless its caller
/// keeps it waiting.
async fn take_leave<C>(mut connection: Pin<Box<C>>, clock: &Clock, limit: Duration)
where
    C: GracefulConnection<Error = hyper::Error>,
{
    // One that keeps a request waiting has had its time.
    if !clock.is_multiplexed() || clock.state() == State::Busy {
        return;
    }
    connection.as_mut().graceful_shutdown();
    // A caller that never hears of the end could go on for ever.
    let ends = Instant::now() + limit;
    while timeout(LEAVE, connection.as_mut()).await.is_err()
        && clock.usefulness() == Usefulness::Busy
        && Instant::now() < ends
    {
        clock.stays();
    }
}

/// For a caller to hear of the end: it takes one round trip.
const LEAVE: Duration = Duration::from_millis(200);

async fn reaches(departure: &mut Departure, phase: Option<Phase>) {
    match phase {
        Some(phase) => departure.reaches(phase).await,
        None => std::future::pending().await,
    }
}

/// Whether a connection is to end as soon as what is in flight on it has finished. One that has yet to bring its first
/// request, or that is in the middle of a head, brings it: its answer says goodbye.
fn wind_down(clock: &Clock, phase: Option<Phase>) -> bool {
    let owes_a_request = clock.state() < State::Idle;
    clock.leave();
    match phase {
        Some(Phase::Draining) if owes_a_request => {
            clock.last_call();
            false
        }
        Some(Phase::Draining) => true,
        // On HTTP/1.1 the next answer says so, and an idle caller may have sent its next request already.
        _ => clock.is_multiplexed() && !owes_a_request,
    }
}

/// Heads that hyper answered itself (400 or 431, without a body) had no exchange: this line is all there is of them.
fn report(proxy: &Proxy, error: &hyper::Error) {
    if error.is_parse() || error.is_parse_too_large() {
        let said = error.to_string();
        // It does not say which.
        let limits = "a head of more than `limits.header_bytes`, or of more fields than `limits.headers`";
        proxy.malformed("http", if said == "message head is too large" { limits } else { &said });
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

/// Bytes of one read, at most. hyper makes room for twice as much after a read that fills its buffer, up to the limit
/// of a head, and keeps it for the next request, whatever that is: one byte less, and 16 KiB are as far as it goes.
const PIECE: usize = 16 * 1024 - 1;

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
            if self.first.is_empty() {
                self.first = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        let read = ready!(pin!(self.stream.read_buf(&mut (&mut *buf).limit(PIECE))).poll(cx))?;
        if read > 0 {
            self.clock.bytes_came_in();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.clock.blocked(written.is_pending());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.clock.blocked(written.is_pending());
        written
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
    use std::io::Write as _;
    use std::time::Duration;

    use super::super::clock::tests::LIMITS;
    use super::*;

    async fn first(bytes: &[u8]) -> First {
        first_bytes(&mut &*bytes).await.expect("a slice does not fail").0
    }

    /// A socket says that it can be read only once its reactor has asked the system.
    #[tokio::test(start_paused = true)]
    async fn a_caller_has_its_time_though_the_reactor_was_busy_until_now() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut caller = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        caller.write_all(b"GET / HTTP/1.1\r\n").expect("written");
        let (accepted, _) = listener.accept().expect("it came");
        accepted.set_nonblocking(true).expect("a socket");
        let clock = Clock::new(LIMITS, Arc::default());
        tokio::time::advance(LIMITS.header + Duration::from_secs(1)).await;
        let mut stream = tokio::net::TcpStream::from_std(accepted).expect("a socket");
        let (_phases, phases) = watch::channel(Phase::Serving);
        let first = tell_first_bytes(&mut stream, &clock, &mut Departure::new(phases)).await;
        assert!(matches!(first, Ok((First::Http1, _))), "it is heard");
    }

    #[tokio::test]
    async fn a_read_takes_a_piece_at_most_and_the_first_bytes_leave_nothing_behind() {
        let bytes: Vec<u8> = (0..3 * PIECE).map(|index| u8::try_from(index % 251).expect("small")).collect();
        let mut io = Rewound::new(bytes[..9].to_vec(), &bytes[9..], &Clock::new(LIMITS, Arc::default()));
        let mut read = vec![0; 4 * PIECE];
        let mut pieces = Vec::new();
        let mut taken = 0;
        while taken < bytes.len() {
            let piece = io.read(&mut read[taken..]).await.expect("a slice does not fail");
            taken += piece;
            pieces.push(piece);
        }
        assert_eq!(pieces, [9, PIECE, PIECE, PIECE - 9]);
        assert!(read[..taken] == bytes);
        assert_eq!(io.first.capacity(), 0);
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
