//! The metrics of revocation. A certificate without a certain verdict has no value of the first two, rather than a wrong
//! one.

use std::time::SystemTime;

use prometheus::core::Collector;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::{Name, Record};

pub(super) struct Metrics {
    revoked: IntGaugeVec,
    checked: GaugeVec,
    failures: IntCounterVec,
}

impl Metrics {
    /// Registers the families. Fails only if one of the names is taken.
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            revoked: IntGaugeVec::new(
                Opts::new("sealproxy_certificate_revoked", "1: our certificate is revoked or on hold; 0: it is good."),
                &LABELS,
            )?,
            checked: GaugeVec::new(
                Opts::new(
                    "sealproxy_revocation_checked_timestamp_seconds",
                    "When a check of revocation last came to a certain verdict, in Unix time.",
                ),
                &LABELS,
            )?,
            failures: IntCounterVec::new(
                Opts::new("sealproxy_revocation_failures_total", "Checks of revocation in which a source failed."),
                &LABELS,
            )?,
        };
        let families: [Box<dyn Collector>; 3] =
            [Box::new(metrics.revoked.clone()), Box::new(metrics.checked.clone()), Box::new(metrics.failures.clone())];
        families.into_iter().try_for_each(|family| registry.register(family))?;
        Ok(metrics)
    }

    /// Shows the counter of a certificate from its start.
    pub(super) fn expect(&self, name: &Name) {
        self.failures.with_label_values(&labels(name));
    }

    /// Takes away what is not true of the next certificate of this name.
    pub(super) fn forget(&self, name: &Name) {
        // One that never came to a verdict has nothing to take away.
        let _ = self.revoked.remove_label_values(&labels(name));
        let _ = self.checked.remove_label_values(&labels(name));
        let _ = self.failures.remove_label_values(&labels(name));
    }

    pub(super) fn count(&self, name: &Name, record: &Record, failed: bool) {
        if failed {
            self.failures.with_label_values(&labels(name)).inc();
        }
        let Some(checked) = record.checked else { return };
        let seconds = checked.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.checked.with_label_values(&labels(name)).set(seconds);
        self.revoked.with_label_values(&labels(name)).set(record.is_revoked().into());
    }
}

const LABELS: [&str; 2] = ["identity", "use"];

fn labels(name: &Name) -> [&str; 2] {
    [&name.identity, &name.part]
}
