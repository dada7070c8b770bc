//! What is counted and timed of the upstreams, and the handles of one of them.

use std::sync::Arc;
use std::time::SystemTime;

use prometheus::core::Collector as _;
use prometheus::proto::Metric as Series;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::series::Holders;

/// The families of all upstreams, by upstream name.
#[derive(Clone)]
pub struct Families {
    connect: HistogramVec,
    handshake: HistogramVec,
    response: HistogramVec,
    connections: IntGaugeVec,
    in_flight: IntGaugeVec,
    clock_skew: GaugeVec,
    crl_expiry: GaugeVec,
    without_qwac: IntCounterVec,
    failures: IntCounterVec,
    upstreams: Holders<Metrics>,
}

/// The handles of one upstream.
pub(super) struct Metrics {
    pub(super) connect: Histogram,
    pub(super) handshake: Histogram,
    pub(super) response: Histogram,
    pub(super) connections: IntGauge,
    pub(super) in_flight: IntGauge,
    /// Full handshakes in which the bank asked for no certificate.
    pub(super) without_qwac: IntCounter,
    families: Families,
    name: String,
}

impl Families {
    /// Registers the families. Fails only if one of the names is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let histogram = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            let family = HistogramVec::new(options, &["upstream"])?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let gauge = |name: &str, help: &str| {
            let family = IntGaugeVec::new(Opts::new(name, help), &["upstream"])?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        // Without a value until there is something to tell.
        let late_gauge = |name: &str, help: &str| {
            let family = GaugeVec::new(Opts::new(name, help), &["upstream"])?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        Ok(Self {
            connect: histogram(
                "sealproxy_upstream_connect_seconds",
                "Name resolution and TCP connect, the tunnel of `via` included.",
            )?,
            handshake: histogram("sealproxy_upstream_handshake_seconds", "TLS handshake with the QWAC.")?,
            response: histogram("sealproxy_upstream_response_seconds", "From the request to the response head.")?,
            connections: gauge("sealproxy_upstream_connections", "Open connections to the upstream.")?,
            in_flight: gauge("sealproxy_upstream_in_flight", "Requests under way to the upstream.")?,
            clock_skew: late_gauge(
                "sealproxy_upstream_clock_skew_seconds",
                "By how many seconds the upstream's clock is ahead of ours, by the Date of its answers; negative: behind.",
            )?,
            crl_expiry: late_gauge(
                "sealproxy_upstream_crl_expiry_timestamp_seconds",
                "When the first of the upstream's revocation lists is too old and nothing passes any more, in Unix time.",
            )?,
            without_qwac: counter(
                "sealproxy_upstream_handshakes_without_qwac_total",
                "Full TLS handshakes in which the upstream did not ask for our certificate.",
                &["upstream"],
            )?,
            failures: counter(
                "sealproxy_upstream_failures_total",
                "Failed exchanges and connections, by upstream and cause.",
                &["upstream", "cause"],
            )?,
            upstreams: Holders::default(),
        })
    }

    /// The handles of one upstream, whose series go with the last who has them.
    pub(super) fn of(&self, name: &str) -> Arc<Metrics> {
        self.upstreams.of(name, || Metrics {
            connect: self.connect.with_label_values(&[name]),
            handshake: self.handshake.with_label_values(&[name]),
            response: self.response.with_label_values(&[name]),
            connections: self.connections.with_label_values(&[name]),
            in_flight: self.in_flight.with_label_values(&[name]),
            without_qwac: self.without_qwac.with_label_values(&[name]),
            families: self.clone(),
            name: name.to_owned(),
        })
    }

    fn forget(&self, name: &str) {
        // None of them need have been there.
        for family in [&self.connect, &self.handshake, &self.response] {
            let _ = family.remove_label_values(&[name]);
        }
        for family in [&self.connections, &self.in_flight] {
            let _ = family.remove_label_values(&[name]);
        }
        for family in [&self.clock_skew, &self.crl_expiry] {
            let _ = family.remove_label_values(&[name]);
        }
        let _ = self.without_qwac.remove_label_values(&[name]);
        for cause in causes(&self.failures, name) {
            let _ = self.failures.remove_label_values(&[name, &cause]);
        }
    }
}

impl Metrics {
    /// The upstream's name in the configuration.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// When the upstream's revocation lists are too old; `None` if it has none any more.
    pub(super) fn lists_expire(&self, moment: Option<SystemTime>) {
        let labels = [self.name.as_str()];
        let Some(moment) = moment else {
            // It need not have been there.
            let _ = self.families.crl_expiry.remove_label_values(&labels);
            return;
        };
        let seconds = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.families.crl_expiry.with_label_values(&labels).set(seconds);
    }

    /// By how many seconds the upstream's clock is ahead of ours.
    pub(super) fn clock_is_ahead(&self, seconds: f64) {
        self.families.clock_skew.with_label_values(&[&self.name]).set(seconds);
    }

    pub(super) fn fail(&self, cause: &str) {
        self.families.failures.with_label_values(&[self.name.as_str(), cause]).inc();
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.families.upstreams.end(&self.name, || self.families.forget(&self.name));
    }
}

/// The causes for which an upstream has a series.
fn causes(failures: &IntCounterVec, name: &str) -> Vec<String> {
    let families = failures.collect();
    let series = families.iter().flat_map(prometheus::proto::MetricFamily::get_metric);
    let label = |metric: &Series, key: &str| {
        let labels = metric.get_label().iter();
        labels.clone().find(|label| label.name() == key).map(|label| label.value().to_owned())
    };
    let own = series.filter(|metric| label(metric, "upstream").as_deref() == Some(name));
    own.filter_map(|metric| label(metric, "cause")).collect()
}

/// From a connection in the same data centre to a bank's slowest answer.
const SECONDS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
