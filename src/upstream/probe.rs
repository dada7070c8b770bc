//! One connection to a bank, made to be reported on: which steps it took, what each side showed the other, and where
//! it ended. Takes the way that requests take, with one request of its own and without a seal. Prints nothing.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use http::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use http::{Method, Request, StatusCode};
use rustls::crypto::SupportedKxGroup;
use rustls::pki_types::CertificateDer;
use rustls::{CipherSuite, NamedGroup, ProtocolVersion};
use thiserror::Error;
use tokio_rustls::client::TlsStream;

use super::connector::Established;
use super::lease::UnderWay;
use super::pool::Connection;
use super::skew::date;
use super::wire::Wire;
use super::{AcquireError, Lease, Payload, Question, ReactorId, SendError, Upstream};

/// What one connection to a bank showed, as far as it came.
#[derive(Debug, Default)]
pub struct Report {
    /// Whether a company's proxy is asked for the way.
    pub via: bool,
    /// Where the bank is, or else that proxy.
    pub addresses: Vec<SocketAddr>,
    /// The TCP connection, with the tunnel of a company's proxy.
    pub connected: Option<Connected>,
    /// The chain that the bank presented, leaf first, whether we trust it or not.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its request for our certificate.
    pub question: Option<Question>,
    /// The TLS session. Under TLS 1.3 it stands before the bank has judged our certificate.
    pub session: Option<Session>,
    /// The answer to our request.
    pub clocks: Option<Clocks>,
    /// What ended it, unless it came to its end.
    pub failure: Option<Failure>,
}

/// A TCP connection.
#[derive(Clone, Copy, Debug)]
pub struct Connected {
    /// The address that answered first; none if the connection is gone already.
    pub address: Option<SocketAddr>,
    /// From the first try, the tunnel included.
    pub took: Duration,
}

/// What both sides agreed on.
#[derive(Clone, Debug)]
pub struct Session {
    /// TLS 1.2 or 1.3.
    pub version: Option<ProtocolVersion>,
    /// The cipher suite.
    pub suite: Option<CipherSuite>,
    /// The group of the key exchange.
    pub group: Option<NamedGroup>,
    /// What the bank chose by ALPN (RFC 7301), if it chose.
    pub alpn: Option<String>,
    /// The handshake.
    pub took: Duration,
}

impl Session {
    fn of(stream: &TlsStream<Wire>, took: Duration) -> Self {
        let tls = stream.get_ref().1;
        Self {
            version: tls.protocol_version(),
            suite: tls.negotiated_cipher_suite().map(|suite| suite.suite()),
            group: tls.negotiated_key_exchange_group().map(SupportedKxGroup::name),
            alpn: tls.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
            took,
        }
    }
}

/// The bank's clock beside ours.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// Of the answer.
    pub status: StatusCode,
    /// Its `Date`, whole seconds; `None` without a legible one.
    pub date: Option<SystemTime>,
    /// Our clock before the request.
    pub sent: SystemTime,
    /// Our clock when the answer was there.
    pub received: SystemTime,
}

impl Clocks {
    /// By how many seconds the bank's clock is certainly ahead of ours; negative: behind. Zero where the time that the
    /// answer took, and the fraction of a second that `Date` leaves out, explain the difference.
    pub fn skew(&self) -> Option<i64> {
        let date = self.date?;
        let ahead = seconds(self.received, date);
        let behind = seconds(date + Duration::from_secs(1), self.sent);
        Some(if ahead > 0 { ahead } else { -behind.max(0) })
    }
}

/// From one moment to another, rounded; negative if the other is the earlier one.
fn seconds(from: SystemTime, to: SystemTime) -> i64 {
    let rounded =
        |distance: Duration| i64::try_from(distance.as_millis().saturating_add(500) / 1000).unwrap_or(i64::MAX);
    to.duration_since(from).map_or_else(|error| -rounded(error.duration()), rounded)
}

/// What ended a connection.
#[derive(Debug, Error)]
pub enum Failure {
    /// It never stood.
    #[error(transparent)]
    Acquire(#[from] AcquireError),
    /// It carried no answer to our request.
    #[error(transparent)]
    Send(#[from] SendError),
}

impl Upstream {
    /// Connects once, beside the pool, and asks for `HEAD /` without a seal, a token or a body. That request has two
    /// ends: the bank's `Date`, and the refusal of our certificate, which TLS 1.3 tells only to who reads.
    pub async fn probe(&self, clock: impl Fn() -> SystemTime) -> Report {
        let mut report = Report { via: self.destination.settings.via.is_some(), ..Report::default() };
        report.failure = self.examine(&mut report, clock).await.err();
        report
    }

    async fn examine(&self, report: &mut Report, clock: impl Fn() -> SystemTime) -> Result<(), Failure> {
        let seat = self.seat().await?;
        report.addresses = self.connector.addresses().await?;
        let began = Instant::now();
        let tcp = self.connector.reach(report.addresses.clone()).await?;
        report.connected = Some(Connected { address: tcp.peer_addr().ok(), took: began.elapsed() });
        let (tls, witness) = self.connector.tls().watched();
        let began = Instant::now();
        let (ended, question) = self.connector.shake_hands(&tls, tcp).await;
        (report.chain, report.question) = (witness.chain(), question);
        let stream = ended?;
        report.session = Some(Session::of(&stream, began.elapsed()));
        let established = self.connector.speak_http(stream, report.question.is_some(), seat).await?;
        report.clocks = Some(self.compare_clocks(established, clock).await?);
        Ok(())
    }

    async fn compare_clocks(
        &self,
        established: Established,
        clock: impl Fn() -> SystemTime,
    ) -> Result<Clocks, Failure> {
        let under_way = UnderWay::new(&self.destination)?;
        // It closes after this one answer, and so belongs to no reactor.
        let reactor = ReactorId(0);
        let lease = Lease::new(Connection::new(established, reactor), self, under_way, reactor);
        let sent = clock();
        let response = lease.send(self.harmless()).await?;
        Ok(Clocks { status: response.status(), date: date(response.headers()), sent, received: clock() })
    }

    fn harmless(&self) -> Request<Payload> {
        Request::builder()
            .method(Method::HEAD)
            .uri("/")
            .header(HOST, self.origin().to_string())
            .header(USER_AGENT, concat!("sealproxy/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "*/*")
            .header(CONNECTION, "close")
            .body(Payload::default())
            .expect("a host name is visible ASCII")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `date` in seconds, `sent` and `received` in milliseconds.
    fn skew(date: u64, sent: u64, received: u64) -> Option<i64> {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let (date, sent, received) = (Some(at(date * 1000)), at(sent), at(received));
        Clocks { status: StatusCode::OK, date, sent, received }.skew()
    }

    #[test]
    fn what_the_journey_and_whole_seconds_explain_is_no_skew() {
        assert_eq!(skew(100, 100_000, 100_001), Some(0));
        assert_eq!(skew(100, 100_999, 101_400), Some(0));
        assert_eq!(skew(105, 100_000, 110_000), Some(0), "a slow answer");
        assert_eq!(skew(700, 100_000, 100_010), Some(600));
        assert_eq!(skew(100, 701_000, 701_010), Some(-600));
    }
}
