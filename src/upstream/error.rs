//! What can go wrong with a bank, by phase, and what is then known of the request. Not what a caller is answered.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::AlertDescription;
use thiserror::Error;

use super::resolver::Unresolved;
use super::{Attempts, CredentialsError, TrustError, ViaFault};

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
    /// TLS 1.2, mostly for our certificate. A bank that answers all the same, 403 for example, has answered.
    #[error("the upstream asked to renegotiate TLS, which our TLS library (rustls) does not do, and gave no answer")]
    Renegotiation,
    /// TLS 1.3, for our certificate.
    #[error(
        "the upstream asked for our certificate after the TLS 1.3 handshake, which our TLS library (rustls) does not do"
    )]
    PostHandshakeAuthentication,
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
            Self::Renegotiation => "upstream-renegotiation",
            Self::PostHandshakeAuthentication => "upstream-post-handshake-authentication",
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
