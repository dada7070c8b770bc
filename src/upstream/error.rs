//! What can go wrong with a bank, by phase, and what is then known of the request. Not what a caller is answered.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::AlertDescription;
use thiserror::Error;

use super::counted::tls_error;
use super::resolver::Unresolved;
use super::{Attempts, CredentialsError, KeyFault, PinMismatch, TrustError, Unverifiable, ViaFault};

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
    /// The thread of handshakes with a key on a token.
    #[error("no thread for the handshakes of a QWAC on a token")]
    Thread(#[source] io::Error),
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
    /// No trust would help: our TLS library does not verify such a chain.
    #[error("the upstream's certificate cannot be verified")]
    Unverifiable(#[source] Unverifiable),
    /// The bank's certificate is somebody else's.
    #[error("the upstream's certificate is for another name")]
    WrongName(#[source] io::Error),
    /// The bank's certificate has expired.
    #[error("the upstream's certificate has expired")]
    Expired(#[source] io::Error),
    /// The bank's certificate lies in the future, or our clock in the past.
    #[error("the upstream's certificate is not valid yet")]
    NotYetValid(#[source] io::Error),
    /// The bank's certificate, or that of an authority on the way to its anchor, is on a revocation list.
    #[error("the upstream's certificate has been revoked")]
    Revoked(#[source] io::Error),
    /// There are revocation lists, and none that speaks of each certificate on the path.
    #[error("the revocation lists of the setting `trust` do not tell whether the upstream's certificate is revoked")]
    RevocationUnknown(#[source] io::Error),
    /// The bank is trusted, and has none of the keys that it should have.
    #[error("the upstream's certificate has none of the keys that are pinned")]
    PinMismatch(#[source] PinMismatch),
    /// The bank does not trust us.
    #[error("the upstream refused our QWAC with the TLS alert {0:?}")]
    QwacRefused(AlertDescription),
    /// Our own certificate's key did not sign; it is on a token.
    #[error("the QWAC's key is out of reach")]
    QwacKey(#[source] KeyFault),
    /// No version, suite or protocol that both speak.
    #[error("the upstream and we have no TLS version, cipher suite or protocol in common")]
    NoCommonProtocol(#[source] io::Error),
    /// The handshake failed otherwise.
    #[error("the TLS handshake with the upstream failed")]
    Handshake(#[source] io::Error),
    /// hyper would not take the connection.
    #[error("HTTP could not begin on the connection")]
    Http(#[source] hyper::Error),
    /// All requests that its limit allows are under way.
    #[error(
        "the upstream has as many requests under way as it may: the {0} of its `in_flight`, or its share of `limits.in_flight`"
    )]
    Busy(usize),
    /// All connections that its limit allows are in use, and none came free in time.
    #[error(
        "all of the {0} `connections` to the upstream are in use, and none came free within the {1:?} of `timeouts.connect`"
    )]
    Full(usize, Duration),
    /// The identity or the trust has a successor, and its upstream is the one to ask. Reaches a caller only where the
    /// configuration has changed as well, under which the request may not be the same.
    #[error("the upstream's identity has just been replaced")]
    Replaced,
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
    /// Whether it was we who ended the handshake, over the bank's certificate: the bank has not seen ours then (RFC
    /// 8446 section 4.4, RFC 5246 section 7.4.6).
    pub fn is_distrust(&self) -> bool {
        matches!(
            self,
            Self::Untrusted(_)
                | Self::Unverifiable(_)
                | Self::WrongName(_)
                | Self::Expired(_)
                | Self::NotYetValid(_)
                | Self::Revoked(_)
                | Self::RevocationUnknown(_)
                | Self::PinMismatch(_)
        )
    }

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
            Self::Untrusted(_) | Self::Unverifiable(_) => "upstream-untrusted",
            Self::WrongName(_) => "upstream-wrong-name",
            Self::Expired(_) => "upstream-expired",
            Self::NotYetValid(_) => "upstream-not-yet-valid",
            Self::Revoked(_) => "upstream-revoked",
            Self::RevocationUnknown(_) => "upstream-revocation-unknown",
            Self::PinMismatch(_) => "upstream-pin-mismatch",
            Self::QwacRefused(_) => "qwac-refused",
            Self::QwacKey(_) => "qwac-key-unavailable",
            Self::NoCommonProtocol(_) => "upstream-no-common-protocol",
            Self::Busy(_) | Self::Full(..) => "upstream-busy",
            Self::Replaced => "upstream-replaced",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Resolve(_) | Self::ResolveTimeout(_) => "write the bank's name in full, and check this machine's DNS",
            Self::PrivateAddress(_) => "set `private: true` if the bank is in your own network",
            Self::Refused(_) => "check host and port of `url`, and whether the way there needs `via`",
            Self::Connect(_) | Self::ConnectTimeout(..) => {
                "check this machine's firewall and routes, and whether the way to the bank needs `via`"
            }
            Self::ViaUnreachable(_) => "check host and port of `via`",
            Self::ViaNoCredentials => "name a file with `user:password` in `via.credentials`",
            Self::ViaCredentials => "check what stands in the file of `via.credentials`",
            Self::ViaRefused(_) => "have the proxy of `via` allow CONNECT to the bank's name and port",
            Self::ViaTimeout(_) => "check whether the proxy of `via` reaches the bank",
            Self::ViaMalformed(_) => "check that `via` names an HTTP proxy and the port that takes CONNECT without TLS",
            Self::HandshakeTimeout(_) => {
                "check that `url` names a TLS port; a firewall that drops TLS records looks the same"
            }
            Self::Untrusted(error) => untrusted_hint(error),
            Self::Unverifiable(unverifiable) => unverifiable.hint(),
            Self::WrongName(error) => wrong_name_hint(error),
            Self::Expired(_) => "tell the bank, if this machine's clock is right",
            Self::NotYetValid(_) => "check this machine's clock",
            Self::Revoked(_) => "ask the bank before anything is sent there: somebody else may hold its key",
            Self::RevocationUnknown(_) => {
                "`trust.crl` must hold a present list of the issuer of each certificate below the root, signed by it"
            }
            Self::PinMismatch(_) => {
                "ask the bank, on another way, whether it changed its key: only then add the new one to `trust.pins`"
            }
            Self::QwacRefused(alert) => refused_hint(*alert),
            Self::QwacKey(KeyFault::Busy(_)) => "raise `limits.waiting_seals`, or ask less at a time",
            Self::QwacKey(_) => {
                "look into the token's own log; `pkcs11-tool --module MODULE --login --test` tries it without us"
            }
            Self::NoCommonProtocol(_) => {
                "the bank must speak TLS 1.2 or 1.3 with ECDHE and AES-GCM or ChaCha20, and HTTP/1.1, with a certificate \
                 for an RSA key or one on P-256 or P-384 (not P-521, brainpool or Ed448); some banks answer so to a QWAC \
                 that they do not know"
            }
            Self::Handshake(_) | Self::Http(_) => "check that `url` names the bank's TLS port",
            Self::Replaced => "ask again",
            Self::Busy(_) => "raise `in_flight` of this upstream, or ask less of it at a time",
            Self::Full(..) => "raise `connections` of this upstream, or ask less of it at a time",
        }
    }
}

/// Why we do not trust a bank, and who can mend it.
fn untrusted_hint(error: &io::Error) -> &'static str {
    use rustls::CertificateError as C;
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(C::BadEncoding)) => "ask the bank for a proper certificate",
        Some(rustls::Error::InvalidCertificate(C::BadSignature)) => {
            "the certificate that signed it is another than the one in `trust`, of the same name"
        }
        _ => {
            "name in `trust` a PEM file with the authority that issued the bank's certificate, if it is the bank's; one \
             that inspects TLS on the way must leave the bank out"
        }
    }
}

/// Why a certificate is not for the bank, and who can mend it. A common name is none (RFC 9525 section 2).
fn wrong_name_hint(error: &io::Error) -> &'static str {
    use rustls::CertificateError::NotValidForNameContext;
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(NotValidForNameContext { presented, .. })) if presented.is_empty() => {
            "a certificate needs the host in subjectAltName, the common name does not count: ask the bank for another one"
        }
        _ => "give in `url` a host name that stands in the bank's certificate",
    }
}

/// Why a bank refuses our QWAC, and who can mend it.
fn refused_hint(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::DecryptError => {
            "the bank knows an authority of the issuer's name with another key: check that `qwac.certificate` is of this \
             environment, and ask the bank for the issuer's certificate that it trusts"
        }
        AlertDescription::UnknownCA => {
            "the bank does not know who issued it: give the whole chain in `qwac.certificate`, and check that the bank \
             trusts the issuer in this environment"
        }
        AlertDescription::CertificateExpired => "the bank takes it for expired: check its validity, and both clocks",
        AlertDescription::CertificateRevoked => "ask your trust service provider whether it was revoked",
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "the bank saw no certificate: something between may end the TLS connection"
        }
        _ => "ask the bank whether this QWAC is registered in this environment",
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
    /// Before the request was written.
    #[error("the upstream sent something before it was asked")]
    Unasked(#[source] hyper::Error),
    /// A part of an answer's head.
    #[error("the upstream closed the connection in the middle of the response head")]
    ClosedInHead(#[source] hyper::Error),
    /// An answer that is not HTTP/1.1.
    #[error("the upstream's response head is malformed")]
    MalformedHead(#[source] hyper::Error),
    /// 101 to a request that asked for no other protocol.
    #[error("the upstream switched to another protocol, unasked")]
    Switched,
    /// A transfer coding that nobody asked for: the body cannot be told from its coding.
    #[error("the upstream's response has another transfer coding than chunked")]
    TransferCoding,
    /// No answer in time.
    #[error("no response from the upstream within {0:?}")]
    ResponseTimeout(Duration),
    /// We ended the connection.
    #[error("{RETIRED}")]
    Retired,
}

const RETIRED: &str = "the connection's certificate or trust has a successor, and the upstream's response was not whole when \
                       `timeouts.drain` ended";

impl Cause {
    /// One stable word for problems and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::QwacRefused(_) => "qwac-refused",
            Self::Renegotiation => "upstream-renegotiation",
            Self::PostHandshakeAuthentication => "upstream-post-handshake-authentication",
            Self::ClosedBeforeHead(_) => "upstream-closed",
            Self::ClosedInHead(_) => "upstream-closed-in-head",
            Self::Unasked(_) | Self::MalformedHead(_) | Self::Switched | Self::TransferCoding => "upstream-malformed",
            Self::ResponseTimeout(_) => "upstream-timeout",
            Self::Retired => "stopped",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::QwacRefused(alert) => refused_hint(*alert),
            Self::Renegotiation | Self::PostHandshakeAuthentication => {
                "the bank must ask for the certificate in the handshake, on a host or port of its own"
            }
            Self::ClosedBeforeHead(_) | Self::ClosedInHead(_) => {
                "some banks close so on a QWAC that they do not know: ask the bank whether this one is registered"
            }
            Self::Unasked(_) | Self::MalformedHead(_) | Self::Switched | Self::TransferCoding => {
                "check that `url` names a port that speaks HTTP/1.1"
            }
            Self::ResponseTimeout(_) => "check with the bank, or raise `timeouts.response`",
            Self::Retired => "give `timeouts.drain` as long as the bank's slowest answer takes",
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
    /// We ended the connection.
    #[error("{RETIRED}")]
    Retired,
}

impl AnswerError {
    /// As logs, metrics and problem documents name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cut(_) | Self::Timeout(_) => "upstream-cut",
            Self::Retired => "stopped",
        }
    }
}
