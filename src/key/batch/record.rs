//! What was signed with others and what by itself, and whether that went well. Must not know how.

use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, Opts};

use super::crypto_mb::LANES;

/// Its counters.
pub(super) struct Record {
    is_faulty: AtomicBool,
    family: IntCounterVec,
    by_size: [IntCounter; LANES],
    faults: IntCounter,
}

impl Record {
    pub(super) fn new() -> Self {
        let opts = Opts::new("sealproxy_seal_batches_total", "Calls of the seal key, by how many seals each made.");
        let family = IntCounterVec::new(opts, &["seals"]).expect("a legal name");
        let by_size = std::array::from_fn(|index| family.with_label_values(&[&(index + 1).to_string()]));
        let help = "Calls that made a seal which did not verify: from the first on seals are made one by one.";
        let faults = IntCounter::new("sealproxy_seal_batch_faults_total", help).expect("a legal name");
        Self { is_faulty: AtomicBool::new(false), family, by_size, faults }
    }

    pub(super) fn of_size(&self, size: usize) -> &IntCounter {
        &self.by_size[size.clamp(1, LANES) - 1]
    }

    /// From now on aws-lc signs, with every key.
    pub(super) fn fault(&self) {
        self.is_faulty.store(true, Ordering::Relaxed);
        self.faults.inc();
    }

    /// Whether there was one.
    pub(super) fn is_faulty(&self) -> bool {
        self.is_faulty.load(Ordering::Relaxed)
    }

    /// For a registry.
    pub(super) fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![Box::new(self.family.clone()), Box::new(self.faults.clone())]
    }

    /// How many there were.
    #[cfg(test)]
    pub(super) fn faults(&self) -> u64 {
        self.faults.get()
    }
}
