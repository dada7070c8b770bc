//! Request heads as hyper's parser reads them: which reach a route, and what a signature over hostile header fields
//! covers. The rules for single headers are `rules.rs`'s.

#![no_main]

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use http::header::{HOST, ORIGIN};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use sealproxy::log::Log;
use sealproxy::proxy::Metrics;
use sealproxy::proxy::api::{BECM, Environment};
use sealproxy::proxy::route::{Found, Route, Routes, Sealing, Settings, Transport};
use sealproxy::seal::cavage::{Component, Message, signing_string};
use sealproxy::upstream::{self, Destination, Families, Origin, Roots, Trust, Upstream};

mod oracle;
mod request;

fuzz_target!(|bytes: &[u8]| {
    let Some(head) = request::head(bytes) else { return };
    for transport in [Transport::Tcp, Transport::Unix] {
        if let Ok(found) = ROUTES.find(&head, transport) {
            judge(&head, transport, &found);
        }
    }
    is_signed_line_by_line(&head);
});

fn judge(head: &Parts, transport: Transport, found: &Found) {
    assert_ne!(head.method, Method::CONNECT, "a tunnel has a route");
    let hosts: Vec<String> = named(&head.headers, &HOST);
    assert!(!hosts.iter().any(|host| host.contains(',')), "a list of hosts has a route");
    let absolute = head.uri.authority().map(|authority| host(authority.as_str()));
    assert!(hosts.len() <= 1, "two hosts have one route");
    assert!(
        absolute.is_none() || hosts.first().is_none_or(|named| Some(named) == absolute.as_ref()),
        "two authorities"
    );
    let authority = absolute.or(hosts.into_iter().next()).expect("a request that names nobody has a route");
    assert!(!authority.contains(['@', '/']), "a user or a path in {authority}");
    let port = port(head).filter(|port| ![80, 443].contains(port)).unwrap_or(443);
    let bank = BANKS.iter().find(|bank| bank.host == authority && bank.port == port);
    if let Some(bank) = bank {
        assert_eq!(found.route.upstream_name(), bank.host, "another bank's route");
    }
    assert!(bank.is_some() || transport == Transport::Unix || is_own(&authority), "{authority} is not ours");

    let sites = head.headers.get_all("sec-fetch-site");
    assert!(sites.iter().all(|site| site == "same-origin" || site == "none"), "another site's request has a route");
    for origin in head.headers.get_all(ORIGIN) {
        let origin = origin.to_str().expect("an origin is text");
        let (_, site) = origin.split_once("://").expect("an origin has a scheme");
        assert_eq!(host(site), authority, "another origin's request has a route");
    }

    let target = found.target.as_str();
    let sent = head.uri.path_and_query().map_or("/", |target| target.as_str());
    assert_eq!(target, sent, "the target is not the one received");
    let path = found.target.path();
    assert_eq!(oracle::dot_segment(path.as_bytes()), None, "a dot segment has a route");
    let read = String::from_utf8_lossy(&oracle::canonical(path.as_bytes())).into_owned();
    assert_eq!(longest(path), Some(found.route.settings.path.as_str()), "a longer route fits");
    assert_eq!(longest(&read), longest(path), "a lenient bank takes {read} to another route");
}

/// The hosts that header fields name, in lower case, without ports.
fn named(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    headers.get_all(name).iter().map(|value| host(value.to_str().expect("a host is text"))).collect()
}

fn host(authority: &str) -> String {
    let end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    let colon = authority[end..].find(':').map_or(authority.len(), |colon| end + colon);
    assert!(authority[colon..].bytes().skip(1).all(|byte| byte.is_ascii_digit()), "no port has a route: {authority}");
    authority[..colon].to_ascii_lowercase()
}

/// The port that the authority names.
fn port(head: &Parts) -> Option<u16> {
    let named = head.headers.get(HOST).and_then(|value| value.to_str().ok()?.parse().ok());
    head.uri.authority().cloned().or(named).and_then(|authority: Authority| authority.port_u16())
}

fn is_own(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    ["localhost", OWN_NAME].contains(&host) || address.is_ok_and(|address| address.is_loopback())
}

/// The longest of the routes that a path fits.
fn longest(path: &str) -> Option<&'static str> {
    let fits = |route: &str| if route.ends_with('/') { path.starts_with(route) } else { path == route };
    PATHS.into_iter().map(|(route, _)| route).filter(|route| fits(route)).max_by_key(|route| route.len())
}

/// A signature covers each component in one line of its own: no value can add one or leave its own.
fn is_signed_line_by_line(head: &Parts) {
    let names: Vec<HeaderName> = head.headers.keys().cloned().collect();
    let own = names.iter().cloned().map(Component::Header);
    let components: Vec<Component> = own.chain([Component::RequestTarget]).collect();
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let message = Message { method: &head.method, target, headers: &head.headers };
    let string = signing_string(components.iter(), &message).expect("every header is there");
    let lines: Vec<&[u8]> = string.split(|byte| *byte == b'\n').collect();
    assert_eq!(lines.len(), components.len(), "a value holds a line");
    for (name, line) in names.iter().zip(lines) {
        let values: Vec<&[u8]> = head.headers.get_all(name).iter().map(|value| value.as_bytes().trim_ascii()).collect();
        let expected = [name.as_str().as_bytes(), b": ", &values.join(&b", "[..])].concat();
        assert_eq!(line, expected, "a line is not its header");
    }
}

struct Bank {
    host: &'static str,
    port: u16,
}

const BANKS: [Bank; 2] = [Bank { host: "bank.example", port: 443 }, Bank { host: "other.example", port: 8443 }];
const OWN_NAME: &str = "proxy.internal";
/// Paths, and which bank they are for. None of one bank's lies within another's.
const PATHS: [(&str, usize); 6] = [
    ("/becm/stet-psd2-api/", 0),
    ("/becm/stet-psd2-api/v2.1/accounts", 0),
    ("/becm/stet-psd2-api/v2.1/payment-requests/", 0),
    ("/becm/oauth2/token", 0),
    ("/cic/", 1),
    ("/cic/oauth2/token", 1),
];

static ROUTES: LazyLock<Routes> = LazyLock::new(|| {
    let registry = prometheus::Registry::new();
    let families = Families::register(&registry).expect("free names");
    let metrics = Metrics::register(&registry).expect("free names");
    let upstreams = BANKS.map(|bank| upstream(&bank, &families));
    let route = |(path, bank): (&str, usize)| Route {
        settings: Settings {
            path: path.to_owned(),
            upstream: BANKS[bank].host.to_owned(),
            methods: vec![Method::GET, Method::POST],
            seal: true,
        },
        origin: upstreams[bank].origin().clone(),
        upstream: Some(Arc::clone(&upstreams[bank])),
        sealing: Sealing::ByNobody,
        api: &BECM,
        environment: Environment::Production,
        pass: Arc::default(),
        host: HeaderValue::from_static(BANKS[bank].host),
        metrics: metrics.of_route(path),
    };
    Routes::new(0, PATHS.into_iter().map(route).collect(), vec![OWN_NAME.to_owned()])
});

/// Nobody reads it.
fn log() -> Log {
    Log::start(std::io::sink(), 1).expect("a thread").0
}

fn upstream(bank: &Bank, families: &Families) -> Arc<Upstream> {
    let second = Duration::from_secs(1);
    let settings = upstream::Settings {
        via: None,
        origin: Origin { host: bank.host.to_owned(), port: bank.port },
        trust: Trust {
            roots: Roots::File(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/becm-qsealc.pem")),
            ..Trust::default()
        },
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
    let destination = Destination::new(bank.host, settings, families, log());
    Arc::new(Upstream::new(destination, Arc::new(Nobody), None, SystemTime::UNIX_EPOCH).expect("a trust anchor"))
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
