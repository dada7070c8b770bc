//! What the bank demands of a request's head and body before it looks at what is asked. Pure.

use std::time::{Duration, SystemTime};

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, HeaderName, StatusCode};

use super::faults::{self, Mishap};
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
        match at_most_one(headers, &FAULT)? {
            None => Ok(Self::Nothing),
            Some("stale-date") => Ok(Self::StaleDate),
            Some("wrong-key") => Ok(Self::WrongKey),
            Some("wrong-path") => Ok(Self::WrongPath),
            Some(other) => match other.parse::<Mishap>() {
                Ok(mishap) if mishap.befalls_connections() => Err(Fault::bad(format!(
                    "X-Sandbox-Fault: {other} comes before any request: start the bank with it"
                ))),
                Ok(_) => Ok(Self::Nothing),
                Err(faults::Error::Unknown(_)) => Err(Fault::bad(format!(
                    "X-Sandbox-Fault is none of stale-date, wrong-key, wrong-path, {}: {other:?}",
                    Mishap::names()
                ))),
                Err(error) => Err(Fault::bad(format!("X-Sandbox-Fault: {error}"))),
            },
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
        let token = at_most_one(&head.headers, &AUTHORIZATION)?.and_then(|value| value.strip_prefix("Bearer "));
        if token.is_none_or(|token| token.trim().is_empty()) {
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
        match (body.is_empty(), at_most_one(&head.headers, &CONTENT_TYPE)?.is_some()) {
            (true, true) => return Err(Fault::bad("the request has a content-type and no body")),
            (false, false) => return Err(Fault::bad("the request has a body and no content-type")),
            _ => {}
        }
        let leftovers: Vec<_> = head.headers.keys().map(HeaderName::as_str).filter(|name| is_leftover(name)).collect();
        match leftovers.as_slice() {
            [] => Ok(()),
            [name] => Err(Fault::bad(format!("the header {name} has no business here"))),
            names => Err(Fault::bad(format!("the headers {} have no business here", names.join(", ")))),
        }
    }

    fn judge_seal(&self, head: &Parts, body: &[u8], now: SystemTime) -> Result<Verified, Fault> {
        let pretence = Pretence::of(&head.headers)?;
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        let (verifier, target, now) = match pretence {
            Pretence::Nothing => (&self.verifier, target.to_owned(), now),
            Pretence::StaleDate => (&self.verifier, target.to_owned(), now + AHEAD),
            Pretence::WrongKey => {
                let other =
                    self.other_key.as_ref().ok_or_else(|| Fault::bad("this bank has no other key to pretend"))?;
                (other, target.to_owned(), now)
            }
            Pretence::WrongPath => (&self.verifier, format!("/rewritten{target}"), now),
        };
        let message = Message { method: &head.method, target: &target, headers: &head.headers };
        verifier.verify(&message, body, now).map_err(|rejected| Fault::bad(rejected.to_string()))
    }
}

/// What a proxy should have kept to itself.
fn is_leftover(name: &str) -> bool {
    const LEFTOVERS: [&str; 17] = [
        "baggage",
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
        "tracestate",
        "connection",
        "x-real-ip",
    ];
    LEFTOVERS.contains(&name) || name.starts_with("x-forwarded-") || name.starts_with("sealproxy-")
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, Fault> {
    at_most_one(headers, name)?.ok_or_else(|| Fault::bad(format!("the header {name} is missing")))
}

fn at_most_one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Fault> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(Fault::bad(format!("the header {name} is there more than once")));
    }
    let text = first.map(|value| value.to_str().map_err(|_| Fault::bad(format!("the header {name} is not text"))));
    text.transpose()
}

#[cfg(test)]
mod tests {
    use http::Request;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;
    use crate::sandbox::authority::{Authority, KeyKind, Tpp};

    const PEM: &[u8] = include_bytes!("../../../tests/vectors/becm-qsealc.pem");

    fn vectors() -> serde_json::Value {
        serde_json::from_str(include_str!("../../../tests/vectors/becm.json")).expect("JSON")
    }

    fn now() -> SystemTime {
        httpdate::parse_http_date("Tue, 20 Apr 2021 02:07:55 GMT").expect("a date")
    }

    fn rules(other: bool) -> Rules {
        let certificate = |pem: &[u8]| {
            Certificate::from_der(CertificateDer::from_pem_slice(pem).expect("PEM")).expect("a certificate")
        };
        let other = other.then(|| {
            let issued = Authority::new(now()).and_then(|authority| authority.qsealc(&Tpp::demo(), KeyKind::P256));
            certificate(issued.expect("issued").chain_pem.as_bytes())
        });
        Rules::new(vec!["localhost:1".into(), "oauth2-apisi.e-i.com".into()], certificate(PEM), other)
    }

    /// A golden request with the headers that are not signed, and its body.
    fn golden(index: usize) -> (Parts, String) {
        let case = &vectors()["cases"][index];
        let text = |member: &str| case[member].as_str().unwrap_or_default().to_owned();
        let mut request = Request::builder().method(text("method").as_str()).uri(text("target"));
        for (name, value) in [
            ("host", text("host")),
            ("date", text("date")),
            ("x-request-id", text("x_request_id")),
            ("digest", text("digest")),
            ("content-type", text("content_type")),
            ("signature", text("signature")),
            ("authorization", "Bearer demo".into()),
            ("accept", "application/json".into()),
            ("user-agent", "Golden TPP".into()),
        ] {
            if !value.is_empty() {
                request = request.header(name, value);
            }
        }
        (request.body(()).expect("a request").into_parts().0, text("body"))
    }

    /// The golden request without a body, changed.
    fn refused(change: impl FnOnce(&mut HeaderMap)) -> Fault {
        let (mut head, body) = golden(0);
        change(&mut head.headers);
        rules(false).judge_sealed(&head, body.as_bytes(), now()).expect_err("refused")
    }

    fn with(name: &'static str, value: &'static str) -> Fault {
        refused(|headers| drop(headers.insert(name, value.parse().expect("a value"))))
    }

    fn twice(name: &'static str, value: &'static str) -> Fault {
        refused(|headers| assert!(headers.append(name, value.parse().expect("a value"))))
    }

    fn without(name: &'static str) -> Fault {
        refused(|headers| drop(headers.remove(name)))
    }

    #[test]
    fn the_golden_requests_are_accepted() {
        for index in [0, 1] {
            let (head, body) = golden(index);
            let verified = rules(false).judge_sealed(&head, body.as_bytes(), now()).expect("accepted");
            assert_eq!(verified.key_id, vectors()["key_id"].as_str().expect("text"));
        }
    }

    #[test]
    fn every_header_rule_is_refused_by_name() {
        for (fault, message) in [
            (without("host"), "the header host is missing"),
            (twice("host", "oauth2-apisi.e-i.com"), "the header host is there more than once"),
            (
                with("host", "evil.example"),
                "the header host is \"evil.example\", expected localhost:1 or oauth2-apisi.e-i.com",
            ),
            (without("accept"), "the header accept is missing or empty"),
            (with("user-agent", " "), "the header user-agent is missing or empty"),
            (without("x-request-id"), "the header x-request-id is missing"),
            (twice("x-request-id", "a"), "the header x-request-id is there more than once"),
            (with("x-request-id", "a,b"), "the header x-request-id is not one token"),
            (with("x-request-id", ""), "the header x-request-id is not one token"),
            (with("content-type", "application/json"), "the request has a content-type and no body"),
            (with("cookie", "a=b"), "the header cookie has no business here"),
            (with("x-forwarded-for", "::1"), "the header x-forwarded-for has no business here"),
            (twice("authorization", "Bearer b"), "the header authorization is there more than once"),
            (without("date"), "the header date is missing"),
            (without("signature"), "the header signature is missing"),
        ] {
            assert_eq!(fault, Fault::bad(message));
        }
    }

    #[test]
    fn all_leftovers_are_named() {
        let fault = refused(|headers| {
            for name in ["proxy-connection", "te", "x-forwarded-proto"] {
                headers.insert(name, "a".parse().expect("a value"));
            }
        });
        assert_eq!(fault, Fault::bad("the headers proxy-connection, te, x-forwarded-proto have no business here"));
    }

    #[test]
    fn a_request_without_a_token_is_unauthorized() {
        let faults = [without("authorization"), with("authorization", "Bearer  "), with("authorization", "Basic YTpi")];
        assert!(faults.iter().all(|fault| fault.status == StatusCode::UNAUTHORIZED), "{faults:?}");
    }

    #[test]
    fn a_body_needs_one_content_type_and_its_own_digest() {
        let judge = |change: &dyn Fn(&mut HeaderMap), body: &str| {
            let (mut head, _) = golden(1);
            change(&mut head.headers);
            rules(false).judge_sealed(&head, body.as_bytes(), now()).expect_err("refused").message
        };
        let body = golden(1).1;
        assert_eq!(
            judge(&|headers| drop(headers.remove(CONTENT_TYPE)), &body),
            "the request has a body and no content-type"
        );
        assert_eq!(
            judge(&|headers| assert!(headers.append(CONTENT_TYPE, "a/b".parse().expect("a value"))), &body),
            "the header content-type is there more than once"
        );
        assert_eq!(judge(&|headers| drop(headers.remove("digest")), &body), "the header digest is missing");
        assert_eq!(
            judge(&|_| (), "{}"),
            "the Digest is SHA-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=, but that of the body is \
             SHA-256=RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o="
        );
    }

    #[test]
    fn a_pretence_shows_the_message_of_the_rejection() {
        let pretend = |what: &'static str, other| {
            let (mut head, body) = golden(0);
            head.headers.insert(FAULT, what.parse().expect("a value"));
            rules(other).judge_sealed(&head, body.as_bytes(), now()).expect_err("refused").message
        };
        let unverified = "the signature does not verify with the registered certificate over \"(request-target): get ";
        assert_eq!(pretend("stale-date", true), "the Date is 600 seconds old, 300 are tolerated");
        assert!(pretend("wrong-key", true).starts_with(&format!("{unverified}/becm/")));
        assert!(pretend("wrong-path", true).starts_with(&format!("{unverified}/rewritten/becm/")));
        assert_eq!(pretend("wrong-key", false), "this bank has no other key to pretend");
        let slow = pretend("slow", true);
        let known = "X-Sandbox-Fault is none of stale-date, wrong-key, wrong-path, reset-at-accept, ";
        assert!(slow.starts_with(known) && slow.ends_with(", announced-close: \"slow\""), "{slow}");
        assert_eq!(
            pretend("reset-at-accept", true),
            "X-Sandbox-Fault: reset-at-accept comes before any request: start the bank with it"
        );
        assert_eq!(pretend("garbage:1", true), "X-Sandbox-Fault: garbage takes no argument, and not \"1\"");
    }
}
