//! Makes one live connection to a bank: resolve, connect (directly or through a company's proxy), handshake, each with
//! its deadline and its metric. Whatever fails here is `not_sent`: nobody has sealed anything yet.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::CertificateError::{
    Expired, ExpiredContext, ExpiredRevocationList, ExpiredRevocationListContext, NotValidForName,
    NotValidForNameContext, NotValidYet, NotValidYetContext, Revoked, UnknownRevocationStatus,
};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, HandshakeKind, ProtocolVersion};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::aside::{Aside, KeyFault, Unfinished};
use super::attempts::{self, Attempts};
use super::counted::{Count, Counted, alert_in, tls_error};
use super::handback::Handback;
use super::judge::verdict;
use super::pool::Pool;
use super::question::{Question, heard};
use super::seats::Seat;
use super::tls::Tls;
use super::wire::Wire;
use super::{AcquireError, Destination, Payload, Settings, Tunnel, ViaFault};
use crate::identity::failed_key;

/// Dials one bank with one TLS configuration.
pub(super) struct Connector {
    destination: Arc<Destination>,
    name: ServerName<'static>,
    tls: Tls,
    /// Through the company's proxy; `None`: directly.
    tunnel: Option<Arc<Tunnel>>,
    /// Where handshakes run that sign with a key on a token; `None`: on the reactor.
    aside: Option<Aside>,
    /// Where the connections wait between two requests.
    pool: Arc<Pool>,
}

/// A connection that stands: TLS is done and HTTP/1.1 is ready.
pub(super) struct Established {
    pub(super) sender: SendRequest<Payload>,
    pub(super) count: Arc<Count>,
    /// Where it is left between two requests.
    pub(super) handback: Arc<Handback>,
    /// Whether the bank judges our certificate only now: it asked for it, and speaks TLS 1.3.
    pub(super) unjudged: bool,
}

impl Connector {
    pub(super) fn new(
        destination: Arc<Destination>,
        name: ServerName<'static>,
        tls: Tls,
        tunnel: Option<Arc<Tunnel>>,
        aside: Option<Aside>,
        pool: Arc<Pool>,
    ) -> Self {
        Self { destination, name, tls, tunnel, aside, pool }
    }

    /// The same way for another identity.
    pub(super) fn renewed(&self, resolver: Arc<dyn ResolvesClientCert>, aside: Option<Aside>, pool: Arc<Pool>) -> Self {
        let (destination, name) = (Arc::clone(&self.destination), self.name.clone());
        Self::new(destination, name, self.tls.renewed(resolver), self.tunnel.clone(), aside, pool)
    }

    /// Whether a handshake needs a signature of a token.
    pub(super) fn asks_token(&self) -> bool {
        self.aside.is_some()
    }

    pub(super) fn tls(&self) -> &Tls {
        &self.tls
    }

    /// Dials. The connection's own task runs on the current reactor and holds `seat` until the socket is closed.
    pub(super) async fn connect(&self, seat: Seat) -> Result<Established, AcquireError> {
        // Before the bank is bothered with a connection that comes to nothing.
        self.aside.as_ref().map_or(Ok(()), Aside::admits).map_err(AcquireError::QwacKey)?;
        let metrics = &self.destination.metrics;
        let began = Instant::now();
        let tcp = self.reach(self.addresses().await?).await?;
        metrics.connect.observe(began.elapsed().as_secs_f64());
        if self.pool.is_replaced() {
            return Err(AcquireError::Replaced);
        }
        let began = Instant::now();
        let (tls, question) = self.shake_hands(self.tls.connector(), tcp).await;
        let tls = tls?;
        metrics.handshake.observe(began.elapsed().as_secs_f64());
        if question.is_none() && tls.get_ref().1.handshake_kind() != Some(HandshakeKind::Resumed) {
            metrics.without_qwac.inc();
        }
        self.speak_http(tls, question.is_some(), seat).await
    }

    /// Where to connect: to the bank, or to the company's proxy, wherever that is. The proxy looks up the bank's name;
    /// only an address in the URL can be judged here.
    pub(super) async fn addresses(&self) -> Result<Vec<SocketAddr>, AcquireError> {
        let Destination { settings: Settings { origin, .. }, resolver, .. } = &*self.destination;
        if self.tunnel.is_none() {
            return self.acceptable(resolver.addresses().await?);
        }
        if let Ok(address) = origin.host.parse() {
            self.acceptable(vec![SocketAddr::new(address, origin.port)])?;
        }
        resolver.addresses().await.map_err(|unresolved| AcquireError::ViaUnreachable(unresolved.into()))
    }

    /// Connects to one of these, and has the company's proxy, if that is who it is, connect to the bank.
    pub(super) async fn reach(&self, addresses: Vec<SocketAddr>) -> Result<TcpStream, AcquireError> {
        let timeouts = &self.destination.settings.timeouts;
        let stream = attempts::connect(addresses, timeouts.connect).await;
        let Some(tunnel) = &self.tunnel else {
            return stream.map_err(|attempts| unreached(attempts, timeouts.connect));
        };
        let mut stream = stream.map_err(|attempts| AcquireError::ViaUnreachable(attempts.into()))?;
        let opened = timeout(timeouts.via, tunnel.open(&mut stream)).await;
        opened.unwrap_or(Err(AcquireError::ViaTimeout(timeouts.via))).map(|()| stream)
    }

    /// Leaves out what no bank on the internet has. Holds for every answer, however it came.
    fn acceptable(&self, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, AcquireError> {
        if self.destination.settings.private {
            return Ok(found);
        }
        let (private, public): (Vec<_>, Vec<_>) = found.into_iter().partition(|address| is_private(address.ip()));
        match private.first() {
            Some(address) if public.is_empty() => Err(AcquireError::PrivateAddress(address.ip())),
            _ => Ok(public),
        }
    }

    /// Also tells what the bank asked of us, however it ended; of a handshake aside only where it ended in time.
    pub(super) async fn shake_hands(
        &self,
        tls: &TlsConnector,
        tcp: TcpStream,
    ) -> (Result<TlsStream<Wire>, AcquireError>, Option<Question>) {
        let limit = self.destination.settings.timeouts.handshake;
        let handshake = tls.connect(self.name.clone(), Wire::new(tcp));
        let (ended, question) = match &self.aside {
            None => {
                let (ended, question) = heard(timeout(limit, handshake)).await;
                (ended.map_err(|_| Unfinished::Late), question)
            }
            Some(aside) => match aside.run(limit, heard(handshake)).await {
                Ok((ended, question)) => (Ok(ended), question),
                Err(unfinished) => (Err(unfinished), None),
            },
        };
        let failed = |error| match tls_error(&error) {
            // Nobody has answered our hello yet: these bytes are those of whoever is in between.
            Some(rustls::Error::InvalidMessage(_)) if self.tunnel.is_some() && question.is_none() => {
                AcquireError::ViaMalformed(ViaFault::NoTls(error))
            }
            _ => handshake_error(error, question.is_some()),
        };
        let result = match ended {
            Ok(ended) => ended.map_err(failed),
            Err(Unfinished::Late) => Err(AcquireError::HandshakeTimeout(limit)),
            Err(Unfinished::Key(fault)) => Err(AcquireError::QwacKey(fault)),
        };
        (result, question)
    }

    pub(super) async fn speak_http(
        &self,
        tls: TlsStream<Wire>,
        asked: bool,
        seat: Seat,
    ) -> Result<Established, AcquireError> {
        let count = Arc::new(Count::default());
        let unjudged = asked && tls.get_ref().1.protocol_version() == Some(ProtocolVersion::TLSv1_3);
        let io = TokioIo::new(Counted::new(tls, Arc::clone(&count)));
        let mut http = http1::Builder::new();
        http.max_buf_size(BUFFER);
        let (sender, connection) = http.handshake(io).await.map_err(AcquireError::Http)?;
        let open = self.destination.metrics.connections.clone();
        open.inc();
        let cut = self.pool.cut();
        let handback = Arc::new(Handback::default());
        // In a box, or each future around it holds it twice: as what it was given, and as what it waits for.
        let driven = Arc::clone(&handback).drive(Box::pin(connection));
        tokio::spawn(async move {
            tokio::select! {
                // Its error reaches whoever waits for an answer on it, and an idle connection may end as it likes.
                () = driven => {}
                () = cut => {}
            }
            open.dec();
            drop(seat);
        });
        Ok(Established { sender, count, handback, unjudged })
    }
}

/// Bytes of an answer that hyper reads at a time, and of a request before it is written. A head that is not whole with
/// so many is refused. Its own default is 400 KiB, which a connection of long answers grows to. Reads of at most 16 KiB
/// would keep 1.4 MiB less for 32 connections, and cost a third more CPU for an unsealed answer of 100 KiB (between wrk
/// and nginx, as in `benches/beside`): twice the writes to the caller.
const BUFFER: usize = 64 * 1024;

fn unreached(attempts: Attempts, limit: Duration) -> AcquireError {
    match attempts {
        attempts if attempts.is_timeout() => AcquireError::ConnectTimeout(limit, attempts),
        attempts if attempts.is_refused() => AcquireError::Refused(attempts),
        attempts => AcquireError::Connect(attempts),
    }
}

/// Says who distrusts whom. Who has `asked` for our certificate has chosen version, suite and protocol before, and what
/// it still finds to refuse is ours.
fn handshake_error(error: io::Error, asked: bool) -> AcquireError {
    if let Some(alert) = alert_in(&error) {
        return match alert {
            alert if refuses_certificate(alert) => AcquireError::QwacRefused(alert),
            AlertDescription::HandshakeFailure if asked => AcquireError::QwacRefused(alert),
            AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity
            | AlertDescription::NoApplicationProtocol => AcquireError::NoCommonProtocol(error),
            _ => AcquireError::Handshake(error),
        };
    }
    if let Some(fault) = tls_error(&error).and_then(failed_key) {
        return AcquireError::QwacKey(KeyFault::Refused(fault));
    }
    if let Some(mismatch) = tls_error(&error).and_then(verdict) {
        return AcquireError::PinMismatch(mismatch);
    }
    if let Some(unverifiable) = tls_error(&error).and_then(verdict) {
        return AcquireError::Unverifiable(unverifiable);
    }
    match tls_error(&error) {
        Some(rustls::Error::InvalidCertificate(Revoked)) => AcquireError::Revoked(error),
        Some(
            rustls::Error::InvalidCertificate(
                UnknownRevocationStatus | ExpiredRevocationList | ExpiredRevocationListContext { .. },
            )
            | rustls::Error::InvalidCertRevocationList(_),
        ) => AcquireError::RevocationUnknown(error),
        Some(rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. })) => AcquireError::Expired(error),
        Some(rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. })) => {
            AcquireError::NotYetValid(error)
        }
        Some(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
            AcquireError::WrongName(error)
        }
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            AcquireError::Untrusted(error)
        }
        Some(rustls::Error::PeerIncompatible(_)) => AcquireError::NoCommonProtocol(error),
        _ => AcquireError::Handshake(error),
    }
}

/// Whether an alert speaks of our certificate (RFC 8446 section 6.2). `decrypt_error` is what a bank sends that knows
/// an authority by our issuer's name, and not by its key.
pub(super) fn refuses_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}

/// Whether an address is loopback, private, link-local, shared (RFC 6598) or otherwise not a bank on the internet.
pub(crate) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_private_v4(address),
        IpAddr::V6(address) => embedded_v4(address).map_or_else(|| is_private_v6(address), is_private_v4),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_unspecified()
        || address.is_broadcast()
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (b == 18 || b == 19))
        || (a, b, c) == (192, 0, 0)
        || (a, b, c) == (192, 88, 99)
        || a >= 240
}

/// Whatever is not global unicast (2000::/3, RFC 4291), and what is set aside within it.
fn is_private_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    segments[0] & 0xe000 != 0x2000
        // Teredo, ORCHID and the like (RFC 2928), documentation (RFC 3849, RFC 9637).
        || (segments[0] == 0x2001 && segments[1] < 0x0200)
        || segments[..2] == [0x2001, 0xdb8]
        || (segments[0] == 0x3fff && segments[1] < 0x1000)
}

/// The IPv4 address inside a mapped, NAT64 (RFC 6052) or 6to4 (RFC 3056) address.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let join = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(join(high, low)),
        [0x2002, high, low, ..] => Some(join(high, low)),
        _ => None,
    }
}

/// How long a connection that has just answered may take to be ready for the next request.
pub(super) const TURNAROUND: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_that_fails_once_our_certificate_was_asked_for_is_about_it() {
        let failed = |alert, asked| {
            let alert = rustls::Error::AlertReceived(alert);
            handshake_error(io::Error::new(io::ErrorKind::InvalidData, alert), asked).kind()
        };
        assert_eq!(failed(AlertDescription::HandshakeFailure, true), "qwac-refused");
        assert_eq!(failed(AlertDescription::HandshakeFailure, false), "upstream-no-common-protocol");
        assert_eq!(failed(AlertDescription::UnknownCA, true), "qwac-refused");
        assert_eq!(failed(AlertDescription::NoApplicationProtocol, true), "upstream-no-common-protocol");
    }

    #[test]
    fn addresses_that_are_no_bank_on_the_internet_are_private() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "fd00::1",
            "::ffff:127.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::",
            "192.0.0.192",
            "192.88.99.1",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b:1::1",
            "100::1",
            "2001::7f00:1",
            "2001:db8::1",
            "3fff::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(is_private(private.parse().expect("an address")), "{private}");
        }
        for public in ["193.57.70.1", "100.63.0.1", "192.0.1.1", "2a00:1450::1", "2001:4860::1", "::ffff:193.57.70.1"] {
            assert!(!is_private(public.parse().expect("an address")), "{public}");
        }
    }
}
