//! A strict sandbox bank (ASPSP): demands the client certificate, checks every header rule, digest and signature, and
//! answers like the real one. Not what the rules are (`rules.rs`) nor what it knows (`resources.rs`).

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONTENT_LANGUAGE, CONTENT_TYPE, DATE, HeaderName, HeaderValue, LOCATION};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use serde::Serialize;
use serde_json::json;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

pub mod faults;
mod ledger;
mod resources;
mod rules;
mod sabotage;

use crate::identity::certificate::Certificate;
use crate::seal::verify::Verified;
use faults::{Faults, Mishap};
use ledger::Ledger;
pub use resources::DEMO_ACCOUNT;
use resources::{Reply, Resources};
use rules::{Fault, Rules};
use sabotage::Seize;

/// What a bank needs.
pub struct Settings {
    /// Its own chain, leaf first.
    pub server_chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub server_key: PrivateKeyDer<'static>,
    /// Whose QWACs it takes.
    pub client_roots: Vec<CertificateDer<'static>>,
    /// The QSealC that is registered, under the SHA-1 of its DER.
    pub seal: Certificate,
    /// The certificate that it takes for the registered one when asked to by `X-Sandbox-Fault: wrong-key`.
    pub other_seal: Option<Certificate>,
    /// The values of `Host` under which it is reached.
    pub authorities: Vec<String>,
    /// Whether API requests must be sealed. A bench of what all but the seal costs asks for no seal.
    pub demands_seal: bool,
    /// What it does wrong.
    pub faults: Faults,
    /// Its clock.
    pub clock: fn() -> SystemTime,
}

/// A bank on loopback.
pub struct Bank {
    tls: TlsAcceptor,
    rules: Rules,
    resources: Resources,
    demands_seal: bool,
    clock: fn() -> SystemTime,
    faults: ArcSwap<Faults>,
    ledger: Ledger,
    observations: Mutex<VecDeque<Observation>>,
    accepted: AtomicU64,
    connections: AtomicU64,
    requests: AtomicU64,
}

/// What the bank saw of one request.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The connection's number, from 1.
    pub connection: u64,
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// `X-Request-Id`; empty if there was none.
    pub request_id: String,
    /// `Date`; empty if there was none.
    pub date: String,
    /// What the bank answered.
    pub status: StatusCode,
    /// What the signature covered, where it verified.
    pub verified: Option<Verified>,
}

impl Bank {
    /// Builds the bank; nothing listens yet.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(settings.client_roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(settings.server_chain, settings.server_key)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: TlsAcceptor::from(Arc::new(tls)),
            rules: Rules::new(settings.authorities, settings.seal, settings.other_seal),
            resources: Resources::default(),
            demands_seal: settings.demands_seal,
            clock: settings.clock,
            faults: ArcSwap::from_pointee(settings.faults),
            ledger: Ledger::default(),
            observations: Mutex::default(),
            accepted: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        })
    }

    /// Serves until `stop` resolves.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => drop(tokio::spawn(Arc::clone(&self).converse(stream))),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// The last requests, oldest first.
    pub fn observations(&self) -> Vec<Observation> {
        self.lock().iter().cloned().collect()
    }

    /// Connections that shook hands.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Requests that came in.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// What it does wrong from now on, in place of what it did.
    pub fn set_faults(&self, faults: Faults) {
        self.faults.store(Arc::new(faults));
    }

    /// How often each fault was injected.
    pub fn injected(&self) -> BTreeMap<Mishap, u64> {
        self.ledger.injected()
    }

    /// How often a request of this `X-Request-Id` was read whole: the bank may have acted on it as often, whatever it
    /// answered. Knows of the last [`Self::REMEMBERED`] ids.
    pub fn received(&self, id: &str) -> u32 {
        self.ledger.received(id)
    }

    /// Ids that the bank knows of.
    pub const REMEMBERED: usize = ledger::MOST;

    async fn converse(self: Arc<Self>, stream: TcpStream) {
        // Latency is measured through this socket.
        let _ = stream.set_nodelay(true);
        let mishap = self.faults.load().of_connection(self.accepted.fetch_add(1, Ordering::Relaxed));
        let Ok(mut tls) = self.meet(stream, mishap.inspect(|mishap| self.ledger.inject(*mishap))).await else { return };
        let connection = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let (seize, mut seized) = mpsc::channel(1);
        loop {
            let service = service_fn(|request| {
                let (bank, seize) = (Arc::clone(&self), seize.clone());
                async move { Ok::<_, Infallible>(bank.handle(request, connection, &seize).await) }
            });
            let mut serving =
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(tls), service);
            let script = tokio::select! {
                // A client that hangs up is the client's affair.
                _ = &mut serving => return,
                Some(script) = seized.recv() => script,
            };
            let http1::Parts { io, read_buf, .. } = serving.into_parts();
            match script.play(io.into_inner()).await {
                // What hyper has read ahead of a client that does not wait for answers is lost.
                Ok(Some(kept)) if read_buf.is_empty() => tls = kept,
                _ => return,
            }
        }
    }

    async fn handle(&self, request: Request<Incoming>, connection: u64, seize: &Seize) -> Response<Full<Bytes>> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let request = request.into_parts();
        let asked = Mishap::asked(&request.0.headers);
        let Some(mishap) = asked.or_else(|| self.faults.load().of_request(number)) else {
            return self.answer(request, connection).await;
        };
        self.ledger.inject(mishap);
        self.mishandle(mishap, request, connection, seize).await
    }

    async fn answer(&self, (head, incoming): (Parts, Incoming), connection: u64) -> Response<Full<Bytes>> {
        let judged = match self.read(&head, incoming).await {
            Ok(body) => self.judge(&head, &body),
            Err(fault) => (None, Err(fault)),
        };
        self.conclude(&head, connection, judged)
    }

    /// Reads a request to its end. From then on the bank may have acted on it.
    async fn read(&self, head: &Parts, incoming: Incoming) -> Result<Bytes, Fault> {
        let late = || Fault::new(StatusCode::REQUEST_TIMEOUT, "the body did not come to its end in 30 seconds");
        let body = timeout(BODY_TIME, collect(incoming)).await.unwrap_or_else(|_| Err(late()))?;
        self.ledger.receive(&text(head, REQUEST_ID));
        Ok(body)
    }

    fn conclude(&self, head: &Parts, connection: u64, judged: Judged) -> Response<Full<Bytes>> {
        let response = self.render(head, judged.1);
        self.observe(head, connection, response.status(), judged.0);
        response
    }

    /// Judges, and answers what may be answered.
    fn judge(&self, head: &Parts, body: &Bytes) -> Judged {
        let path = head.uri.path();
        let query = head.uri.query().unwrap_or_default();
        let Some((base, rest)) = split(path) else {
            return (None, Err(Fault::new(StatusCode::NOT_FOUND, "no such resource")));
        };
        if rest == "oauth2/token" {
            return (None, self.rules.judge_headers(head, body).and_then(|()| token(head, body)));
        }
        let Some(resource) = rest.strip_prefix(API) else {
            return (None, Err(Fault::new(StatusCode::NOT_FOUND, "no such resource")));
        };
        let base = format!("{base}/{}", API.trim_end_matches('/'));
        let answer = || self.resources.answer(&head.method, &base, resource, query, body);
        if !self.demands_seal {
            return (None, self.rules.judge_headers(head, body).and_then(|()| answer()));
        }
        match self.rules.judge_sealed(head, body, (self.clock)()) {
            Err(fault) => (None, Err(fault)),
            Ok(verified) => (Some(verified), answer()),
        }
    }

    fn render(&self, head: &Parts, result: Result<Reply, Fault>) -> Response<Full<Bytes>> {
        let now = (self.clock)();
        let reply = result.unwrap_or_else(|fault| error(&fault, head.uri.path(), now));
        let mut response = Response::new(Full::new(reply.body));
        *response.status_mut() = reply.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json;charset=utf-8"));
        headers.insert(CONTENT_LANGUAGE, HeaderValue::from_static("en"));
        if let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(now)) {
            headers.insert(DATE, date);
        }
        if let Some(id) = head.headers.get(REQUEST_ID) {
            headers.insert(REQUEST_ID, id.clone());
        }
        if let Some(location) = reply.location.and_then(|location| HeaderValue::from_str(&location).ok()) {
            headers.insert(LOCATION, location);
        }
        response
    }

    fn observe(&self, head: &Parts, connection: u64, status: StatusCode, verified: Option<Verified>) {
        let observation = Observation {
            connection,
            method: head.method.clone(),
            target: head.uri.to_string(),
            request_id: text(head, REQUEST_ID),
            date: text(head, DATE),
            status,
            verified,
        };
        let mut observations = self.lock();
        if observations.len() >= OBSERVATIONS {
            observations.pop_front();
        }
        observations.push_back(observation);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Observation>> {
        // A list of observations is whole after any panic.
        self.observations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the signature covered, where it verified, and the answer.
type Judged = (Option<Verified>, Result<Reply, Fault>);

/// A header's value; empty if there is none.
fn text(head: &Parts, name: HeaderName) -> String {
    head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const API: &str = "stet-psd2-api/v2.1/";
const HANDSHAKE: Duration = Duration::from_secs(10);
const BODY: usize = 16 * 1024 * 1024;
const BODY_TIME: Duration = Duration::from_secs(30);
const OBSERVATIONS: usize = 10_000;

/// The brand's base path and what follows it: the sandbox's, and for configurations shaped like production's the other.
fn split(path: &str) -> Option<(&'static str, &str)> {
    ["/sandbox/becm", "/becm"].into_iter().find_map(|base| Some((base, path.strip_prefix(base)?.strip_prefix('/')?)))
}

/// The token endpoint: the QWAC says who asks, nothing is signed.
fn token(head: &Parts, body: &[u8]) -> Result<Reply, Fault> {
    if head.method != Method::POST {
        return Err(Fault::new(StatusCode::METHOD_NOT_ALLOWED, "the resource does not take this method"));
    }
    let refuse = |error: &str, description: &str| {
        let body = json!({ "error": error, "error_description": description, "error_uri": null });
        Ok(Reply::new(StatusCode::BAD_REQUEST, &body))
    };
    let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/x-www-form-urlencoded") {
        return refuse("invalid_request", "the body must be application/x-www-form-urlencoded");
    }
    let form = String::from_utf8_lossy(body);
    let field = |name: &str| form.split('&').filter_map(|pair| pair.split_once('=')).find(|(found, _)| *found == name);
    match field("grant_type") {
        Some((_, "authorization_code" | "refresh_token" | "client_credentials")) => {}
        Some(_) => return refuse("unsupported_grant_type", "unknown grant_type"),
        None => return refuse("invalid_request", "grant_type is missing"),
    }
    let scope = field("scope").map_or("aisp", |(_, scope)| scope);
    let token = uuid::Uuid::new_v4().simple().to_string();
    let body = json!({ "access_token": token, "token_type": "bearer", "expires_in": 900, "scope": scope });
    Ok(Reply::new(StatusCode::OK, &body))
}

/// An error as the bank writes it, its members in the bank's order.
#[derive(Serialize)]
struct ErrorBody<'a> {
    status: u16,
    timestamp: &'a str,
    message: &'a str,
    error: &'a str,
    path: &'a str,
}

fn error(fault: &Fault, path: &str, now: SystemTime) -> Reply {
    let timestamp = OffsetDateTime::from(now);
    let timestamp = timestamp.replace_nanosecond(0).unwrap_or(timestamp);
    let timestamp = timestamp.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
    let body = ErrorBody {
        status: fault.status.as_u16(),
        timestamp: &timestamp.replace('Z', "+00:00"),
        message: &fault.message,
        error: fault.status.canonical_reason().unwrap_or_default(),
        path,
    };
    Reply::new(fault.status, &body)
}

async fn collect(mut incoming: Incoming) -> Result<Bytes, Fault> {
    let mut body = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await {
        let frame = frame.map_err(|error| Fault::new(StatusCode::BAD_REQUEST, format!("the body was cut: {error}")))?;
        if let Ok(data) = frame.into_data() {
            body.extend_from_slice(&data);
        }
        if body.len() > BODY {
            return Err(Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"));
        }
    }
    Ok(body.into())
}

/// Why there is no bank.
#[derive(Debug, Error)]
pub enum Error {
    /// Its certificate or key, or its versions.
    #[error("the bank's TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The roots of its clients.
    #[error("the roots of the bank's clients are unusable")]
    Roots(#[from] VerifierBuilderError),
    /// A socket.
    #[error("the bank cannot listen")]
    Io(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: Method, kind: &str, body: &str) -> (StatusCode, String) {
        let request = Request::builder().method(method).uri("/becm/oauth2/token").header(CONTENT_TYPE, kind);
        let head = request.body(()).expect("a request").into_parts().0;
        let reply = token(&head, body.as_bytes()).unwrap_or_else(|fault| error(&fault, "/", SystemTime::UNIX_EPOCH));
        (reply.status, String::from_utf8(reply.body.to_vec()).expect("UTF-8"))
    }

    #[test]
    fn an_error_is_written_as_the_bank_writes_it() {
        let fault = Fault::new(StatusCode::BAD_REQUEST, "the header host is missing");
        let now =
            httpdate::parse_http_date("Mon, 23 Nov 2026 04:00:00 GMT").expect("a date") + Duration::from_millis(9);
        assert_eq!(
            error(&fault, "/becm/stet-psd2-api/v2.1/accounts", now).body,
            "{\"status\":400,\"timestamp\":\"2026-11-23T04:00:00+00:00\",\"message\":\"the header host is missing\",\
             \"error\":\"Bad Request\",\"path\":\"/becm/stet-psd2-api/v2.1/accounts\"}"
        );
    }

    #[test]
    fn the_token_endpoint_takes_a_form_with_a_grant_type() {
        const FORM: &str = "application/x-www-form-urlencoded";
        let (status, body) = asked(Method::POST, FORM, "grant_type=client_credentials&client_id=a&scope=pisp");
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains("\"token_type\":\"bearer\"") && body.contains("\"scope\":\"pisp\""), "{body}");
        for (kind, form, error) in [
            ("application/json", "grant_type=client_credentials", "invalid_request"),
            (FORM, "client_id=a", "invalid_request"),
            (FORM, "grant_type=password", "unsupported_grant_type"),
        ] {
            let (status, body) = asked(Method::POST, kind, form);
            assert_eq!(status, StatusCode::BAD_REQUEST);
            assert!(body.starts_with(&format!("{{\"error\":\"{error}\",")), "{body}");
        }
        assert_eq!(asked(Method::GET, FORM, "").0, StatusCode::METHOD_NOT_ALLOWED);
    }

    #[test]
    fn both_shapes_of_a_path_are_the_bank() {
        assert_eq!(split("/sandbox/becm/oauth2/token"), Some(("/sandbox/becm", "oauth2/token")));
        assert_eq!(split("/becm/oauth2/token"), Some(("/becm", "oauth2/token")));
        assert_eq!(split("/becmx/oauth2/token"), None);
        assert_eq!(split("/cic/oauth2/token"), None);
    }
}
