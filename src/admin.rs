//! `/livez`, `/readyz`, `/metrics` and `/status` on listeners of their own, so that no path of a bank is ever shadowed.
//! Must know nothing else of ours.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use prometheus::{Registry, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// One admin listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it serves.
    pub serve: Vec<Page>,
}

/// What an admin listener can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `/livez`: the process answers.
    Livez,
    /// `/readyz`: it wants traffic.
    Readyz,
    /// `/metrics`: Prometheus text format.
    Metrics,
    /// `/status`: certificates, seals and the last reload, as JSON. For loopback alone.
    Status,
}

impl Page {
    fn path(self) -> &'static str {
        match self {
            Self::Livez => "/livez",
            Self::Readyz => "/readyz",
            Self::Metrics => "/metrics",
            Self::Status => "/status",
        }
    }
}

/// What the pages report.
pub struct State {
    registry: Registry,
    serving: AtomicBool,
    standing: ArcSwap<Standing>,
}

/// Who we are at present, as the pages tell it.
#[derive(Debug, Default)]
pub struct Standing {
    /// Whether any identity can be used, or could but for a token that is down.
    pub usable: bool,
    /// Whether the identity of each upstream can be used there, by the upstreams' names.
    pub upstreams: BTreeMap<String, bool>,
    /// The text of `/status`.
    pub status: Bytes,
}

impl State {
    /// Not ready yet.
    pub fn new(registry: Registry) -> Arc<Self> {
        Arc::new(Self { registry, serving: AtomicBool::new(false), standing: ArcSwap::default() })
    }

    /// Says whether the listeners are bound and the process is not about to end.
    pub fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Release);
    }

    /// Says who we are.
    pub fn set_standing(&self, standing: Standing) {
        self.standing.store(Arc::new(standing));
    }

    fn page(&self, page: Page, query: Option<&str>) -> Response<Full<Bytes>> {
        match page {
            Page::Livez => text(StatusCode::OK, "alive\n"),
            Page::Readyz => self.ready(query),
            Page::Metrics => self.metrics(),
            Page::Status => json(self.standing.load().status.clone()),
        }
    }

    /// All replicas share their certificates, and a bank or a token that is down is down for all: a pod that is not ready
    /// for that reason would help nobody. Who wants to know it of one upstream asks for that one: `?upstream=NAME`.
    fn ready(&self, query: Option<&str>) -> Response<Full<Bytes>> {
        let standing = self.standing.load();
        if !self.serving.load(Ordering::Acquire) {
            return unready("not ready: starting or draining\n");
        }
        if !standing.usable {
            return unready("not ready: no identity can be used; /status says why\n");
        }
        let Some(query) = query else { return text(StatusCode::OK, "ready\n") };
        match query.strip_prefix("upstream=").map(|name| standing.upstreams.get(name)) {
            Some(Some(true)) => text(StatusCode::OK, "ready\n"),
            Some(Some(false)) => unready("not ready: the upstream's identity cannot be used; /status says why\n"),
            Some(None) => text(StatusCode::NOT_FOUND, "no such upstream\n"),
            None => text(StatusCode::BAD_REQUEST, "write /readyz or /readyz?upstream=NAME\n"),
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        match TextEncoder::new().encode_to_string(&self.registry.gather()) {
            Ok(metrics) => text(StatusCode::OK, metrics),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be rendered\n"),
        }
    }
}

/// Serves the pages of one listener until `stop` resolves, then ends its connections.
pub async fn serve(listener: TcpListener, pages: Vec<Page>, state: Arc<State>, stop: impl Future<Output = ()>) {
    let pages: Arc<[Page]> = pages.into();
    let graceful = GracefulShutdown::new();
    let seats = Arc::new(Semaphore::new(CONNECTIONS));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match (accepted, Arc::clone(&seats).try_acquire_owned()) {
            (Ok((stream, _)), Ok(seat)) => {
                let work = converse(stream, Arc::clone(&pages), Arc::clone(&state), graceful.watcher());
                tokio::spawn(async move {
                    let _seat = seat;
                    let _ = tokio::time::timeout(LIFETIME, work).await;
                });
            }
            (Ok(_), Err(_)) => {}
            (Err(_), _) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    // A scraper in the middle of its scrape may finish it.
    let _ = tokio::time::timeout(Duration::from_secs(1), graceful.shutdown()).await;
}

/// Probes and scrapers are few. A connection is closed after an hour at the latest: they dial again.
const CONNECTIONS: usize = 64;
const LIFETIME: Duration = Duration::from_secs(3600);
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

async fn converse(stream: TcpStream, pages: Arc<[Page]>, state: Arc<State>, watcher: Watcher) {
    let service = service_fn(|request| {
        let response = answer(&request, &pages, &state);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // A probe that hangs up early has what it wanted.
    let _ = watcher.watch(connection).await;
}

fn answer(request: &Request<Incoming>, pages: &[Page], state: &State) -> Response<Full<Bytes>> {
    let asked = request.uri().path();
    match pages.iter().copied().find(|page| page.path() == asked) {
        None => {
            let served: Vec<_> = pages.iter().map(|page| page.path()).collect();
            text(StatusCode::NOT_FOUND, format!("no such page here; there are {}\n", served.join(" ")))
        }
        Some(_) if !matches!(*request.method(), Method::GET | Method::HEAD) => {
            text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n")
        }
        Some(page) => state.page(page, request.uri().query()),
    }
}

fn unready(reason: &'static str) -> Response<Full<Bytes>> {
    text(StatusCode::SERVICE_UNAVAILABLE, reason)
}

fn json(page: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(page));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}
