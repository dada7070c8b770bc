//! What is counted and timed of the exchanges. Labels are bounded: routes of the configuration, classes, names
//! from lists; never anything that a caller chose.

use std::sync::{Arc, OnceLock};

use http::{HeaderName, StatusCode};
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::series::Holders;
use crate::upstream::Outcome;

/// The families of the proxy. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
    seal: HistogramVec,
    dropped_headers: IntCounterVec,
    malformed: IntCounterVec,
    /// Requests under way.
    pub in_flight: IntGauge,
    /// Open connections of local clients.
    pub connections: IntGauge,
    /// Connections of local clients for which there was no place.
    pub refused_connections: IntCounter,
    /// Connections of local clients that ended to make room for others.
    pub evicted_connections: IntCounter,
    /// Connections of local clients that the system did not hand over, most often for want of a file descriptor.
    pub failed_accepts: IntCounter,
    routes: Holders<RouteMetrics>,
}

impl Metrics {
    /// Registers the families. Fails only if one of the names is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let count = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let family = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), &["route"])?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        Ok(Self {
            requests: counter(
                "sealproxy_requests_total",
                "Exchanges, by route, status class and what is known of the request.",
                &["route", "status", "outcome"],
            )?,
            seconds: histogram("sealproxy_request_seconds", "Exchanges, from head to last byte.", &EXCHANGE_SECONDS)?,
            seal: histogram("sealproxy_seal_seconds", "Seals, the wait for the key included.", &SEAL_SECONDS)?,
            dropped_headers: counter(
                "sealproxy_dropped_headers_total",
                "Request headers that did not reach the bank.",
                &["header"],
            )?,
            malformed: counter(
                "sealproxy_malformed_total",
                "Connections that ended over something that is not HTTP.",
                &["kind"],
            )?,
            in_flight: gauge("sealproxy_in_flight", "Requests under way.")?,
            connections: gauge("sealproxy_client_connections", "Open connections of local clients.")?,
            refused_connections: count(
                "sealproxy_client_connections_refused_total",
                "Connections of local clients for which there was no place.",
            )?,
            evicted_connections: count(
                "sealproxy_client_connections_evicted_total",
                "Connections of local clients that ended to make room for others.",
            )?,
            failed_accepts: count(
                "sealproxy_accept_failures_total",
                "Times that the system handed no connection over, most often for want of file descriptors.",
            )?,
            routes: Holders::default(),
        })
    }

    /// The handles of one route, whose series go with the last who has them. `label` is its path in the configuration.
    pub fn of_route(&self, label: &str) -> Arc<RouteMetrics> {
        self.routes.of(label, || RouteMetrics {
            requests: Default::default(),
            seconds: self.seconds.with_label_values(&[label]),
            seal: self.seal.with_label_values(&[label]),
            label: label.to_owned(),
            metrics: self.clone(),
        })
    }

    fn forget(&self, label: &str) {
        // It need not have been asked for.
        let _ = self.seconds.remove_label_values(&[label]);
        let _ = self.seal.remove_label_values(&[label]);
        for (class, outcome) in CLASSES.iter().flat_map(|class| OUTCOMES.map(|outcome| (class, outcome))) {
            let _ = self.requests.remove_label_values(&[label, class, outcome.as_str()]);
        }
    }

    /// Counts a header that stays here, under its name if it is one that is often sent.
    pub(super) fn dropped_header(&self, name: &HeaderName) {
        let label = OFTEN_DROPPED.iter().find(|often| **often == name.as_str()).copied().unwrap_or("other");
        self.dropped_headers.with_label_values(&[label]).inc();
    }

    /// Counts a connection that spoke something else than HTTP.
    pub(super) fn malformed(&self, kind: &'static str) {
        self.malformed.with_label_values(&[kind]).inc();
    }
}

/// The handles of one route, or of the requests that found none.
pub struct RouteMetrics {
    requests: [[OnceLock<IntCounter>; OUTCOMES.len()]; CLASSES.len()],
    seconds: Histogram,
    /// Seconds that seals took.
    pub(super) seal: Histogram,
    label: String,
    metrics: Metrics,
}

impl RouteMetrics {
    /// Counts one exchange.
    pub(super) fn count(&self, status: StatusCode, outcome: Outcome, seconds: f64) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        let outcome = OUTCOMES.iter().position(|known| *known == outcome).expect("every outcome is listed");
        let counter = self.requests[class][outcome].get_or_init(|| {
            let labels = [self.label.as_str(), CLASSES[class], OUTCOMES[outcome].as_str()];
            self.metrics.requests.with_label_values(&labels)
        });
        counter.inc();
        self.seconds.observe(seconds);
    }
}

impl Drop for RouteMetrics {
    fn drop(&mut self) {
        self.metrics.routes.end(&self.label, || self.metrics.forget(&self.label));
    }
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const OUTCOMES: [Outcome; 3] = [Outcome::NotSent, Outcome::Unknown, Outcome::Answered];

/// From ring's P-256 to a token that signs ten times a second.
const SEAL_SECONDS: [f64; 12] =
    [0.00005, 0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];
const EXCHANGE_SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// What meshes, browsers and HTTP libraries add.
const OFTEN_DROPPED: [&str; 25] = [
    "baggage",
    "connection",
    "cookie",
    "date",
    "digest",
    "expect",
    "forwarded",
    "http2-settings",
    "idempotency-key",
    "keep-alive",
    "origin",
    "pragma",
    "proxy-authorization",
    "proxy-connection",
    "referer",
    "signature",
    "te",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-real-ip",
];
