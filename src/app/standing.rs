//! The metrics of who we are: certificates, seals, reloads.

use std::collections::BTreeMap;
use std::time::SystemTime;

use prometheus::{GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::generation::Generation;

/// The families, by identity and by upstream.
pub(super) struct Standing {
    expiry: GaugeVec,
    identity_usable: IntGaugeVec,
    upstream_usable: IntGaugeVec,
    staged: IntGaugeVec,
    backend: IntGaugeVec,
    generation: IntGauge,
    refused: IntGauge,
    pub(super) reloads: IntCounterVec,
}

impl Standing {
    /// Registers the families. Fails only if one of the names is taken.
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let family = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let expiry = GaugeVec::new(
            Opts::new("sealproxy_certificate_expiry_timestamp_seconds", "When our certificates end, in Unix time."),
            &["identity", "use"],
        )?;
        registry.register(Box::new(expiry.clone()))?;
        let reloads = IntCounterVec::new(
            Opts::new("sealproxy_reloads_total", "Changes of files or configuration, by what became of them."),
            &["result"],
        )?;
        registry.register(Box::new(reloads.clone()))?;
        ["applied", "refused", "restored", "staged", "warned", "unchanged"]
            .iter()
            .for_each(|result| drop(reloads.with_label_values(&[result])));
        Ok(Self {
            expiry,
            reloads,
            identity_usable: gauges(
                "sealproxy_identity_usable",
                "Whether an identity can be used; the routes of one that cannot answer 503.",
                &["identity"],
            )?,
            upstream_usable: gauges(
                "sealproxy_upstream_usable",
                "Whether an upstream's identity, trust and seal can be used; the routes of one that cannot answer 503.",
                &["upstream"],
            )?,
            staged: gauges(
                "sealproxy_staged_seals",
                "Seal certificates that lie ready and that the upstream does not know.",
                &["upstream"],
            )?,
            backend: gauges(
                "sealproxy_seal_backend_info",
                "Always 1; the library that seals for an upstream, and why it makes one seal at a time if it does.",
                &["upstream", "backend", "alone"],
            )?,
            generation: gauge("sealproxy_generation", "Counts the certificates and configurations put in place.")?,
            refused: gauge(
                "sealproxy_reload_refused",
                "1 while the files or the configuration hold something that was refused, and older is in use.",
            )?,
        })
    }

    /// Shows a generation as of `now`.
    pub(super) fn show(&self, generation: &Generation, number: u64, is_refused: bool, now: SystemTime) {
        // Identities and upstreams may have gone.
        self.expiry.reset();
        self.identity_usable.reset();
        self.upstream_usable.reset();
        self.staged.reset();
        self.backend.reset();
        for identity in generation.holdings.keys() {
            self.identity_usable.with_label_values(&[identity]).set(generation.is_usable(identity, now).into());
            // Of several with one name the end that comes first.
            for (part, end) in ends(generation, identity) {
                let end = end.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                self.expiry.with_label_values(&[identity.as_str(), part]).set(end.as_secs_f64());
            }
        }
        for (upstream, line) in &generation.lines {
            if let Some((backend, alone)) = line.backend() {
                self.backend.with_label_values(&[upstream, backend, alone.unwrap_or_default()]).set(1);
            }
            self.upstream_usable.with_label_values(&[upstream]).set(line.is_usable.into());
            self.staged.with_label_values(&[upstream]).set(i64::try_from(line.staged.len()).unwrap_or(i64::MAX));
        }
        self.generation.set(i64::try_from(number).unwrap_or(i64::MAX));
        self.refused.set(is_refused.into());
    }
}

fn ends<'a>(generation: &'a Generation, identity: &str) -> BTreeMap<&'a str, SystemTime> {
    let mut ends = BTreeMap::new();
    for (part, certificate, _) in generation.in_use(identity) {
        let end = ends.entry(part).or_insert(certificate.not_after());
        *end = certificate.not_after().min(*end);
    }
    ends
}
