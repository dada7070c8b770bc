//! Header rules: what reaches the bank of a head that passes, what reaches the caller of an answer, and that nothing in
//! between changes a value, adds one, or takes away what is protected.

#![no_main]

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use libfuzzer_sys::fuzz_target;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use sealproxy::identity::certificate::Certificate;
use sealproxy::identity::{Credential, pem};
use sealproxy::key::Key;
use sealproxy::log::Log;
use sealproxy::proxy::api::{BECM, Environment};
use sealproxy::proxy::route::{Route, Sealing, Settings};
use sealproxy::proxy::target::origin_form;
use sealproxy::proxy::{Metrics, headers};
use sealproxy::seal::{Profile, Sealer, dialect};
use sealproxy::upstream::{self, Destination, Families, Origin, Roots, Trust, Upstream};

mod request;

fuzz_target!(|bytes: &[u8]| {
    let Some((&body, head)) = bytes.split_first() else { return };
    let Some(head) = request::head(head) else { return };
    for route in [&RULES.sealed, &RULES.open] {
        go_out(&head, route, u64::from(body));
    }
    come_in(&head.headers);
});

fn go_out(came_in: &Parts, route: &Route, body: u64) {
    let (id, refused) = headers::identify(&came_in.headers);
    if refused.is_some() || headers::check(came_in, route, FIELDS).is_err() {
        return;
    }
    let mut head = came_in.clone();
    let Ok(target) = origin_form(&came_in.uri) else { return };
    if headers::outbound(&mut head, target.clone(), route, &id, body, &RULES.metrics).is_err() {
        assert!(is_sealed(route) && body > 0, "only a sealed body without a type is refused here");
        return;
    }
    assert_eq!(head.uri.to_string(), target.as_str(), "another target leaves");
    assert_eq!((&head.method, head.version), (&came_in.method, Version::HTTP_11));
    assert!(came_in.headers.len() <= FIELDS);
    assert_eq!(all(&head.headers, "host"), [BANK.as_bytes()]);
    assert_eq!(all(&head.headers, "x-request-id"), [id.as_bytes()]);
    is_framed_once(&head, body);
    assert!(body > 0 || !is_sealed(route) || !head.headers.contains_key(CONTENT_TYPE), "the type of no body");
    let named = options(&came_in.headers);
    for name in head.headers.keys() {
        let text = name.as_str();
        let of_the_seal = SEAL.contains(&text) && (is_sealed(route) || text != "date");
        assert!(!HOP_BY_HOP.contains(&text) && !of_the_seal && text != "expect", "{name} leaves");
        assert!(text != "tpp-certificate" && text != "tpp-signature-certificate", "{name} leaves");
        if FILLED.contains(&text) {
            continue;
        }
        assert!(!named.iter().any(|option| option == text), "{name} leaves, and Connection names it");
        assert!(is_meant_for_a_bank(text, route), "{name} leaves");
        assert_eq!(all(&head.headers, text), all(&came_in.headers, text), "{name} changed");
    }
    for name in KEPT {
        let describes_a_body = name.starts_with("content-");
        if !(describes_a_body && body == 0) {
            assert_eq!(all(&head.headers, name), all(&came_in.headers, name), "{name} did not leave as it came");
        }
    }
    for (name, value) in [("user-agent", "sealproxy"), ("accept", "application/json")] {
        let sent = all(&head.headers, name);
        assert!(sent.iter().any(|value| !value.trim_ascii().is_empty()), "{name} is missing or empty");
        if all(&came_in.headers, name).iter().all(|value| value.trim_ascii().is_empty()) {
            assert!(sent.len() == 1 && sent[0].starts_with(value.as_bytes()), "{name} is not ours");
        }
    }
}

fn is_sealed(route: &Route) -> bool {
    matches!(route.sealing, Sealing::By(_))
}

/// Two readers of what leaves agree on where its body ends.
fn is_framed_once(head: &Parts, body: u64) {
    let expected: &[String] = match body {
        0 if [Method::POST, Method::PUT, Method::PATCH].contains(&head.method) => &["0".into()],
        0 => &[],
        length => &[length.to_string()],
    };
    let lengths: Vec<_> = all(&head.headers, "content-length");
    assert_eq!(lengths, expected.iter().map(String::as_bytes).collect::<Vec<_>>());
    assert!(!head.headers.contains_key(TRANSFER_ENCODING));
}

/// The fields as an answer's, and as its trailers.
fn come_in(fields: &HeaderMap) {
    let mut answer = fields.clone();
    let id = HeaderValue::from_static("the-id");
    headers::inbound(&mut answer, StatusCode::OK, &id);
    assert_eq!(all(&answer, "sealproxy-request-id"), [b"the-id"]);
    let mut trailers = fields.clone();
    headers::inbound_trailers(&mut trailers);
    assert!(!trailers.contains_key("sealproxy-request-id"));
    for relayed in [&answer, &trailers] {
        for name in relayed.keys() {
            let text = name.as_str();
            let ours = text.starts_with("sealproxy-") && text != "sealproxy-request-id";
            // `Trailer` announces what passes as well (RFC 9110 section 6.6.2).
            let of_the_connection =
                HOP_BY_HOP.contains(&text) && !(text == "trailer" && std::ptr::eq(relayed, &answer));
            assert!(!of_the_connection && !ours, "{name} reaches the caller");
            if text == "proxy-status" {
                let speaks = |value: &&[u8]| value.to_ascii_lowercase().windows(9).any(|word| word == b"sealproxy");
                assert!(!all(relayed, text).iter().any(speaks), "the bank speaks as us");
            }
            if text == "content-length" && std::ptr::eq(relayed, &answer) {
                is_the_one_length(&all(relayed, text), &all(fields, text));
            } else if text != "sealproxy-request-id" {
                assert_eq!(all(relayed, text), all(fields, text), "{name} changed");
            }
        }
    }
    if fields.contains_key(TRANSFER_ENCODING) {
        assert!(!answer.contains_key(CONTENT_LENGTH), "a length beside chunks");
    }
    assert!(fields.get(HOST).is_none() || answer.contains_key(HOST) || options(fields).contains(&"host".to_owned()));
}

/// RFC 9110 section 8.6: one number, which is what each of those that came in said.
fn is_the_one_length(relayed: &[&[u8]], came_in: &[&[u8]]) {
    let [length] = relayed else { panic!("{relayed:?} reaches the caller") };
    assert!(!length.is_empty() && length.iter().all(u8::is_ascii_digit), "{length:?} is no length");
    let mut members = came_in.iter().flat_map(|value| value.split(|byte| *byte == b','));
    assert!(members.all(|member| member.trim_ascii() == *length), "{came_in:?} did not say {length:?}");
}

fn all<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a [u8]> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes).collect()
}

fn options(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    values.map(|option| String::from_utf8_lossy(option.trim_ascii()).to_ascii_lowercase()).collect()
}

/// On a sealed route what the API knows; elsewhere what does not tell of the caller's network.
fn is_meant_for_a_bank(name: &str, route: &Route) -> bool {
    let family = |families: &[&str]| families.iter().any(|family| name.starts_with(family));
    if route.pass.iter().any(|passed| passed == name) {
        return true;
    }
    if is_sealed(route) {
        let known = ["authorization", "cache-control", "content-disposition", "content-encoding", "content-language"];
        return known.contains(&name) || name == "range" || family(&["if-", "psu-", "tpp-", "accept"]);
    }
    !family(&["x-forwarded-", "x-envoy-", "x-b3-", "x-istio-", "sec-", "sealproxy-", "l5d-"])
        && !["via", "forwarded", "traceparent", "tracestate", "baggage", "origin", "referer", "x-real-ip"]
            .contains(&name)
}

const FIELDS: usize = 32;
const BANK: &str = "bank.example";
const PASSED: HeaderName = HeaderName::from_static("x-forwarded-passed");

const SEAL: [&str; 3] = ["date", "digest", "signature"];
/// Set by the proxy, or only where the caller set none.
const FILLED: [&str; 6] = ["host", "x-request-id", "content-length", "user-agent", "accept", "content-type"];
/// Headers whose loss would change what a request means to the bank.
const KEPT: [&str; 3] = ["authorization", "content-type", "content-encoding"];
/// RFC 9110 section 7.6.1, and what older proxies send.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

struct Rules {
    sealed: Route,
    open: Route,
    metrics: Metrics,
}

static RULES: LazyLock<Rules> = LazyLock::new(|| {
    let registry = prometheus::Registry::new();
    let families = Families::register(&registry).expect("free names");
    let metrics = Metrics::register(&registry).expect("free names");
    let upstream = upstream(&families);
    let route = |sealer: Option<Arc<Sealer>>| Route {
        settings: Settings {
            path: "/".to_owned(),
            upstream: BANK.to_owned(),
            methods: vec![Method::GET],
            seal: sealer.is_some(),
        },
        origin: upstream.origin().clone(),
        upstream: Some(Arc::clone(&upstream)),
        sealing: Sealing::new(sealer.is_some(), sealer),
        api: &BECM,
        environment: Environment::Production,
        pass: Arc::new([PASSED]),
        host: HeaderValue::from_static(BANK),
        metrics: metrics.of_route("/"),
    };
    Rules { sealed: route(Some(Arc::new(sealer()))), open: route(None), metrics: metrics.clone() }
});

fn vector(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors").join(name)
}

fn sealer() -> Sealer {
    let chain = pem::read_chain(&vector("becm-qsealc.pem")).expect("a chain");
    let key = Key::from_der(&pem::read_key(&vector("becm-qsealc.key")).expect("a key")).expect("RSA");
    let certificate = Certificate::from_der(chain[0].clone()).expect("a certificate");
    let mut pairing = pin!(Credential::new(certificate, key));
    let Poll::Ready(credential) = pairing.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("a key in memory never waits");
    };
    let profile = Profile { dialect: &dialect::BECM, key_id: None, key_id_quoted: None, sign: Vec::new() };
    Sealer::new(&profile, &credential.expect("a pair")).expect("a sealer")
}

/// Nobody reads it.
fn log() -> Log {
    Log::start(std::io::sink(), 1).expect("a thread").0
}

fn upstream(families: &Families) -> Arc<Upstream> {
    let second = Duration::from_secs(1);
    let settings = upstream::Settings {
        via: None,
        origin: Origin { host: BANK.to_owned(), port: 443 },
        trust: Trust { roots: Roots::File(vector("becm-qsealc.pem")), ..Trust::default() },
        private: false,
        idle: second,
        max_age: second,
        connections: 1,
        in_flight: 1,
        timeouts: upstream::Timeouts {
            via: second,
            resolve: second,
            connect: second,
            handshake: second,
            response: second,
            response_frame: second,
        },
    };
    Arc::new(
        Upstream::new(
            Destination::new(BANK, settings, families, log()),
            Arc::new(Nobody),
            None,
            SystemTime::UNIX_EPOCH,
        )
        .expect("a trust anchor"),
    )
}

/// Nothing is ever sent from here.
#[derive(Debug)]
struct Nobody;

impl ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
