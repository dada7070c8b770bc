//! What the bank demands of a request's head and body before it looks at what is asked. Pure.

use std::time::{Duration, SystemTime};

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::identity::certificate::Certificate;
use crate::seal::cavage::Message;
use crate::seal::dialect::BECM;
use crate::seal::verify::{Verified, Verifier};

/// The rules of one bank.
pub(super) struct Rules {
    authorities: Vec<String>,
    verifier: Verifier,
    other_key: Option<Verifier>,
}

/// A status and the message that names the fault.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
}

/// What the caller of a sandbox can ask to be wrong.
pub(super) const FAULT: HeaderName = HeaderName::from_static("x-sandbox-fault");

/// Asks the bank to answer as if something of its own differed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pretence {
    Nothing,
    StaleDate,
    WrongKey,
    WrongPath,
}

impl Pretence {
    fn of(headers: &HeaderMap) -> Result<Self, Fault> {
        match headers.get(FAULT).map(HeaderValue::as_bytes) {
            None => Ok(Self::Nothing),
            Some(b"stale-date") => Ok(Self::StaleDate),
            Some(b"wrong-key") => Ok(Self::WrongKey),
            Some(b"wrong-path") => Ok(Self::WrongPath),
            Some(_) => Err(Fault::bad("X-Sandbox-Fault is none of stale-date, wrong-key, wrong-path")),
        }
    }
}

/// How far the bank's clock is ahead when it pretends.
const AHEAD: Duration = Duration::from_secs(600);

impl Rules {
    /// `authorities` are the values of `Host` that are this bank.
    pub(super) fn new(authorities: Vec<String>, seal: Certificate, other: Option<Certificate>) -> Self {
        let key_id = seal.sha1_hex();
        Self {
            authorities,
            other_key: other.map(|other| Verifier::new(&BECM).register(&key_id, other)),
            verifier: Verifier::new(&BECM).register(&key_id, seal),
        }
    }

    /// Every header rule, then digest and signature.
    pub(super) fn judge_sealed(&self, head: &Parts, body: &[u8], now: SystemTime) -> Result<Verified, Fault> {
        self.judge_headers(head, body)?;
        let authorization = head.headers.get(AUTHORIZATION).map_or("", |value| value.to_str().unwrap_or_default());
        if !authorization.starts_with("Bearer ") || authorization.len() == "Bearer ".len() {
            return Err(Fault::new(StatusCode::UNAUTHORIZED, "the header authorization holds no Bearer token"));
        }
        self.judge_seal(head, body, now)
    }

    /// What holds with and without a seal.
    pub(super) fn judge_headers(&self, head: &Parts, body: &[u8]) -> Result<(), Fault> {
        let host = single(&head.headers, &HOST)?;
        if !self.authorities.iter().any(|authority| authority == host) {
            return Err(Fault::bad(format!("the header host is {host:?}, expected {}", self.authorities.join(" or "))));
        }
        for name in [ACCEPT, USER_AGENT] {
            if head.headers.get(&name).is_none_or(|value| value.as_bytes().trim_ascii().is_empty()) {
                return Err(Fault::bad(format!("the header {name} is missing or empty")));
            }
        }
        let id = single(&head.headers, &HeaderName::from_static("x-request-id"))?;
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)) {
            return Err(Fault::bad("the header x-request-id is not one token"));
        }
        match (body.is_empty(), head.headers.contains_key(CONTENT_TYPE)) {
            (true, true) => return Err(Fault::bad("the request has a content-type and no body")),
            (false, false) => return Err(Fault::bad("the request has a body and no content-type")),
            _ => {}
        }
        match head.headers.keys().find(|name| is_leftover(name.as_str())) {
            Some(name) => Err(Fault::bad(format!("the header {name} has no business here"))),
            None => Ok(()),
        }
    }

    fn judge_seal(&self, head: &Parts, body: &[u8], now: SystemTime) -> Result<Verified, Fault> {
        let pretence = Pretence::of(&head.headers)?;
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        let (verifier, target, now) = match pretence {
            Pretence::Nothing => (&self.verifier, target.to_owned(), now),
            Pretence::StaleDate => (&self.verifier, target.to_owned(), now + AHEAD),
            Pretence::WrongKey => (self.other_key.as_ref().unwrap_or(&self.verifier), target.to_owned(), now),
            Pretence::WrongPath => (&self.verifier, format!("/rewritten{target}"), now),
        };
        let message = Message { method: &head.method, target: &target, headers: &head.headers };
        verifier.verify(&message, body, now).map_err(|rejected| Fault::bad(rejected.to_string()))
    }
}

/// What a proxy should have kept to itself.
fn is_leftover(name: &str) -> bool {
    const LEFTOVERS: [&str; 14] = [
        "cookie",
        "expect",
        "forwarded",
        "http2-settings",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "traceparent",
        "connection",
    ];
    LEFTOVERS.contains(&name) || name.starts_with("x-forwarded-") || name.starts_with("sealproxy-")
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, Fault> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| Fault::bad(format!("the header {name} is not text"))),
        (None, _) => Err(Fault::bad(format!("the header {name} is missing"))),
        (Some(_), Some(_)) => Err(Fault::bad(format!("the header {name} is there more than once"))),
    }
}
