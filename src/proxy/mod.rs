//! Turns accepted connections into sealed requests. Must not know YAML, files, keys or certificates.
//!
//! - A connection: `listener`: accepted and seated · `connection`: its HTTP · `clock`: what it is doing, and until when
//!   it may
//! - A request: `forward`: the page to read · `route`, `target`: where it goes · `headers`, `body`: what goes · `api`:
//!   what the bank takes
//! - An answer: `relay`: piece by piece · `whole`: for HTTP/1.0 · `problem`: ours
//! - Its record: `exchange`: one line and its metrics · `redact`: in which words · `metrics`
//! - Its end: `stop`: of the process · `unwanted`: of its caller

use std::future::poll_fn;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

pub mod api;
mod body;
mod clock;
mod connection;
#[cfg(test)]
mod copies;
mod exchange;
mod forward;
pub mod headers;
pub mod listener;
mod metrics;
mod problem;
mod redact;
mod relay;
pub mod route;
mod stop;
pub mod target;
mod unwanted;
mod whole;

use crate::log::{Importance, Log, timestamp};
use crate::upstream::ReactorId;
use body::Budget;
use clock::Busy;
use exchange::Recorder;
use forward::Arrived;
pub use metrics::{Metrics, RouteMetrics};
use problem::Problem;
use relay::{Patience, RelayBody};
use route::{Routes, Transport};
use stop::Stop;

/// What the proxy takes at most. Each holds for the whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one request's body.
    pub body: u64,
    /// Bytes of all buffered request bodies together.
    pub buffered: u64,
    /// Open connections of local clients.
    pub connections: usize,
    /// Requests under way.
    pub in_flight: usize,
    /// Bytes of one request's head.
    pub header_bytes: usize,
    /// Header fields of one request.
    pub headers: usize,
}

/// A size in the largest unit that divides it, as configurations write it.
pub(crate) fn show_size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(factor, _)| bytes >= *factor && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| format!("{bytes}B"), |(factor, name)| format!("{}{name}", bytes / factor))
}

/// How long the proxy waits for a local client, for a key, and for one exchange as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first byte of a request, or from the accepted connection, to the end of its head.
    pub header: Duration,
    /// Between two frames of a request's body, and for a caller to take one of its answer.
    pub body: Duration,
    /// For the whole of a request's body.
    pub body_total: Duration,
    /// Between two requests on one connection.
    pub client_idle: Duration,
    /// For a seal, the wait for its key included.
    pub seal: Duration,
    /// For the whole exchange.
    pub exchange: Duration,
}

/// What all reactors share for the life of the process.
pub struct Shared {
    routes: ArcSwap<Routes>,
    limits: Limits,
    timeouts: Timeouts,
    in_flight: Arc<Semaphore>,
    budget: Arc<Budget>,
    /// The part of it that answers may take whose callers are slow.
    ahead: Arc<Budget>,
    metrics: Metrics,
    recorder: Arc<Recorder>,
    stop: Arc<Stop>,
}

impl Shared {
    /// Begins with a first generation of routes.
    pub fn new(routes: Routes, limits: Limits, timeouts: Timeouts, metrics: Metrics, log: Log) -> Arc<Self> {
        let unrouted = metrics.of_route("none");
        let (budget, stop) = (Budget::new(limits.buffered, limits.body), Arc::new(Stop::new()));
        Arc::new(Self {
            routes: ArcSwap::from_pointee(routes),
            in_flight: Arc::new(Semaphore::new(limits.in_flight)),
            ahead: Budget::part(&budget, limits.buffered / 4),
            budget,
            recorder: Arc::new(Recorder {
                log,
                unrouted,
                in_flight: metrics.in_flight.clone(),
                stop: Arc::clone(&stop),
            }),
            stop,
            limits,
            timeouts,
            metrics,
        })
    }

    /// Puts the next generation in place, whole: a request sees the old one or the new one.
    pub fn replace(&self, routes: Routes) {
        self.routes.store(Arc::new(routes));
    }

    /// Cuts what is under way: each caller is told at once what is known of its request.
    pub fn stop(&self) {
        self.stop.come();
    }

    fn admit(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let permit = Arc::clone(&self.in_flight).try_acquire_owned();
        permit.map_err(|_| Problem::Overloaded(self.limits.in_flight))
    }

    fn body_rules(&self, head: &Parts) -> body::Rules<'_> {
        let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD);
        body::Rules {
            head: (head.uri.path().len() + fields.sum::<usize>()) as u64,
            limit: self.limits.body,
            pause: self.timeouts.body,
            total: self.timeouts.body_total,
            budget: &self.budget,
            is_stream: head.version == Version::HTTP_2,
        }
    }

    fn patience(&self, deadline: Instant) -> Patience {
        Patience { deadline, stalled: self.timeouts.body, ahead: self.limits.body, budget: Arc::clone(&self.ahead) }
    }
}

/// What a header field costs beside its bytes.
const FIELD: usize = 64;

/// Serves the requests of one reactor. Cheap to clone.
#[derive(Clone)]
pub struct Proxy {
    shared: Arc<Shared>,
    reactor: ReactorId,
}

impl Proxy {
    /// The proxy of one reactor.
    pub fn new(shared: Arc<Shared>, reactor: ReactorId) -> Self {
        Self { shared, reactor }
    }

    /// Answers one request. Infallible: an error would make hyper drop the connection without a word. The exchange
    /// begins with the call, whether or not the answer is ever waited for.
    fn call(
        &self,
        request: Request<Incoming>,
        transport: Transport,
        busy: Busy,
    ) -> impl Future<Output = Response<RelayBody>> + Send + use<> {
        let arrived = Arrived::new(self, request, transport);
        let (shared, id, deadline) = (Arc::clone(&self.shared), arrived.id().clone(), arrived.deadline());
        let is_head = arrived.is_head();
        async move {
            let mut response = {
                let mut work = pin!(arrived.forward(&busy));
                poll_fn(|cx| {
                    let polled = std::panic::catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx)));
                    polled.unwrap_or_else(|_| Poll::Ready(forward::without_exchange(&Problem::Internal, &id)))
                })
                .await
            };
            // hyper leaves it out on HTTP/1.1 alone (RFC 9110 section 9.3.2).
            if is_head && let Some(length) = response.body_mut().without_content() {
                response.headers_mut().insert(CONTENT_LENGTH, length.into());
            }
            response.body_mut().hold(busy, || shared.patience(deadline));
            response
        }
    }

    fn limits(&self) -> Limits {
        self.shared.limits
    }

    fn timeouts(&self) -> Timeouts {
        self.shared.timeouts
    }

    fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Logs why nobody gets in.
    fn accept_failed(&self, error: &io::Error) {
        let detail = format!(
            "no connection can be accepted: {error}; where files are short, raise the limit of this process \
             (ulimit -n, LimitNOFILE) or lower `limits.connections`"
        );
        let line = AcceptFailed { time: timestamp(SystemTime::now()), event: "accept-failed", detail };
        self.shared.recorder.log.entry(&line, Importance::Usual);
    }

    /// Logs and counts a connection that ended over something that never became a request.
    fn malformed(&self, kind: &'static str, detail: &str) {
        self.shared.metrics.malformed(kind);
        let time = timestamp(SystemTime::now());
        self.shared.recorder.log.entry(&Malformed { time, event: "malformed", kind, detail }, Importance::Usual);
    }
}

/// The log line of connections that the system does not hand over.
#[derive(Serialize)]
struct AcceptFailed {
    time: String,
    event: &'static str,
    detail: String,
}

/// The log line of a connection whose bytes were no request.
#[derive(Serialize)]
struct Malformed<'a> {
    time: String,
    event: &'static str,
    kind: &'static str,
    detail: &'a str,
}
