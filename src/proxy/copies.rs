//! What of a body is copied between the caller's socket and TLS, in either direction. The caller's socket is a pipe;
//! everything else is as in production, TLS to a bank on loopback included. Not what TLS does: it encrypts and decrypts
//! from one buffer into another.
//!
//! A byte counts as copied, once, if it leaves from another address than the one it came in at. Memory is used again,
//! so a byte is told by the word that it stands in; one that was copied back to its very first address would not be
//! seen.

#![cfg(test)]
#![cfg(feature = "sandbox")]

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prometheus::Registry;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::api::{self, Environment};
use super::clock::{Clock, tests::LIMITS};
use super::connection::{self, Departure, Phase};
use super::route::{self, Route, Routes, Sealing, Transport};
use super::{Limits, Metrics, Proxy, Shared};
use crate::identity::{Credential, KeySource, Pair, Qwac};
use crate::log::Log;
use crate::sandbox::kit::Kit;
use crate::seal::{Profile, SIGNATURE, Sealer, dialect};
use crate::upstream::places::{self, Gate, PASSED};
use crate::upstream::{Destination, Families, Origin, ReactorId, Roots, Settings, Timeouts, Trust, Upstream};

/// A part of the first read of a caller's connection, which tells its protocol: copied into hyper's buffer.
const FIRST: usize = 2048;
const LARGE: usize = 100 * 1024;
const SMALL: usize = 1024;
/// Smaller pieces of a body are joined, as they would be otherwise in a frame of memory each (`Payload::push`).
const TINY: usize = 4096;
/// What a body comes in.
const PIECES: [usize; 4] = [TINY, 16 * 1024, 64 * 1024, usize::MAX];

#[tokio::test]
async fn a_body_reaches_tls_in_the_memory_that_the_socket_was_read_into() {
    let world = World::new("sent").await;
    for piece in PIECES {
        let mut caller = world.caller(piece);
        let first = caller.call(LARGE, SMALL, "whole").await;
        // Where little of the first piece is left, it is joined to what was copied.
        let copied = if piece < FIRST + TINY { piece } else { FIRST };
        assert_eq!(first.sent, copied - first.head, "of a connection's first 100 KiB in pieces of {piece}");
        for _ in 0..2 {
            assert_eq!(caller.call(LARGE, SMALL, "whole").await.sent, 0, "100 KiB in pieces of {piece}");
            assert_eq!(caller.call(SMALL, SMALL, "whole").await.sent, 0, "1 KiB in pieces of {piece}");
        }
    }
    let mut caller = world.caller(usize::MAX);
    assert_eq!(caller.call(SMALL, SMALL, "whole").await.sent, SMALL, "all of it came with the first bytes");
}

#[tokio::test]
async fn an_answer_reaches_the_caller_in_the_memory_that_tls_decrypted_it_into() {
    let world = World::new("answered").await;
    for piece in PIECES {
        let mut caller = world.caller(piece);
        for framing in ["whole", "chunked"] {
            for _ in 0..2 {
                assert_eq!(caller.call(0, LARGE, framing).await.answered, 0, "100 KiB {framing} in pieces of {piece}");
                assert_eq!(caller.call(0, SMALL, framing).await.answered, 0, "1 KiB {framing} in pieces of {piece}");
            }
        }
    }
}

#[tokio::test]
async fn tiny_pieces_are_joined_and_count_as_copied() {
    let world = World::new("joined").await;
    let mut caller = world.caller(1000);
    caller.call(SMALL, SMALL, "whole").await;
    let copied = caller.call(LARGE, SMALL, "whole").await.sent;
    assert!((LARGE * 4 / 5..LARGE).contains(&copied), "{copied}: of five that become one only the first stays");
}

/// hyper's HTTP/2 puts frames together as they come in, and copies those below 256 bytes as they go out.
#[tokio::test]
async fn http2_copies_up_to_half_of_a_body_and_little_of_an_answer() {
    let world = World::new("multiplexed").await;
    for piece in PIECES {
        let Caller { pipe, _phases } = world.caller(piece);
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(pipe)).await;
        let (mut sender, connection) = handshake.expect("prior knowledge");
        tokio::spawn(connection);
        for (sent, answered) in [(LARGE, SMALL), (LARGE, SMALL), (SMALL, LARGE), (SMALL, LARGE)] {
            let (number, sent, expected) = bodies(sent, answered);
            let target = format!("http://localhost/sandbox/{}/{answered}/whole", number + 1);
            let request =
                Request::post(target).header(CONTENT_TYPE, "text/plain").body(Full::<Bytes>::from(sent.clone()));
            let response = sender.send_request(request.expect("legal")).await.expect("it is served");
            assert_eq!(response.into_body().collect().await.expect("whole").to_bytes(), expected);
            let copied =
                [copied(&sent, Gate::FromCaller, Gate::ToBank), copied(&expected, Gate::FromBank, Gate::ToCaller)];
            let most = [(sent.len() / 2).max(SMALL), 2048];
            assert!(copied[0] <= most[0] && copied[1] <= most[1], "{copied:?} in pieces of {piece}");
        }
    }
}

/// How many bytes of an exchange's bodies were copied, and how long its head was.
struct Copied {
    head: usize,
    sent: usize,
    answered: usize,
}

/// A caller's connection.
struct Caller {
    pipe: DuplexStream,
    _phases: watch::Sender<Phase>,
}

impl Caller {
    /// Sends a body of one size, and has the bank answer with one of another.
    async fn call(&mut self, sent: usize, answered: usize, framing: &str) -> Copied {
        let (number, sent, expected) = bodies(sent, answered);
        let (answer, length) = (number + 1, sent.len());
        let head = format!(
            "POST /sandbox/{answer}/{answered}/{framing} HTTP/1.1\r\nHost: localhost\r\n\
             Content-Type: text/plain\r\nContent-Length: {length}\r\n\r\n"
        );
        self.pipe.write_all(&[head.as_bytes(), &sent].concat()).await.expect("it listens");
        self.read_to_the_end_of(&expected).await;
        Copied {
            head: head.len(),
            sent: copied(&sent, Gate::FromCaller, Gate::ToBank),
            answered: copied(&expected, Gate::FromBank, Gate::ToCaller),
        }
    }

    async fn read_to_the_end_of(&mut self, expected: &[u8]) {
        let (mut answer, mut piece) = (Vec::new(), vec![0; LARGE]);
        let end = &expected[expected.len() - WORD..];
        loop {
            let read = timeout(LIMITS.body, self.pipe.read(&mut piece)).await.expect("in time").expect("it is served");
            assert!(read > 0, "closed after {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&piece[..read]);
            let is_chunked = answer.windows(7).any(|window| window == b"chunked");
            if answer.ends_with(if is_chunked { b"\r\n0\r\n\r\n" } else { end }) {
                break;
            }
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    }
}

/// The number of an exchange, and its two bodies. What has passed before is forgotten.
fn bodies(sent: usize, answered: usize) -> (u32, Vec<u8>, Vec<u8>) {
    static EXCHANGES: AtomicU32 = AtomicU32::new(0);
    let number = EXCHANGES.fetch_add(2, Ordering::Relaxed);
    PASSED.take();
    (number, body(number, sent), body(number + 1, answered))
}

/// Of a body, how many bytes left at another place than they came in at.
fn copied(body: &[u8], from: Gate, to: Gate) -> usize {
    places(body, from).into_iter().zip(places(body, to)).filter(|(came, left)| came != left).count()
}

/// Where the bytes of a body were, which must have passed a gate whole.
fn places(body: &[u8], gate: Gate) -> Vec<usize> {
    let Some(word) = body.get(..WORD) else { return Vec::new() };
    PASSED.with_borrow(|passed| {
        let passed = &passed[gate as usize];
        let is_first = |window: &[(usize, u8)]| window.iter().map(|(_, byte)| byte).eq(word);
        let first = passed.windows(WORD).position(is_first).expect("the body has passed");
        // Between its pieces are the heads of chunks or frames.
        let mut left = body.iter().peekable();
        let own = passed[first..].iter().filter(|(_, byte)| left.next_if(|next| *next == byte).is_some());
        let places = own.map(|(place, _)| *place).collect();
        assert!(left.next().is_none(), "{gate:?}: the body has passed whole");
        places
    })
}

/// A body of eight-letter words of which none stands in it twice, or in any other's.
fn body(number: u32, size: usize) -> Vec<u8> {
    let words =
        (number << 16..).flat_map(|word| (0..WORD).map(move |digit| LETTERS[(word >> (28 - 4 * digit)) as usize & 15]));
    words.take(size).collect()
}

const WORD: usize = 8;
/// None of which stands in the head of a chunk or of a small frame.
const LETTERS: &[u8; 16] = b"ghijklmnopqrstuv";

/// A caller's end of its pipe, as the proxy has it.
struct Watched(DuplexStream);

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.0).poll_read(cx, buf));
        places::note(Gate::FromCaller, &buf.filled()[before..]);
        Poll::Ready(result)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.0).poll_write_vectored(cx, bufs));
        places::note_written(Gate::ToCaller, bufs, &result);
        Poll::Ready(result)
    }

    /// As tokio's sockets have it.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A proxy with one sealed route, and the bank at its end.
struct World(Proxy);

impl World {
    async fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("sealproxy-copies-{test}-{}", uuid::Uuid::new_v4()));
        let kit = Kit::open_or_make(&folder, SystemTime::now()).expect("a folder of our own");
        let bank = serve_bank(&kit).await;
        let proxy = proxy(&kit, bank).await;
        std::fs::remove_dir_all(folder).expect("our own");
        Self(proxy)
    }

    /// A new connection, that carries so many bytes at a time.
    fn caller(&self, piece: usize) -> Caller {
        let (pipe, end) = duplex(piece);
        let (sender, phases) = watch::channel(Phase::Serving);
        let clock = Clock::new(LIMITS, Arc::default());
        let departure = Departure::new(phases);
        tokio::spawn(connection::serve(Watched(end), Transport::Tcp, self.0.clone(), clock, departure));
        Caller { pipe, _phases: sender }
    }
}

async fn proxy(kit: &Kit, bank: SocketAddr) -> Proxy {
    let registry = Registry::new();
    let (log, _writer) = Log::start(io::sink(), 1000).expect("a thread");
    let pair = |name: &str| Pair {
        setting: name.to_owned(),
        certificate: kit.path(&format!("{name}.pem")),
        key: KeySource::File(kit.path(&format!("{name}.key"))),
        passphrase: None,
    };
    let qwac = Qwac::load(&pair("qwac")).await.expect("just made");
    let credential = Credential::load(&pair("qsealc")).await.expect("just made");
    let profile = Profile { dialect: &dialect::BECM, key_id: None, key_id_quoted: None, sign: Vec::new() };
    let origin = Origin { host: bank.ip().to_string(), port: bank.port() };
    let families = Families::register(&registry).expect("names of our own");
    let destination = Destination::new("bank", settings(&origin, kit), &families, log.clone());
    let upstream = Upstream::new(destination, qwac.resolver(), None, SystemTime::now()).expect("its files are there");
    let metrics = Metrics::register(&registry).expect("names of our own");
    let route = Route {
        settings: route::Settings {
            path: "/sandbox/".to_owned(),
            upstream: "bank".to_owned(),
            methods: vec![Method::POST],
            seal: true,
        },
        host: HeaderValue::try_from(origin.to_string()).expect("an address"),
        origin,
        upstream: Some(Arc::new(upstream)),
        sealing: Sealing::By(Arc::new(Sealer::new(&profile, &credential).expect("it fits"))),
        api: &api::BECM,
        environment: Environment::Sandbox,
        pass: Arc::default(),
        metrics: metrics.of_route("/sandbox/"),
    };
    let limits = Limits {
        body: 1 << 20,
        buffered: 1 << 24,
        connections: 10,
        in_flight: 10,
        header_bytes: 64 * 1024,
        headers: 100,
    };
    let routes = Routes::new(1, vec![route], Vec::new());
    Proxy::new(Shared::new(routes, limits, LIMITS, metrics, log), ReactorId(0))
}

fn settings(origin: &Origin, kit: &Kit) -> Settings {
    let limit = Duration::from_secs(30);
    Settings {
        origin: origin.clone(),
        trust: Trust { roots: Roots::File(kit.path("ca.pem")), ..Trust::default() },
        private: true,
        via: None,
        idle: limit,
        max_age: limit,
        connections: 10,
        in_flight: 10,
        timeouts: Timeouts {
            resolve: limit,
            connect: limit,
            via: limit,
            handshake: limit,
            response: limit,
            response_frame: limit,
        },
    }
}

/// A bank that answers as the path says.
async fn serve_bank(kit: &Kit) -> SocketAddr {
    let settings = kit.bank(Vec::new()).expect("just made");
    let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has suites for both")
        .with_no_client_auth()
        .with_single_cert(settings.server_chain, settings.server_key)
        .expect("they fit");
    let (tls, listener) = (TlsAcceptor::from(Arc::new(tls)), TcpListener::bind("127.0.0.1:0").await.expect("a port"));
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("it comes");
            let stream = tls.accept(stream).await.expect("a handshake");
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::spawn(connection);
        }
    });
    address
}

async fn answer(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    assert!(request.headers().contains_key(SIGNATURE), "it is sealed");
    let path = request.uri().path().to_owned();
    request.into_body().collect().await.expect("a whole body");
    let [number, size, framing] = path.trim_start_matches("/sandbox/").split('/').collect::<Vec<_>>()[..] else {
        panic!("{path}")
    };
    let body = Bytes::from(body(number.parse().expect("a number"), size.parse().expect("a size")));
    Ok(Response::new(match framing {
        "whole" => Full::new(body).boxed(),
        _ => {
            let chunks: Vec<_> = body.chunks(5000).map(|chunk| Ok(Frame::data(body.slice_ref(chunk)))).collect();
            StreamBody::new(futures_util::stream::iter(chunks)).boxed()
        }
    }))
}
