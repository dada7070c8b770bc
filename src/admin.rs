//! `/livez`, `/readyz`, `/metrics` and `/status` on listeners of their own, so that no path of a bank is ever shadowed.
//! Must know nothing else of ours.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue};
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use prometheus::{Registry, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

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
    /// Whether it tells who we are and what we do. The others say one word.
    fn tells(self) -> bool {
        matches!(self, Self::Metrics | Self::Status)
    }

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

    /// All replicas share their certificates, and a bank or a token that is down is down for all: a pod that is not
    /// ready for that reason would help nobody. Who wants to know it of one upstream asks for that one:
    /// `?upstream=NAME`.
    fn ready(&self, query: Option<&str>) -> Response<Full<Bytes>> {
        let standing = self.standing.load();
        if !self.serving.load(Ordering::Acquire) {
            return unready("not ready: it has not begun to serve, or is on its way out\n");
        }
        if !standing.usable {
            return unready("not ready: no identity can be used; /status says why\n");
        }
        let Some(query) = query else { return text(StatusCode::OK, "ready\n") };
        let asked = query.split('&').find_map(|parameter| parameter.strip_prefix("upstream="));
        match asked.map(|name| (name, standing.upstreams.get(name))) {
            Some((_, Some(true))) => text(StatusCode::OK, "ready\n"),
            Some((_, Some(false))) => unready(
                "not ready: the upstream cannot be used: its own findings in /status, or those of its identity, say why\n",
            ),
            Some((asked, None)) => {
                let asked: String =
                    asked.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).take(64).collect();
                let known: Vec<_> = standing.upstreams.keys().map(String::as_str).collect();
                let none = if asked.is_empty() { "no upstream is named" } else { &format!("no upstream {asked}") };
                text(StatusCode::NOT_FOUND, format!("{none}; there are {}\n", known.join(" ")))
            }
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
    // Without an address nobody can have come here.
    let is_local = listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
    let desk = Arc::new(Desk { pages, is_local, state });
    let graceful = GracefulShutdown::new();
    let mut seats = Seats::default();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = poll_fn(|cx| seats.poll_accept(&listener, cx)) => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let work = converse(stream, Arc::clone(&desk), graceful.watcher());
                let work = tokio::spawn(tokio::time::timeout(LIFETIME, work));
                seats.take(work.abort_handle()).await;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    // A scraper in the middle of its scrape may finish it.
    let _ = tokio::time::timeout(Duration::from_secs(1), graceful.shutdown()).await;
}

/// Probes and scrapers are few. A connection is closed after an hour at the latest: they dial again.
const CONNECTIONS: usize = 64;
const LIFETIME: Duration = Duration::from_secs(3600);
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// So many may give way in one turn of the event loop: in a crowd all would, and nobody be heard.
const IN_A_TURN: usize = CONNECTIONS / 4;

/// The connections of one listener, oldest first.
#[derive(Default)]
struct Seats {
    taken: VecDeque<AbortHandle>,
    /// How many may still give way before the event loop has its turn.
    in_this_turn: usize,
}

impl Seats {
    /// Whoever waits has no turn left to spend: those who came before have not been heard since.
    fn poll_accept(
        &mut self,
        listener: &TcpListener,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let accepted = listener.poll_accept(cx);
        if accepted.is_pending() {
            self.in_this_turn = 0;
        }
        accepted
    }

    /// The oldest gives way: a page is there at once, and whoever keeps its seat for nothing must not keep a probe from
    /// its own.
    async fn take(&mut self, connection: AbortHandle) {
        if !self.has_room() && self.in_this_turn == 0 {
            // One turn to learn who has sent something, and one for them.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            self.in_this_turn = IN_A_TURN;
        }
        if !self.has_room()
            && let Some(oldest) = self.taken.pop_front()
        {
            oldest.abort();
            self.in_this_turn -= 1;
        }
        self.taken.push_back(connection);
    }

    fn has_room(&mut self) -> bool {
        self.taken.retain(|seat| !seat.is_finished());
        self.taken.len() < CONNECTIONS
    }
}

/// What one listener answers with.
struct Desk {
    pages: Vec<Page>,
    /// Whether it listens on loopback alone.
    is_local: bool,
    state: Arc<State>,
}

async fn converse(stream: TcpStream, desk: Arc<Desk>, watcher: Watcher) {
    let service = service_fn(|request| {
        let response = desk.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // A probe that hangs up early has what it wanted.
    let _ = watcher.watch(connection).await;
}

impl Desk {
    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let asked = request.uri().path();
        match self.pages.iter().copied().find(|page| page.path() == asked) {
            None => {
                let served: Vec<_> = self.pages.iter().map(|page| page.path()).collect();
                text(StatusCode::NOT_FOUND, format!("no such page here; there are {}\n", served.join(" ")))
            }
            Some(_) if !matches!(*request.method(), Method::GET | Method::HEAD) => {
                let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
                answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
                answer
            }
            // A web page whose own name was made to resolve to this machine has the browsers' leave to read what it
            // gets, and cannot change the name that they send.
            Some(page) if self.is_local && page.tells() && !names_this_machine(request) => {
                text(StatusCode::MISDIRECTED_REQUEST, STRANGE_HOST)
            }
            Some(page) => self.state.page(page, request.uri().query()),
        }
    }
}

const STRANGE_HOST: &str =
    "the Host is a name, and web pages can give this machine names: ask by its IP address or as localhost\n";

/// Whether a request is for `localhost` or an IP address, whatever the port. No browser leaves the Host out.
fn names_this_machine<B>(request: &Request<B>) -> bool {
    request.headers().get_all(HOST).iter().all(|host| {
        let authority = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
        authority.is_some_and(|authority| is_localhost_or_address(authority.host()))
    })
}

fn is_localhost_or_address(host: &str) -> bool {
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<Ipv4Addr>().is_ok()
        || bracketed.is_some_and(|host| host.parse::<Ipv6Addr>().is_ok())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(is_local: bool, path: &str, hosts: &[&str]) -> u16 {
        let pages = vec![Page::Livez, Page::Readyz, Page::Metrics, Page::Status];
        let desk = Desk { pages, is_local, state: State::new(Registry::new()) };
        let request = hosts.iter().fold(Request::get(path), |request, host| request.header(HOST, *host));
        desk.answer(&request.body(()).expect("a request")).status().as_u16()
    }

    #[test]
    fn a_web_page_under_a_name_of_its_own_reads_neither_status_nor_metrics() {
        for page in ["/status", "/metrics"] {
            for host in ["rebound.example", "rebound.example:9090", "localhost.example", "127.0.0.1.example:9090"] {
                assert_eq!(asked(true, page, &[host]), 421, "{page} {host}");
            }
            assert_eq!(asked(true, page, &["localhost", "rebound.example"]), 421, "{page}");
            assert_eq!(asked(true, page, &[]), 200, "no browser");
            for host in ["127.0.0.1:9090", "localhost", "LOCALHOST:1", "[::1]:9090", "[::1]", "10.0.0.1"] {
                assert_eq!(asked(true, page, &[host]), 200, "{page} {host}");
            }
            // Who opens a listener to others says by which names it is asked nowhere.
            assert_eq!(asked(false, page, &["metrics.example"]), 200);
        }
        assert_eq!(asked(true, "/livez", &["rebound.example"]), 200);
        assert_eq!(asked(true, "/readyz", &["rebound.example"]), 503, "not ready, and says so");
    }
}
