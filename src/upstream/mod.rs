//! The mutual-TLS side: live connections to a bank, split into acquire and send, so that a request is sealed only
//! when its connection stands. Must not know seals or routes.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use rustls::AlertDescription;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, timeout};

mod attempts;
mod connector;
mod counted;
mod hosts;
mod metrics;
mod payload;
mod pool;
mod resolver;
mod tls;
mod via;

pub use attempts::Attempts;
use connector::{Connector, TURNAROUND};
pub use metrics::Families;
pub use payload::Payload;
use pool::{Connection, Pool};
use resolver::{Resolver, Unresolved};
pub use tls::TrustError;
use via::Tunnel;
pub use via::{CredentialsError, Via, ViaFault};

/// How one bank is reached.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Scheme `https`, host and port.
    pub origin: Origin,
    /// Whose certificates the bank may present.
    pub trust: Trust,
    /// Whether the name may resolve to a loopback, private or link-local address.
    pub private: bool,
    /// The company's proxy that leads there; `None`: directly. The environment's proxy variables are never read.
    pub via: Option<Via>,
    /// How long an idle connection is kept: below the bank's own limit.
    pub idle: Duration,
    /// How long a connection is used at all.
    pub max_age: Duration,
    /// How many connections may be open at a time.
    pub connections: usize,
    /// How many requests may be under way at a time.
    pub in_flight: usize,
    /// Deadlines of the single steps.
    pub timeouts: Timeouts,
}

/// Deadlines of the steps of one exchange with a bank.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Name resolution.
    pub resolve: Duration,
    /// TCP connect, over all addresses.
    pub connect: Duration,
    /// From CONNECT to the company's proxy to the head of its answer.
    pub via: Duration,
    /// TLS handshake.
    pub handshake: Duration,
    /// From the request's first byte to the response's head.
    pub response: Duration,
    /// Between two frames of the response's body.
    pub response_frame: Duration,
}

/// Host and port of a bank, reached with TLS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// A DNS name in lower case, or an address; an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Origin {
    /// The authority as it is sent and signed in `host`: without the port where it is 443.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        if self.port == 443 { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// Whose certificates a bank may present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The roots of the operating system.
    System,
    /// The certificates in a PEM file, and no others.
    File(PathBuf),
}

/// Which reactor asks: connections are driven where they were made and reused there first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReactorId(pub usize);

/// What outlives a change of identity: where the bank is, how much it is asked at a time, what was counted.
pub struct Destination {
    settings: Settings,
    /// Of the bank, or of the company's proxy where there is one.
    resolver: Arc<Resolver>,
    connections: Arc<Semaphore>,
    in_flight: Arc<Semaphore>,
    metrics: metrics::Metrics,
}

impl Destination {
    /// A bank under its name in the configuration.
    pub fn new(name: &str, settings: Settings, families: &Families) -> Arc<Self> {
        let Origin { host, port } = &settings.origin;
        let (host, port) = settings.via.as_ref().map_or((host, port), |via| (&via.host, &via.port));
        Arc::new(Self {
            resolver: Resolver::new(host, *port, settings.timeouts.resolve),
            connections: Arc::new(Semaphore::new(settings.connections)),
            in_flight: Arc::new(Semaphore::new(settings.in_flight)),
            metrics: families.of(name),
            settings,
        })
    }
}

/// A bank as one identity reaches it. One per generation.
pub struct Upstream {
    destination: Arc<Destination>,
    connector: Connector,
    pool: Arc<Pool>,
}

impl Upstream {
    /// Joins a destination with the identity that is presented to it.
    pub fn new(destination: Arc<Destination>, resolver: Arc<dyn ResolvesClientCert>) -> Result<Self, SetupError> {
        let settings = &destination.settings;
        let name = ServerName::try_from(settings.origin.host.clone())
            .map_err(|_| SetupError::Name(settings.origin.host.clone()))?;
        let config = tls::client_config(&settings.trust, resolver)?;
        let via = settings.via.as_ref();
        let tunnel = via.map(|via| Tunnel::new(&settings.origin, via.credentials.as_deref())).transpose()?;
        Ok(Self {
            pool: Pool::new(settings.idle, settings.max_age),
            connector: Connector::new(Arc::clone(&destination), name, Arc::new(config), tunnel),
            destination,
        })
    }

    /// Where requests go.
    pub fn origin(&self) -> &Origin {
        &self.destination.settings.origin
    }

    /// Leases a connection that stands: an idle one, or a new one. Nothing has been sent when this fails.
    pub async fn acquire(&self, reactor: ReactorId) -> Result<Lease, AcquireError> {
        self.counted(self.any(reactor)).await
    }

    /// Leases a new connection, for a request that an idle one has just failed.
    pub async fn acquire_new(&self, reactor: ReactorId) -> Result<Lease, AcquireError> {
        self.counted(self.new_connection(reactor)).await
    }

    async fn counted(
        &self,
        connection: impl Future<Output = Result<Connection, AcquireError>>,
    ) -> Result<Lease, AcquireError> {
        let under_way = UnderWay::new(&self.destination).ok_or(AcquireError::Busy);
        let lease = match under_way {
            Ok(under_way) => connection.await.map(|connection| Lease::new(connection, self, under_way)),
            Err(busy) => Err(busy),
        };
        lease.inspect_err(|error| self.destination.metrics.fail(error.kind()))
    }

    async fn any(&self, reactor: ReactorId) -> Result<Connection, AcquireError> {
        loop {
            // Asked for before the look, so that no return between look and wait is missed.
            let returned = self.pool.returned();
            if let Some(connection) = self.pool.take(reactor) {
                return Ok(connection);
            }
            tokio::select! {
                biased;
                permit = self.permit() => return self.dial(reactor, permit?).await,
                () = returned => {}
            }
        }
    }

    async fn new_connection(&self, reactor: ReactorId) -> Result<Connection, AcquireError> {
        let permit = self.permit().await?;
        self.dial(reactor, permit).await
    }

    /// The right to one more connection, within the time that a connect may take.
    async fn permit(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        let connections = Arc::clone(&self.destination.connections);
        let permit = timeout(self.destination.settings.timeouts.connect, connections.acquire_owned()).await;
        permit.ok().and_then(Result::ok).ok_or(AcquireError::Busy)
    }

    async fn dial(&self, reactor: ReactorId, permit: OwnedSemaphorePermit) -> Result<Connection, AcquireError> {
        let established = self.connector.connect(permit).await?;
        Ok(Connection {
            sender: established.sender,
            count: established.count,
            born: Instant::now(),
            home: reactor,
            served: 0,
        })
    }
}

/// The use of one connection for one exchange.
pub struct Lease {
    connection: Connection,
    pool: Arc<Pool>,
    destination: Arc<Destination>,
    _under_way: UnderWay,
    written: u64,
    read: u64,
}

/// Counts an exchange as under way for as long as it lives.
struct UnderWay {
    destination: Arc<Destination>,
    _permit: OwnedSemaphorePermit,
}

impl UnderWay {
    /// `None` where as many exchanges are under way as the upstream's limit allows.
    fn new(destination: &Arc<Destination>) -> Option<Self> {
        let permit = Arc::clone(&destination.in_flight).try_acquire_owned().ok()?;
        destination.metrics.in_flight.inc();
        Some(Self { destination: Arc::clone(destination), _permit: permit })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.destination.metrics.in_flight.dec();
    }
}

impl Lease {
    fn new(connection: Connection, upstream: &Upstream, under_way: UnderWay) -> Self {
        Self {
            written: connection.count.written(),
            read: connection.count.read(),
            connection,
            pool: Arc::clone(&upstream.pool),
            _under_way: under_way,
            destination: Arc::clone(&upstream.destination),
        }
    }

    /// Whether the connection has carried a request before: the bank may be closing it at this moment.
    pub fn is_reused(&self) -> bool {
        self.connection.served > 0
    }

    /// Sends a request, origin-form and with `Host`, and waits for the response's head.
    pub async fn send(mut self, request: Request<Payload>) -> Result<Response<Answer>, SendError> {
        let began = Instant::now();
        let limit = self.destination.settings.timeouts.response;
        self.connection.served += 1;
        let result = match timeout(limit, self.connection.sender.try_send_request(request)).await {
            // Nobody asked to switch: a bank that does speaks about something else.
            Ok(Ok(response)) if response.status().is_informational() => {
                Err(SendError { cause: Cause::Switched, outcome: Outcome::Unknown })
            }
            Ok(Ok(response)) => Ok(response),
            Ok(Err(mut error)) => Err(self.failure(error.take_message().is_some(), error.into_error())),
            // The connection's task may be writing at this very moment, on another core: nothing is proven.
            Err(_) => Err(SendError { cause: Cause::ResponseTimeout(limit), outcome: Outcome::Unknown }),
        };
        match result {
            Ok(response) => {
                self.destination.metrics.response.observe(began.elapsed().as_secs_f64());
                Ok(response.map(|incoming| Answer::new(incoming, self)))
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
        let refused = count.alert().filter(|alert| !answered && connector::refuses_certificate(*alert));
        let proven = unstarted || count.written() == self.written || refused.is_some();
        let cause = match refused {
            Some(alert) => Cause::QwacRefused(alert),
            None if answered && error.is_parse() => Cause::MalformedHead(error),
            None if answered => Cause::ClosedInHead(error),
            None => Cause::ClosedBeforeHead(error),
        };
        SendError { cause, outcome: if proven { Outcome::NotSent } else { Outcome::Unknown } }
    }
}

/// A response's body, frame by frame. Its end gives the connection back; dropped before, it closes it.
pub struct Answer {
    incoming: Incoming,
    lease: Option<Lease>,
    limit: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Answer {
    fn new(incoming: Incoming, lease: Lease) -> Self {
        let limit = lease.destination.settings.timeouts.response_frame;
        let mut answer = Self { incoming, lease: Some(lease), limit, deadline: None };
        answer.give_back_at_end();
        answer
    }

    fn give_back_at_end(&mut self) {
        if self.incoming.is_end_stream() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        let Some(Lease { mut connection, pool, .. }) = self.lease.take() else { return };
        if connection.sender.is_closed() {
            return;
        }
        tokio::spawn(async move {
            let ready = timeout(TURNAROUND, poll_fn(|cx| connection.sender.poll_ready(cx))).await;
            if matches!(ready, Ok(Ok(()))) {
                pool.put(connection);
            }
        });
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
            self.lease = None;
            return Poll::Ready(Some(Err(AnswerError::Timeout(limit))));
        };
        self.deadline = None;
        match frame {
            None => self.give_back(),
            Some(Ok(_)) => self.give_back_at_end(),
            Some(Err(_)) => self.lease = None,
        }
        Poll::Ready(frame.map(|result| result.map_err(AnswerError::Cut)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// What is known of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The bank cannot have acted on it.
    NotSent,
    /// The bank may or may not have acted on it.
    Unknown,
    /// The bank answered.
    Answered,
}

impl Outcome {
    /// The word in logs, metrics and problems.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::Unknown => "unknown",
            Self::Answered => "answered",
        }
    }
}

/// Why an upstream cannot be built.
#[derive(Debug, Error)]
pub enum SetupError {
    /// The host of the URL is no name that a certificate could carry.
    #[error("{0:?} is not a host name")]
    Name(String),
    /// Its trust.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The credentials for the company's proxy.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// Why no connection stands. Nothing was sent.
#[derive(Debug, Error)]
pub enum AcquireError {
    /// The name has no address.
    #[error("the upstream's name does not resolve")]
    Resolve(#[source] Arc<io::Error>),
    /// The name took too long.
    #[error("the upstream's name did not resolve within {0:?}")]
    ResolveTimeout(Duration),
    /// The name leads into our own network.
    #[error("the upstream's name resolves to {0}, which is not an address of the internet")]
    PrivateAddress(IpAddr),
    /// Nobody listens.
    #[error("the upstream refused the connection")]
    Refused(#[source] Attempts),
    /// No way there.
    #[error("the upstream cannot be reached")]
    Connect(#[source] Attempts),
    /// No answer to the connect.
    #[error("no connection to the upstream within {0:?}")]
    ConnectTimeout(Duration, #[source] Attempts),
    /// No connection to the company's proxy.
    #[error("the proxy of the setting `via` cannot be reached")]
    ViaUnreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The company's proxy wants to know who we are.
    #[error("the proxy of the setting `via` asks for credentials (407), and none are configured")]
    ViaNoCredentials,
    /// The company's proxy does not know us.
    #[error("the proxy of the setting `via` does not accept our credentials (407)")]
    ViaCredentials,
    /// The company's proxy opens no tunnel to the bank, or could not; holds its status.
    #[error("the proxy of the setting `via` opened no tunnel to the upstream and answered {0}")]
    ViaRefused(u16),
    /// The company's proxy does not answer.
    #[error("the proxy of the setting `via` opened no tunnel to the upstream within {0:?}")]
    ViaTimeout(Duration),
    /// The company's proxy does not speak HTTP, or says more than its answer.
    #[error("the proxy of the setting `via` gave no proper answer to CONNECT")]
    ViaMalformed(#[source] ViaFault),
    /// The handshake began and did not end.
    #[error("the TLS handshake with the upstream took longer than {0:?}")]
    HandshakeTimeout(Duration),
    /// We do not trust the bank.
    #[error("the upstream's certificate is not trusted; the setting `trust` says whose certificates are")]
    Untrusted(#[source] io::Error),
    /// The bank's certificate is somebody else's.
    #[error("the upstream's certificate is for another name")]
    WrongName(#[source] io::Error),
    /// The bank's certificate has expired.
    #[error("the upstream's certificate has expired")]
    Expired(#[source] io::Error),
    /// The bank does not trust us.
    #[error("the upstream refused our QWAC with the TLS alert {0:?}")]
    QwacRefused(AlertDescription),
    /// No version, suite or protocol that both speak.
    #[error("the upstream and we have no TLS version, cipher suite or protocol in common")]
    NoCommonProtocol(#[source] io::Error),
    /// The handshake failed otherwise.
    #[error("the TLS handshake with the upstream failed")]
    Handshake(#[source] io::Error),
    /// hyper would not take the connection.
    #[error("HTTP could not begin on the connection")]
    Http(#[source] hyper::Error),
    /// All requests or connections that the limits allow are under way.
    #[error("the upstream has as many requests under way as its limits allow")]
    Busy,
}

impl From<Unresolved> for AcquireError {
    fn from(unresolved: Unresolved) -> Self {
        match unresolved {
            Unresolved::Failed(error) => Self::Resolve(error),
            Unresolved::Silent(limit) => Self::ResolveTimeout(limit),
        }
    }
}

impl AcquireError {
    /// One stable word for problems and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Resolve(_) | Self::ResolveTimeout(_) => "upstream-unresolvable",
            Self::PrivateAddress(_) => "upstream-private-address",
            Self::Refused(_) => "upstream-refused",
            Self::Connect(_) => "upstream-unreachable",
            Self::ConnectTimeout(..) => "upstream-connect-timeout",
            Self::ViaUnreachable(_) => "via-unreachable",
            Self::ViaNoCredentials | Self::ViaCredentials => "via-authentication",
            Self::ViaRefused(_) => "via-refused",
            Self::ViaTimeout(_) => "via-timeout",
            Self::ViaMalformed(_) => "via-malformed",
            Self::HandshakeTimeout(_) => "upstream-handshake-timeout",
            Self::Handshake(_) | Self::Http(_) => "upstream-handshake-failed",
            Self::Untrusted(_) => "upstream-untrusted",
            Self::WrongName(_) => "upstream-wrong-name",
            Self::Expired(_) => "upstream-expired",
            Self::QwacRefused(_) => "qwac-refused",
            Self::NoCommonProtocol(_) => "upstream-no-common-protocol",
            Self::Busy => "upstream-busy",
        }
    }
}

/// Why there is no response, and what is known of the request.
#[derive(Debug, Error)]
#[error("{cause}")]
pub struct SendError {
    /// What happened.
    #[source]
    pub cause: Cause,
    /// What is known of the request.
    pub outcome: Outcome,
}

/// What ended an exchange before the response's head was whole.
#[derive(Debug, Error)]
pub enum Cause {
    /// TLS 1.3 tells so only after the request was written.
    #[error("the upstream refused our QWAC with the TLS alert {0:?}")]
    QwacRefused(AlertDescription),
    /// Not a byte of an answer.
    #[error("the upstream closed the connection without an answer")]
    ClosedBeforeHead(#[source] hyper::Error),
    /// A part of an answer's head.
    #[error("the upstream closed the connection in the middle of the response head")]
    ClosedInHead(#[source] hyper::Error),
    /// An answer that is not HTTP/1.1.
    #[error("the upstream's response head is malformed")]
    MalformedHead(#[source] hyper::Error),
    /// 101 to a request that asked for no other protocol.
    #[error("the upstream switched to another protocol, unasked")]
    Switched,
    /// No answer in time.
    #[error("no response from the upstream within {0:?}")]
    ResponseTimeout(Duration),
}

impl Cause {
    /// One stable word for problems and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::QwacRefused(_) => "qwac-refused",
            Self::ClosedBeforeHead(_) => "upstream-closed",
            Self::ClosedInHead(_) => "upstream-closed-in-head",
            Self::MalformedHead(_) | Self::Switched => "upstream-malformed",
            Self::ResponseTimeout(_) => "upstream-timeout",
        }
    }
}

/// Why a response's body ended early.
#[derive(Debug, Error)]
pub enum AnswerError {
    /// The connection ended before the body.
    #[error("the upstream's response was cut")]
    Cut(#[source] hyper::Error),
    /// No frame in time.
    #[error("the upstream's response paused for longer than {0:?}")]
    Timeout(Duration),
}
