//! How a fault is done. What hyper's server cannot do wrong is written past it: the connection is taken away from
//! hyper, and the bytes of a script are sent in place of its answer. Not when that happens.

use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue, RETRY_AFTER};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWriteExt as _, copy, sink};
use tokio::net::TcpStream;
use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;

use super::faults::{End, Mishap};
use super::resources::Reply;
use super::rules::Fault;
use super::{Bank, HANDSHAKE};

/// Takes a connection away from hyper.
pub(super) type Seize = Sender<Script>;

impl Bank {
    /// Shakes hands, or does what befalls connections instead.
    pub(super) async fn meet(&self, stream: TcpStream, mishap: Option<Mishap>) -> io::Result<TlsStream<TcpStream>> {
        let mut first = [0];
        match mishap {
            None => return timeout(HANDSHAKE, self.tls.accept(stream)).await?,
            Some(Mishap::ResetAtAccept) => stream.set_zero_linger()?,
            Some(Mishap::ResetInHandshake) => {
                // The peer waits for the answer to its first flight.
                timeout(HANDSHAKE, stream.peek(&mut first)).await??;
                stream.set_zero_linger()?;
            }
            Some(Mishap::AlertInHandshake) => {
                timeout(HANDSHAKE, stream.peek(&mut first)).await??;
                let mut stream = stream;
                stream.write_all(&ACCESS_DENIED).await?;
                read_on(&mut stream, LAST_WORDS).await;
            }
            Some(_) => {
                let tls = timeout(HANDSHAKE, self.tls.accept(stream)).await??;
                tls.get_ref().0.set_zero_linger()?;
            }
        }
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    /// Answers a request as this fault has it, or never returns: then the connection is no longer hyper's.
    pub(super) async fn mishandle(
        &self,
        mishap: Mishap,
        (head, incoming): (Parts, Incoming),
        connection: u64,
        seize: &Seize,
    ) -> Response<Full<Bytes>> {
        let method = head.method.clone();
        let script = match mishap {
            Mishap::ResetAfterHead => Script::new(Finish::Reset),
            Mishap::ResetInBody => {
                read_half(incoming, &head.headers).await;
                Script::new(Finish::Reset)
            }
            Mishap::EarlyAnswer => {
                let fault = Fault::new(StatusCode::SERVICE_UNAVAILABLE, EARLY);
                let mut response = self.conclude(&head, connection, (None, Err(fault)));
                response.headers_mut().insert(CONNECTION, CLOSE);
                Raw::new(&method, response).await.whole(AT_ONCE)
            }
            Mishap::Refusal(status) => {
                let refused = self.read(&head, incoming).await.and_then(|_| refusal(status));
                let mut response = self.conclude(&head, connection, (None, refused));
                if status == StatusCode::TOO_MANY_REQUESTS {
                    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
                }
                return response;
            }
            Mishap::Delay(time) => {
                let response = self.answer((head, incoming), connection).await;
                sleep(time).await;
                return response;
            }
            Mishap::AnnouncedClose => {
                let mut response = self.answer((head, incoming), connection).await;
                response.headers_mut().insert(CONNECTION, CLOSE);
                return response;
            }
            _ => Raw::new(&method, self.answer((head, incoming), connection).await).await.maimed(mishap),
        };
        // Nobody listens where the connection has ended already.
        let _ = seize.send(script).await;
        pending().await
    }
}

const CLOSE: HeaderValue = HeaderValue::from_static("close");
const EARLY: &str = "the bank answers before it has read the request";
/// The record of a fatal alert `access_denied`, as it is sent before there are keys (RFC 8446 section 6).
const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];
/// How long the other side may take to see that the connection is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn refusal(status: StatusCode) -> Result<Reply, Fault> {
    Err(Fault::new(status, "the bank refuses, because it was told to"))
}

/// Reads a body up to its middle.
async fn read_half(mut incoming: Incoming, headers: &HeaderMap) {
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let mut left = length.unwrap_or_default() / 2;
    while left > 0 {
        let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await else { return };
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
    }
}

/// An answer as it goes over the wire.
struct Raw {
    status: StatusCode,
    headers: HeaderMap,
    /// What the head says that the body has.
    length: usize,
    body: Bytes,
}

impl Raw {
    async fn new(method: &Method, response: Response<Full<Bytes>>) -> Self {
        let (head, mut body) = response.into_parts();
        let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        let body = frame.and_then(|frame| frame.ok()?.into_data().ok()).unwrap_or_default();
        let length = body.len();
        let body = if method == Method::HEAD { Bytes::new() } else { body };
        Self { status: head.status, headers: head.headers, length, body }
    }

    /// This answer with this fault.
    fn maimed(mut self, mishap: Mishap) -> Script {
        let middle = self.body.len() / 2;
        match mishap {
            Mishap::Silence(time) => Script::new(Finish::Silence(time)),
            Mishap::CloseAfterRequest => Script::new(AT_ONCE),
            Mishap::AlertAfterRequest => Script::new(Finish::Alert),
            Mishap::Garbage => Script::new(AT_ONCE).send(Bytes::from_static(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")),
            Mishap::HalfHead(end) => {
                let head = self.head();
                Script::new(end.into()).send(head.slice(..head.len() / 2))
            }
            Mishap::HalfAnswer(end) => Script::new(end.into()).send(self.head()).send(self.body.slice(..middle)),
            Mishap::LongLength => {
                self.length += SURPLUS;
                self.whole(Finish::Keep)
            }
            Mishap::ShortLength => {
                self.length = middle;
                self.whole(Finish::Keep)
            }
            Mishap::Drip(pause) => {
                let mut script = Script::new(Finish::Keep).send(self.head());
                script.pieces.extend((0..self.body.len()).map(|at| (pause, self.body.slice(at..=at))));
                script
            }
            Mishap::CloseAfterAnswer(time) => self.whole(Finish::Close(time)),
            Mishap::ResetAfterAnswer => self.whole(Finish::Reset),
            // The only one left that comes here has read the request, and does no more than that.
            _ => Script::new(Finish::Reset),
        }
    }

    fn whole(&self, finish: Finish) -> Script {
        Script::new(finish).send(self.head()).send(self.body.clone())
    }

    fn head(&self) -> Bytes {
        let mut head = format!("HTTP/1.1 {}\r\ncontent-length: {}\r\n", self.status, self.length).into_bytes();
        for (name, value) in &self.headers {
            head.extend_from_slice(name.as_ref());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head.into()
    }
}

/// Bytes that are announced and never come.
const SURPLUS: usize = 100;

/// What is sent in place of an answer, and what becomes of the connection.
pub(super) struct Script {
    /// Each after a pause.
    pieces: Vec<(Duration, Bytes)>,
    finish: Finish,
}

enum Finish {
    /// hyper gets it back.
    Keep,
    Reset,
    /// After a while.
    Close(Duration),
    Alert,
    /// Resets after a while, if the other side waits for so long.
    Silence(Duration),
}

const AT_ONCE: Finish = Finish::Close(Duration::ZERO);

impl From<End> for Finish {
    fn from(end: End) -> Self {
        match end {
            End::Reset => Self::Reset,
            End::Close => AT_ONCE,
        }
    }
}

impl Script {
    fn new(finish: Finish) -> Self {
        Self { pieces: Vec::new(), finish }
    }

    fn send(mut self, piece: Bytes) -> Self {
        self.pieces.push((Duration::ZERO, piece));
        self
    }

    /// Returns the connection where it goes on.
    pub(super) async fn play(self, mut tls: TlsStream<TcpStream>) -> io::Result<Option<TlsStream<TcpStream>>> {
        for (pause, piece) in self.pieces {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            tls.write_all(&piece).await?;
            tls.flush().await?;
        }
        match self.finish {
            Finish::Keep => return Ok(Some(tls)),
            Finish::Reset => tls.get_ref().0.set_zero_linger()?,
            Finish::Close(pause) => {
                sleep(pause).await;
                tls.shutdown().await?;
                read_on(&mut tls, LAST_WORDS).await;
            }
            Finish::Alert => {
                let (tcp, session) = tls.get_mut();
                // The session says what it thinks of such a record; the stream around it would pass on nothing any
                // more.
                session.read_tls(&mut &UNREADABLE[..])?;
                let _ = session.process_new_packets();
                let mut alert = Vec::new();
                session.write_tls(&mut alert)?;
                tcp.write_all(&alert).await?;
                read_on(&mut tls, LAST_WORDS).await;
            }
            Finish::Silence(time) => {
                read_on(&mut tls, time).await;
                tls.get_ref().0.set_zero_linger()?;
            }
        }
        Ok(None)
    }
}

/// Application data that no key fits.
const UNREADABLE: [u8; 25] = {
    let mut record = [0; 25];
    (record[0], record[1], record[2], record[4]) = (23, 3, 3, 20);
    record
};

/// Until the other side hangs up, or time is up: a socket that is closed with bytes unread is reset by the kernel, and
/// the reset would overtake what was sent.
async fn read_on(stream: &mut (impl AsyncRead + Unpin), time: Duration) {
    let _ = timeout(time, copy(stream, &mut sink())).await;
}
