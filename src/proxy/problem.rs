//! Everything that can keep a request from its answer, and the only place that turns it into one: status, RFC 9457
//! body, RFC 9209 `Proxy-Status`, and what is known of the request.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde::Serialize;
use thiserror::Error;

use super::api::Environment;
use super::headers::{PROXY_STATUS, SEALPROXY_OUTCOME, SEALPROXY_REQUEST_ID};
use super::show_size;
use super::target::Ambiguity;
use crate::causes::in_words;
use crate::seal;
use crate::upstream::{AcquireError, AnswerError, Cause, KeyFault, Outcome, SendError};

/// Why the proxy answers a request itself. `Display` never repeats what a caller sent, but for the host that it named.
/// A limit stands there with its setting and its value: the text is made for those alone who are refused.
#[derive(Debug, Error)]
pub enum Problem {
    /// A tunnel cannot be sealed.
    #[error(
        "a tunnel cannot be sealed: send the request itself, with the proxy's address in place of the bank's, \
         or in absolute form with an http:// URL"
    )]
    Connect,
    /// Nobody was addressed.
    #[error("the request has no Host: name the proxy's address in it, or the bank's host")]
    NoHost,
    /// `Host` or the authority is not one host with at most a port.
    #[error("the Host is not a host name with an optional port")]
    BadHost,
    /// The absolute form and `Host` name different parties.
    #[error("the absolute request target and Host name different hosts: send the same in both, or the path alone")]
    HostMismatch,
    /// Credentials in the authority.
    #[error("the authority holds user information: leave out what stands before the @; tokens belong in Authorization")]
    UserInfo,
    /// Neither the proxy nor a bank of the configuration. Which hosts would do is not told: a web page that had its own
    /// name resolve to this machine reads this answer.
    #[error(
        "the request is for the host `{0}`, which is neither this proxy nor an upstream. The proxy is 127.0.0.1, \
         localhost and the names in `hosts`; a bank is named as in the `url` of its upstream"
    )]
    Misdirected(AskedHost),
    /// The user who calls is none of `peers`.
    #[error("the user of the calling process may not use this socket; those who may are listed in `peers`")]
    Stranger,
    /// A browser sent it for a page of another site.
    #[error("the request was sent by a web page of another origin: call the proxy from a service, without Origin")]
    CrossSite,
    /// Two readers could take it to different places.
    #[error("{}", .0.as_str())]
    AmbiguousTarget(Ambiguity),
    /// Nothing matches.
    #[error("no route matches; routes: {0}")]
    NoRoute(String),
    /// The same path exists at several banks.
    #[error("several upstreams have routes here: name the bank, as Host or in absolute form: {0}")]
    NameTheBank(String),
    /// The path belongs to the bank's other environment.
    #[error("the path belongs to the other environment: this upstream is {}", match .0 {
        Environment::Production => "production",
        Environment::Sandbox => "a sandbox",
    })]
    OtherEnvironment(Environment),
    /// The route does not take this method; holds those it takes.
    #[error("the route takes {0}")]
    MethodNotAllowed(String),
    /// A header that must be single is not.
    #[error("the request has more than one {0}")]
    DuplicateHeader(HeaderName),
    /// `X-Request-Id` is not one token.
    #[error("X-Request-Id is not a token of at most 128 characters")]
    MalformedRequestId,
    /// `Connection` names a header that belongs to the bank.
    #[error("Connection names {0}, which the bank must get")]
    ConnectionNames(HeaderName),
    /// More header fields than the limit.
    #[error("the request has more than the {0} header fields of `limits.headers`")]
    TooManyHeaders(usize),
    /// `Expect` holds something else than `100-continue`.
    #[error("only 100-continue can be expected")]
    Expectation,
    /// A sealed body needs its type.
    #[error("a request with a body needs a Content-Type, which is signed")]
    NoContentType,
    /// More bytes than the limit.
    #[error("the body is larger than the {} of `limits.body`", show_size(*.0))]
    BodyTooLarge(u64),
    /// The caller stopped sending, or sends too slowly; holds the setting too.
    #[error("the body did not arrive within the {1:?} of `timeouts.{0}`")]
    BodyTimeout(&'static str, Duration),
    /// The caller's body ended early or was malformed; without an error: its stream was given up.
    #[error("the body did not arrive whole")]
    BodyCut(#[source] Option<hyper::Error>),
    /// All buffered bodies together.
    #[error(
        "the bodies of all requests together fill the {} of `limits.buffered`, or for a large one what it leaves to these",
        show_size(*.0)
    )]
    BufferFull(u64),
    /// Requests under way.
    #[error("the proxy has as many requests under way as it may: the {0} of `limits.in_flight`")]
    Overloaded(usize),
    /// Connections of callers, all with a request. Nobody has read what this one wants.
    #[error("the proxy has as many connections as it may: the {0} of `limits.connections`, each with a request")]
    Crowded(usize),
    /// Certificates or keys of the route's identity are missing, broken or out of date.
    #[error(
        "what the upstream of this route needs (its identity's certificates and keys, a seal that is registered, its trust) cannot be used at present; /status of the proxy says why"
    )]
    IdentityUnusable,
    /// No connection to the bank.
    #[error("{}", unconnected(.0))]
    Acquire(#[source] AcquireError),
    /// No seal.
    #[error("{}", unsealed(.0))]
    Seal(#[source] seal::Error),
    /// The key was not free in time.
    #[error("the request was not sealed within the {0:?} of `timeouts.seal`")]
    SealTimeout(Duration),
    /// No answer.
    #[error("{0}")]
    Send(#[source] SendError),
    /// An answer that a caller of HTTP/1.0 could not have told from a whole one.
    #[error("the upstream's answer was cut")]
    Cut(#[source] AnswerError),
    /// An answer of unknown length, and more of it than is held for a caller of HTTP/1.0.
    #[error("the upstream's answer has no length and is too large to be held: HTTP/1.1 takes it as it comes")]
    TooLargeForHttp10,
    /// The exchange as a whole took too long.
    #[error("the exchange as a whole took longer than `timeouts.exchange` allows")]
    ExchangeTimeout(Outcome),
    /// A transfer coding that the bank could not be told of.
    #[error("only the transfer coding chunked is understood")]
    TransferCoding,
    /// The absolute form of something else than HTTP.
    #[error("the request target's scheme is neither http nor https")]
    BadScheme,
    /// The process ends before the exchange does.
    #[error("the proxy stopped before the exchange ended")]
    Stopped(Outcome),
    /// A fault of ours.
    #[error("the proxy failed in the middle of the exchange")]
    Internal,
}

/// What a problem looks like from outside.
struct Face {
    status: StatusCode,
    /// Last part of the `type`. Stable: callers match on it.
    kind: &'static str,
    title: &'static str,
    /// RFC 9209 section 2.3.
    error: &'static str,
    /// What is known of the request.
    outcome: Outcome,
    /// Whether waiting helps: the bank cannot have acted, and what is short now is not short for long.
    may_try_again: bool,
}

/// Of what is known before anything of the request was sent.
const fn unsent(status: StatusCode, kind: &'static str, title: &'static str, error: &'static str) -> Face {
    face(Outcome::NotSent, status, kind, title, error)
}

const fn face(
    outcome: Outcome,
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    error: &'static str,
) -> Face {
    Face { status, kind, title, error, outcome, may_try_again: false }
}

impl Face {
    const fn try_again(mut self) -> Self {
        self.may_try_again = true;
        self
    }
}

impl Problem {
    /// Whether it is that the caller ended its side of the connection in the middle of its body.
    pub(super) fn is_of_a_caller_who_left(&self) -> bool {
        let Self::BodyCut(error) = self else { return false };
        let Some(error) = error else { return true };
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        // What is wrong with chunks is invalid, and its sender there.
        cause.is_some_and(|cause| !matches!(cause.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData))
    }

    fn face(&self) -> Face {
        use StatusCode as S;
        const DENIED: &str = "http_request_denied";
        const MALFORMED: &str = "http_request_error";
        match self {
            Self::Connect => unsent(S::METHOD_NOT_ALLOWED, "connect", "CONNECT is not supported", DENIED),
            Self::NoHost => unsent(S::BAD_REQUEST, "no-host", "No Host", MALFORMED),
            Self::BadHost => unsent(S::BAD_REQUEST, "bad-host", "Malformed Host", MALFORMED),
            Self::HostMismatch => unsent(S::BAD_REQUEST, "host-mismatch", "Two different hosts", MALFORMED),
            Self::UserInfo => unsent(S::BAD_REQUEST, "user-info", "User information in the authority", MALFORMED),
            Self::Misdirected(_) => unsent(S::MISDIRECTED_REQUEST, "misdirected", "Not our host", DENIED),
            Self::Stranger => unsent(S::FORBIDDEN, "stranger", "Not your socket", DENIED),
            Self::CrossSite => unsent(S::FORBIDDEN, "cross-site", "Sent by another site", DENIED),
            Self::AmbiguousTarget(_) => {
                unsent(S::BAD_REQUEST, "ambiguous-target", "Ambiguous request target", MALFORMED)
            }
            Self::NoRoute(_) => unsent(S::NOT_FOUND, "no-route", "No route", "destination_not_found"),
            Self::NameTheBank(_) => unsent(S::NOT_FOUND, "name-the-bank", "Several upstreams", "destination_not_found"),
            Self::OtherEnvironment(_) => unsent(S::FORBIDDEN, "other-environment", "Other environment", DENIED),
            Self::MethodNotAllowed(_) => {
                unsent(S::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", DENIED)
            }
            Self::DuplicateHeader(_) => unsent(S::BAD_REQUEST, "duplicate-header", "Duplicate header", MALFORMED),
            Self::MalformedRequestId => {
                unsent(S::BAD_REQUEST, "malformed-request-id", "Malformed X-Request-Id", MALFORMED)
            }
            Self::ConnectionNames(_) => {
                unsent(S::BAD_REQUEST, "connection-option", "Forbidden Connection option", MALFORMED)
            }
            Self::TooManyHeaders(_) => {
                unsent(S::REQUEST_HEADER_FIELDS_TOO_LARGE, "too-many-headers", "Too many header fields", MALFORMED)
            }
            Self::Expectation => unsent(S::EXPECTATION_FAILED, "expectation", "Unknown expectation", MALFORMED),
            Self::NoContentType => unsent(S::BAD_REQUEST, "no-content-type", "No Content-Type", MALFORMED),
            Self::BodyTooLarge(_) => unsent(S::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large", DENIED),
            Self::BodyTimeout(..) => unsent(S::REQUEST_TIMEOUT, "body-timeout", "Body too slow", MALFORMED),
            Self::BodyCut(_) => unsent(S::BAD_REQUEST, "body-cut", "Body cut", MALFORMED),
            Self::BufferFull(_) => {
                unsent(S::SERVICE_UNAVAILABLE, "buffer-full", "Too many bytes buffered", DENIED).try_again()
            }
            Self::Overloaded(_) => {
                unsent(S::SERVICE_UNAVAILABLE, "overloaded", "Too many requests", "connection_limit_reached")
                    .try_again()
            }
            Self::Crowded(_) => {
                unsent(S::SERVICE_UNAVAILABLE, "crowded", "Too many connections", "connection_limit_reached")
                    .try_again()
            }
            Self::IdentityUnusable => {
                unsent(S::SERVICE_UNAVAILABLE, "identity-unusable", "No usable identity", "proxy_configuration_error")
            }
            Self::Acquire(error) => of_acquire(error),
            Self::Seal(seal::Error::Busy(_) | seal::Error::Behind(_)) => {
                unsent(S::SERVICE_UNAVAILABLE, "seal-busy", "Too many seals", "proxy_internal_error").try_again()
            }
            Self::Seal(seal::Error::Unreachable(_) | seal::Error::Wrong(_)) => {
                unsent(S::SERVICE_UNAVAILABLE, "seal-unavailable", "No seal key", "proxy_internal_error").try_again()
            }
            Self::Seal(seal::Error::Absent(_) | seal::Error::Key(_)) => {
                unsent(S::INTERNAL_SERVER_ERROR, "seal-failed", "Not sealed", "proxy_internal_error")
            }
            Self::SealTimeout(_) | Self::Seal(seal::Error::Stale(_)) => {
                unsent(S::SERVICE_UNAVAILABLE, "seal-timeout", "Not sealed in time", "proxy_internal_error").try_again()
            }
            Self::Send(error) => of_send(error),
            Self::Cut(error) => {
                face(Outcome::Answered, S::BAD_GATEWAY, error.kind(), "Answer cut", "http_response_incomplete")
            }
            Self::TooLargeForHttp10 => face(
                Outcome::Answered,
                S::BAD_GATEWAY,
                "answer-too-large",
                "Answer too large for HTTP/1.0",
                "http_response_body_size",
            ),
            Self::ExchangeTimeout(outcome) => {
                face(*outcome, S::GATEWAY_TIMEOUT, "exchange-timeout", "Exchange too slow", "http_response_timeout")
            }
            Self::TransferCoding => unsent(S::NOT_IMPLEMENTED, "transfer-coding", "Unknown transfer coding", MALFORMED),
            Self::BadScheme => unsent(S::BAD_REQUEST, "bad-scheme", "Unknown scheme", MALFORMED),
            Self::Stopped(outcome) => {
                face(*outcome, S::BAD_GATEWAY, "stopped", "The proxy stopped", "proxy_internal_error")
            }
            Self::Internal => {
                face(Outcome::Unknown, S::BAD_GATEWAY, "internal", "Internal fault", "proxy_internal_error")
            }
        }
    }

    /// The status of its answer.
    pub(super) fn status(&self) -> StatusCode {
        self.face().status
    }

    /// The last part of the `type`.
    pub(super) fn kind(&self) -> &'static str {
        self.face().kind
    }

    /// What is known of the request.
    pub(super) fn outcome(&self) -> Outcome {
        self.face().outcome
    }

    /// What went wrong with the bank or in here, level by level, for the log; nothing of a caller's own faults.
    pub(super) fn cause(&self) -> Option<String> {
        let error: &dyn std::error::Error = match self {
            Self::Acquire(error) => error,
            Self::Send(error) => &error.cause,
            other => other.source()?,
        };
        Some(in_words(error))
    }

    /// The answer to the request of this id.
    pub(super) fn answer(&self, id: &HeaderValue) -> Response<Bytes> {
        let mut response = self.render(id.to_str().ok());
        response.headers_mut().insert(SEALPROXY_REQUEST_ID, id.clone());
        response
    }

    /// The answer to whoever's request is never read, and has no id, in HTTP/1.1. It ends the connection.
    pub(super) fn answer_unread(&self) -> Vec<u8> {
        let (head, body) = self.render(None).into_parts();
        let mut bytes = format!("HTTP/1.1 {}\r\n", head.status).into_bytes();
        for (name, value) in &head.headers {
            bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        bytes.extend(format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()).bytes());
        bytes.extend(body);
        bytes
    }

    fn render(&self, request_id: Option<&str>) -> Response<Bytes> {
        let Face { status, kind, title, error, outcome, may_try_again } = self.face();
        let document = Document {
            kind: format!("urn:sealproxy:problem:{kind}"),
            title,
            status: status.as_u16(),
            detail: self.to_string(),
            request_id,
            outcome: outcome.as_str(),
        };
        let body = serde_json::to_vec(&document).expect("a problem is plain strings");
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(SEALPROXY_OUTCOME, HeaderValue::from_static(outcome.as_str()));
        headers.insert(PROXY_STATUS, proxy_status(error, kind));
        match self {
            Self::MethodNotAllowed(methods) => insert_text(headers, ALLOW, methods),
            Self::Connect => insert_text(headers, ALLOW, "GET, HEAD, POST, PUT, PATCH, DELETE"),
            _ => {}
        }
        if may_try_again {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// The host that a caller asked for, as it may stand in a text: what no host name has is left out of it, and it ends
/// where names do.
#[derive(Debug)]
pub struct AskedHost(String);

impl AskedHost {
    pub(super) fn new(host: &str, port: Option<u16>) -> Self {
        let legal = |c: &char| c.is_ascii_alphanumeric() || "-._:[]".contains(*c);
        let host: String = host.chars().filter(legal).take(MAX_HOST).collect();
        Self(port.map_or(host.clone(), |port| format!("{host}:{port}")))
    }
}

impl fmt::Display for AskedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// No name is longer (RFC 1035 section 2.3.4).
const MAX_HOST: usize = 253;

/// Of a crowd and of a slow key there is something to tell: the rest is for the log.
fn unsealed(error: &seal::Error) -> String {
    match error {
        seal::Error::Busy(crowd) => format!("{crowd}, as many as `limits.waiting_seals` allows"),
        seal::Error::Behind(behind) => format!("{behind}, too near the end of `timeouts.seal`"),
        seal::Error::Stale(_) => error.to_string(),
        _ => "the request could not be sealed".to_owned(),
    }
}

/// A crowd before the QWAC's key is met by a limit of ours too.
fn unconnected(error: &AcquireError) -> String {
    match error {
        AcquireError::QwacKey(crowd @ KeyFault::Busy(_)) => {
            format!("{error}: {crowd}, as many as `limits.waiting_seals` allows")
        }
        _ => error.to_string(),
    }
}

fn of_acquire(error: &AcquireError) -> Face {
    use AcquireError as E;
    let (status, title, rfc9209) = match error {
        E::Resolve(_) => (StatusCode::BAD_GATEWAY, "Upstream does not resolve", "dns_error"),
        E::ResolveTimeout(_) => (StatusCode::GATEWAY_TIMEOUT, "Upstream does not resolve", "dns_timeout"),
        E::PrivateAddress(_) => {
            (StatusCode::BAD_GATEWAY, "Upstream is not on the internet", "destination_ip_prohibited")
        }
        E::Refused(_) => (StatusCode::BAD_GATEWAY, "Upstream refused the connection", "connection_refused"),
        E::Connect(_) => (StatusCode::BAD_GATEWAY, "Upstream unreachable", "destination_ip_unroutable"),
        E::ConnectTimeout(..) => (StatusCode::GATEWAY_TIMEOUT, "Upstream unreachable", "connection_timeout"),
        E::ViaUnreachable(_) => (StatusCode::BAD_GATEWAY, "Company proxy unreachable", "destination_unavailable"),
        E::ViaNoCredentials | E::ViaCredentials => {
            (StatusCode::BAD_GATEWAY, "Company proxy refused us", "proxy_configuration_error")
        }
        E::ViaRefused(_) => (StatusCode::BAD_GATEWAY, "Company proxy refused the tunnel", "destination_unavailable"),
        E::ViaTimeout(_) => (StatusCode::GATEWAY_TIMEOUT, "Company proxy did not answer", "connection_timeout"),
        E::ViaMalformed(_) => (StatusCode::BAD_GATEWAY, "Company proxy's answer malformed", "http_protocol_error"),
        E::HandshakeTimeout(_) => (StatusCode::GATEWAY_TIMEOUT, "TLS handshake too slow", "connection_timeout"),
        E::Untrusted(_) => (StatusCode::BAD_GATEWAY, "Upstream not trusted", "tls_certificate_error"),
        E::Unverifiable(_) => (StatusCode::BAD_GATEWAY, "Upstream cannot be verified", "tls_certificate_error"),
        E::WrongName(_) => (StatusCode::BAD_GATEWAY, "Upstream has another name", "tls_certificate_error"),
        E::Expired(_) => (StatusCode::BAD_GATEWAY, "Upstream's certificate expired", "tls_certificate_error"),
        E::NotYetValid(_) => (StatusCode::BAD_GATEWAY, "Upstream's certificate not valid yet", "tls_certificate_error"),
        E::Revoked(_) => (StatusCode::BAD_GATEWAY, "Upstream's certificate revoked", "tls_certificate_error"),
        E::RevocationUnknown(_) => (StatusCode::BAD_GATEWAY, "Upstream may have been revoked", "tls_certificate_error"),
        E::PinMismatch(_) => (StatusCode::BAD_GATEWAY, "Upstream has another key", "tls_certificate_error"),
        E::QwacRefused(_) => (StatusCode::BAD_GATEWAY, "Our QWAC was refused", "tls_alert_received"),
        E::QwacKey(_) => (StatusCode::SERVICE_UNAVAILABLE, "No key of the QWAC", "proxy_internal_error"),
        E::NoCommonProtocol(_) => (StatusCode::BAD_GATEWAY, "No common protocol", "tls_protocol_error"),
        E::Handshake(_) | E::Http(_) => (StatusCode::BAD_GATEWAY, "TLS handshake failed", "tls_protocol_error"),
        E::Replaced => (StatusCode::SERVICE_UNAVAILABLE, "Identity replaced", "connection_limit_reached"),
        E::Busy(_) | E::Full(..) => (StatusCode::SERVICE_UNAVAILABLE, "Upstream busy", "connection_limit_reached"),
    };
    let face = unsent(status, error.kind(), title, rfc9209);
    match error {
        E::Busy(_) | E::Full(..) | E::Replaced | E::QwacKey(_) => face.try_again(),
        _ => face,
    }
}

/// Never 503 and never `Retry-After`: meshes and HTTP libraries resend on those.
fn of_send(error: &SendError) -> Face {
    let (status, title, rfc9209) = match error.cause {
        Cause::QwacRefused(_) => (StatusCode::BAD_GATEWAY, "Our QWAC was refused", "tls_alert_received"),
        Cause::Renegotiation | Cause::PostHandshakeAuthentication => {
            (StatusCode::BAD_GATEWAY, "Upstream asked for our certificate too late", "tls_protocol_error")
        }
        Cause::ClosedBeforeHead(_) => {
            (StatusCode::BAD_GATEWAY, "Upstream closed without an answer", "connection_terminated")
        }
        Cause::Unasked(_) => (StatusCode::BAD_GATEWAY, "Upstream spoke before it was asked", "http_protocol_error"),
        Cause::ClosedInHead(_) => (StatusCode::BAD_GATEWAY, "Upstream's head was cut", "http_response_incomplete"),
        Cause::MalformedHead(_) | Cause::Switched | Cause::TransferCoding => {
            (StatusCode::BAD_GATEWAY, "Upstream's head is malformed", "http_protocol_error")
        }
        Cause::ResponseTimeout(_) => {
            (StatusCode::GATEWAY_TIMEOUT, "Upstream did not answer in time", "http_response_timeout")
        }
        Cause::Retired => (StatusCode::BAD_GATEWAY, "The connection was retired", "proxy_internal_error"),
    };
    face(error.outcome, status, error.cause.kind(), title, rfc9209)
}

fn proxy_status(error: &str, kind: &str) -> HeaderValue {
    let text = format!("sealproxy; error={error}; details=\"{kind}\"");
    HeaderValue::try_from(text).expect("static words are visible ASCII")
}

fn insert_text(headers: &mut http::HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

/// RFC 9457 section 3.1, with two members of our own.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    outcome: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_host_that_was_asked_for_only_what_names_have_is_shown() {
        let long = "a".repeat(300);
        for (host, port, shown) in [
            ("evil.example", None, "evil.example"),
            ("[fd00::1]", Some(8080), "[fd00::1]:8080"),
            ("<script>\u{e9}%41{}'`", Some(1), "script41:1"),
            (&long, None, &long[..253]),
        ] {
            assert_eq!(AskedHost::new(host, port).to_string(), shown);
        }
    }

    #[test]
    fn an_answer_to_a_request_that_is_not_read_is_one_that_can_be_read() {
        let bytes = Problem::Crowded(64).answer_unread();
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut head = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(length) = head.parse(&bytes).expect("HTTP") else { panic!("cut") };
        assert_eq!(head.code, Some(503));
        let of = |name| head.headers.iter().find(|header| header.name == name).map(|header| header.value.to_vec());
        assert_eq!(of("content-length"), Some((bytes.len() - length).to_string().into_bytes()));
        assert_eq!((of("retry-after"), of("connection")), (Some(b"1".to_vec()), Some(b"close".to_vec())));
        let document: serde_json::Value = serde_json::from_slice(&bytes[length..]).expect("JSON");
        assert_eq!(
            (&document["type"], &document["outcome"]),
            (&"urn:sealproxy:problem:crowded".into(), &"not_sent".into())
        );
        assert!(document["detail"].as_str().is_some_and(|detail| detail.contains("the 64 of `limits.connections`")));
        assert_eq!(document.get("request_id"), None);
    }
}
