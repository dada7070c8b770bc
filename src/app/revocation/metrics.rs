//! The metrics of revocation. A certificate without a certain verdict has no value of the first two, rather than a
//! wrong one.

use std::time::SystemTime;

use prometheus::core::Collector;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::{Name, Record, Records};

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

    /// Takes away what nobody has any more.
    pub(super) fn forget(&self, name: &Name) {
        // One that never came to a verdict has nothing to take away.
        let _ = self.revoked.remove_label_values(&labels(name));
        let _ = self.checked.remove_label_values(&labels(name));
        let _ = self.failures.remove_label_values(&labels(name));
    }

    pub(super) fn count(&self, name: &Name, failed: bool) {
        if failed {
            self.failures.with_label_values(&labels(name)).inc();
        }
    }

    /// Shows what is known of the certificates of a name: the worst of each, and nothing before all have a verdict.
    pub(super) fn show(&self, name: &Name, records: &Records) {
        // The counter is there from the start.
        self.failures.with_label_values(&labels(name));
        let checked: Option<Vec<SystemTime>> = records.named(name).map(|record| record.checked).collect();
        let Some(first) = checked.and_then(|checked| checked.into_iter().min()) else {
            let _ = self.revoked.remove_label_values(&labels(name));
            let _ = self.checked.remove_label_values(&labels(name));
            return;
        };
        let seconds = first.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.checked.with_label_values(&labels(name)).set(seconds);
        self.revoked.with_label_values(&labels(name)).set(records.named(name).any(Record::is_revoked).into());
    }
}

const LABELS: [&str; 2] = ["identity", "use"];

fn labels(name: &Name) -> [&str; 2] {
    [&name.identity, &name.part]
}
