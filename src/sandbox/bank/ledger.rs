//! What the bank may have acted on: the requests that it has read whole, and the faults that it has injected.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::faults::Mishap;

/// A record of a bank's life so far.
#[derive(Default)]
pub(super) struct Ledger(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    received: HashMap<Arc<str>, u32>,
    /// The ids, oldest first.
    order: VecDeque<Arc<str>>,
    injected: BTreeMap<Mishap, u64>,
}

impl Ledger {
    /// A request of this id was read whole, once more.
    pub(super) fn receive(&self, id: &str) {
        let mut entries = self.lock();
        if let Some(times) = entries.received.get_mut(id) {
            *times += 1;
            return;
        }
        if entries.order.len() >= MOST
            && let Some(oldest) = entries.order.pop_front()
        {
            entries.received.remove(&oldest);
        }
        let id: Arc<str> = id.into();
        entries.order.push_back(Arc::clone(&id));
        entries.received.insert(id, 1);
    }

    /// This fault was injected, once more.
    pub(super) fn inject(&self, mishap: Mishap) {
        *self.lock().injected.entry(mishap).or_default() += 1;
    }

    pub(super) fn received(&self, id: &str) -> u32 {
        self.lock().received.get(id).copied().unwrap_or_default()
    }

    pub(super) fn injected(&self) -> BTreeMap<Mishap, u64> {
        self.lock().injected.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Counts are whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ids that are remembered, some 40 MB of them: enough for a soak test of 200,000 requests.
pub(super) const MOST: usize = 1 << 18;
