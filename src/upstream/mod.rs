//! The mutual-TLS side: live connections to a bank, split into acquire and send, so that a request is sealed only
//! when its connection stands. Must not know seals or routes.
//!
//! - The way there: `hosts`, `resolver`: addresses · `attempts`: one TCP connection · `via`: through a company's proxy
//!   · `passage`: the same to others than banks
//! - TLS: `tls`: both sides' certificates · `trust`, `judge`, `pin`, `unverifiable`: the bank's · `question`: what it
//!   asks of us · `sessions`: resumption · `aside`: keys on tokens · `witness`: for reports
//! - A connection: `connector`: all of these in turn · `dialling`: on its way · `wire`, `counted`: what went through ·
//!   `pool`, `handback`: between two requests · `seats`: how many
//! - An exchange: `lease`: one request and its answer · `payload`: its body
//! - What is told: `error`: by phase, with what is known of the request · `metrics` · `skew`: the bank's clock ·
//!   `probe`: for `check --connect`

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use tokio::time::timeout;

use crate::log::Log;

mod attempts;
mod hosts;
mod passage;
mod resolver;
mod via;

mod aside;
mod judge;
mod pin;
mod question;
mod sessions;
mod tls;
mod trust;
mod unverifiable;
mod witness;

mod connector;
mod counted;
mod dialling;
mod handback;
mod pool;
mod seats;
mod wire;

mod lease;
mod payload;

mod error;
mod metrics;
mod probe;
mod skew;

#[cfg(test)]
pub(crate) mod places;

use aside::Aside;
pub use aside::KeyFault;
pub use attempts::Attempts;
use connector::Connector;
pub(crate) use connector::is_private;
use dialling::Dialling;
pub use error::{AcquireError, AnswerError, Cause, Outcome, SendError, SetupError};
use judge::Judge;
use lease::UnderWay;
pub use lease::{Answer, Lease, is_plainly_framed};
pub use metrics::Families;
pub use passage::{PassageError, passage};
pub use payload::Payload;
pub use pin::{NoPin, Pin, PinMismatch};
use pool::{Connection, Place, Pool, Retired};
pub use probe::{Clocks, Connected, Failure, Report, Session};
pub use question::Question;
use resolver::Resolver;
use seats::{Seat, Seats};
use skew::Skew;
pub use skew::TOLERATED_SKEW;
use tls::Tls;
pub use trust::{Roots, Trust, TrustError};
pub use unverifiable::Unverifiable;
use via::Tunnel;
pub use via::{CredentialsError, Via, ViaFault};

/// How one bank is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// Which reactor asks: connections are driven where they were made and reused there first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReactorId(pub usize);

impl Settings {
    /// Whose address is looked up: the bank's, or that of the company's proxy.
    fn asked(&self) -> (&str, u16) {
        let Origin { host, port } = &self.origin;
        self.via.as_ref().map_or((host, *port), |via| (&via.host, via.port))
    }

    /// The files to watch.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.trust.files().chain(self.via.as_ref().and_then(|via| via.credentials.as_deref()))
    }
}

/// What outlives a change of identity: where the bank is, how much it is asked at a time, what was counted.
pub struct Destination {
    settings: Settings,
    /// Of the bank, or of the company's proxy where there is one.
    resolver: Arc<Resolver>,
    connections: Arc<Seats>,
    in_flight: Arc<Seats>,
    metrics: Arc<metrics::Metrics>,
    skew: Arc<Skew>,
}

impl Destination {
    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        self.metrics.name()
    }

    /// As it was made.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Counts that a connection came to nothing, unless it is the successor's to make one.
    fn failed(&self, error: &AcquireError) {
        if !matches!(error, AcquireError::Replaced) {
            self.metrics.fail(error.kind());
        }
    }

    /// Whether its own files could be used as of `now`, whoever is presented there.
    pub fn check(&self, now: SystemTime) -> Result<(), SetupError> {
        self.means(now).map(drop)
    }

    fn means(&self, now: SystemTime) -> Result<Means, SetupError> {
        let Settings { origin, trust, via, .. } = &self.settings;
        let name = ServerName::try_from(origin.host.clone()).map_err(|_| SetupError::Name(origin.host.clone()))?;
        let judge = Judge::new(trust, &tls::provider(), now)?;
        let tunnel = via.as_ref().map(|via| Tunnel::new(origin, via.credentials.as_deref())).transpose()?;
        Ok(Means { name, judge, tunnel })
    }

    /// A bank under its name in the configuration. The log hears of its clock.
    pub fn new(name: &str, settings: Settings, families: &Families, log: Log) -> Arc<Self> {
        let (host, port) = settings.asked();
        let metrics = families.of(name);
        Arc::new(Self {
            resolver: Resolver::new(host, port, settings.timeouts.resolve),
            connections: Seats::new(settings.connections),
            in_flight: Seats::new(settings.in_flight),
            skew: Arc::new(Skew::new(Arc::clone(&metrics), log)),
            metrics,
            settings,
        })
    }

    /// The same bank with other settings. What is under way counts for both: how much there may be is as it was until
    /// [`Destination::takes_over`].
    pub fn with(&self, settings: Settings) -> Arc<Self> {
        let limit = settings.timeouts.resolve;
        let is_asked_alike = settings.asked() == self.settings.asked() && limit == self.settings.timeouts.resolve;
        let resolver = match settings.asked() {
            _ if is_asked_alike => Arc::clone(&self.resolver),
            (host, port) => Resolver::new(host, port, limit),
        };
        let (connections, in_flight) = (Arc::clone(&self.connections), Arc::clone(&self.in_flight));
        let (metrics, skew) = (Arc::clone(&self.metrics), Arc::clone(&self.skew));
        Arc::new(Self { settings, resolver, connections, in_flight, metrics, skew })
    }

    /// Puts its own limits in force, from the moment on at which requests take this way.
    pub fn takes_over(&self) {
        self.connections.resize(self.settings.connections);
        self.in_flight.resize(self.settings.in_flight);
    }
}

/// What a destination's settings and files come to.
struct Means {
    name: ServerName<'static>,
    judge: Judge,
    tunnel: Option<Tunnel>,
}

/// A bank as one identity reaches it. One per generation.
pub struct Upstream {
    destination: Arc<Destination>,
    connector: Arc<Connector>,
    pool: Arc<Pool>,
}

impl Upstream {
    /// Joins a destination with the identity that is presented to it, and reads the files of its trust as of `now`.
    /// Where the identity's key is on a token `at_token` says how many handshakes may be on their way to it; they have
    /// a thread of their own.
    pub fn new(
        destination: Arc<Destination>,
        resolver: Arc<dyn ResolvesClientCert>,
        at_token: Option<usize>,
        now: SystemTime,
    ) -> Result<Self, SetupError> {
        let Means { name, judge, tunnel } = destination.means(now)?;
        let tls = Tls::new(judge, resolver);
        let aside = at_token.map(Aside::start).transpose().map_err(SetupError::Thread)?;
        let pool = Pool::new(destination.settings.idle, destination.settings.max_age);
        let connector = Arc::new(Connector::new(
            Arc::clone(&destination),
            name,
            tls,
            tunnel.map(Arc::new),
            aside,
            Arc::clone(&pool),
        ));
        Ok(Self { pool, connector, destination })
    }

    /// The same bank, trusted as it was read before, for a successor of the identity.
    pub fn renewed(&self, resolver: Arc<dyn ResolvesClientCert>, at_token: Option<usize>) -> Result<Self, SetupError> {
        let aside = at_token.map(Aside::start).transpose().map_err(SetupError::Thread)?;
        let Settings { idle, max_age, .. } = self.destination.settings;
        let pool = Pool::new(idle, max_age);
        let connector = Arc::new(self.connector.renewed(resolver, aside, Arc::clone(&pool)));
        Ok(Self { pool, connector, destination: Arc::clone(&self.destination) })
    }

    /// Shows when its revocation lists become too old: of all that are made, those of the one in use count.
    pub fn show_lists(&self) {
        self.destination.metrics.lists_expire(self.connector.tls().judge().lists_expiry());
    }

    /// Ends the use of this identity or trust: idle connections close at once, leased ones have `grace`. Where
    /// it has been `replaced`, nothing is dialled any more: whoever wants a connection is told to ask the successor.
    pub fn retire(&self, grace: Duration, replaced: bool) {
        self.pool.retire(Retired { deadline: Instant::now() + grace, grace, replaced });
    }

    /// Where requests go.
    pub fn origin(&self) -> &Origin {
        &self.destination.settings.origin
    }

    /// Leases a connection that stands: an idle one, or a new one. Nothing has been sent when this fails.
    pub async fn acquire(&self, reactor: ReactorId) -> Result<Lease, AcquireError> {
        self.counted(self.any(reactor), reactor).await
    }

    /// Leases a connection for a request that an idle one has just failed: a new one, because what else is idle may
    /// have ended too. Where the bank has as many as it may have, what comes back next is nearly as good, and comes
    /// sooner.
    pub async fn acquire_again(&self, reactor: ReactorId) -> Result<Lease, AcquireError> {
        self.counted(self.awaited(reactor, self.pool.place_first()), reactor).await
    }

    /// Leases a new connection, and waits for the right to one like all others who do.
    pub async fn acquire_new(&self, reactor: ReactorId) -> Result<Lease, AcquireError> {
        self.counted(async { self.dial(reactor, self.seat().await?).await }, reactor).await
    }

    async fn counted(
        &self,
        connection: impl Future<Output = Result<Connection, AcquireError>>,
        reactor: ReactorId,
    ) -> Result<Lease, AcquireError> {
        let under_way = UnderWay::new(&self.destination);
        let lease = match under_way {
            Ok(under_way) => connection.await.map(|connection| Lease::new(connection, self, under_way, reactor)),
            Err(busy) => Err(busy),
        };
        lease.inspect_err(|error| self.destination.failed(error))
    }

    async fn any(&self, reactor: ReactorId) -> Result<Connection, AcquireError> {
        match self.pool.take(reactor) {
            Ok(connection) => Ok(connection),
            Err(place) => Box::pin(self.awaited(reactor, place)).await,
        }
    }

    /// What comes first: a connection that comes back, or the right to one more. One place in either queue for the
    /// whole wait: who has waited longest is next.
    async fn awaited(&self, reactor: ReactorId, mut place: Place) -> Result<Connection, AcquireError> {
        let seat = tokio::select! {
            biased;
            connection = place.served() => return Ok(connection),
            seat = self.seat() => seat?,
        };
        // What comes back during a handshake is for whoever comes.
        drop(place);
        self.dial(reactor, seat).await
    }

    /// The right to one more connection, within the time that a connect may take.
    async fn seat(&self) -> Result<Seat, AcquireError> {
        let Settings { connections: most, timeouts: Timeouts { connect: patience, .. }, .. } =
            self.destination.settings;
        let connections = Arc::clone(&self.destination.connections);
        timeout(patience, connections.take()).await.map_err(|_| AcquireError::Full(most, patience))
    }

    /// Whoever asked may go before the handshake has ended: the connection is then somebody else's. A caller who is
    /// less patient than a bank is quick would otherwise never have one.
    async fn dial(&self, reactor: ReactorId, seat: Seat) -> Result<Connection, AcquireError> {
        if self.pool.is_replaced() {
            return Err(AcquireError::Replaced);
        }
        let connector = Arc::clone(&self.connector);
        let establishing = Box::pin(async move { connector.connect(seat).await });
        let dialled = if self.connector.asks_token() {
            // What nobody waits for is nothing to ask a token for.
            Connection::new(establishing.await?, reactor)
        } else {
            let (destination, pool) = (Arc::clone(&self.destination), Arc::clone(&self.pool));
            Dialling::new(establishing, destination, pool, reactor).await?
        };
        // Nothing has been sent on it: whoever asked asks the successor.
        if self.pool.is_replaced() {
            return Err(AcquireError::Replaced);
        }
        Ok(dialled)
    }
}
