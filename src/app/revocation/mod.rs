//! Looks in the background whether certificates of ours have been revoked, says so in log and metrics, and keeps what
//! is known for others to read. Holds up no request: what follows from a verdict is for its readers to decide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus::Registry;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

mod ask;
mod check;
mod metrics;
mod record;
mod sources;

use check::{Round, check};
use metrics::Metrics;
pub use record::{Name, Record, Records};
pub(super) use sources::judge;

use crate::config;
use crate::identity::certificate::Fingerprint;
use crate::identity::revocation::Verdict;
use crate::log::{Importance, Log, timestamp};

/// One certificate that is in use, and how it is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Whose it is.
    pub name: Name,
    /// The certificate, and those behind it in its file: its issuer among them.
    pub chain: Vec<CertificateDer<'static>>,
    /// Where to look, and how often.
    pub settings: config::Revocation,
}

/// One certificate under one name. Two banks may know different certificates of ours by the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// What it is to whom.
    pub name: Name,
    /// Which it is.
    pub certificate: Fingerprint,
}

impl Watched {
    fn id(&self) -> Id {
        let leaf = self.chain.first().map(CertificateDer::as_ref).unwrap_or_default();
        Id { name: self.name.clone(), certificate: Fingerprint::of(leaf) }
    }
}

/// Makes what lives as long as the process. Watches nothing yet.
pub fn start(registry: &Registry, log: Log) -> Result<Revocation, prometheus::Error> {
    let (records, _) = watch::channel(Records::default());
    let (metrics, turns) = (Metrics::register(registry)?, Semaphore::new(AT_A_TIME));
    let ledger = Arc::new(Ledger { metrics, log, records, turns });
    Ok(Revocation { ledger, watches: Mutex::default() })
}

/// The certificates under watch. Dropping it ends all watches.
pub struct Revocation {
    ledger: Arc<Ledger>,
    watches: Mutex<BTreeMap<Id, Watch>>,
}

impl Revocation {
    /// Watches these certificates from now on, and no others. New ones are checked at once; one that stays the same
    /// goes on in its rhythm; one whose settings alone have changed keeps its verdict. Call it within the runtime that
    /// is to do the work, which must not be a reactor.
    pub fn update(&self, wanted: Vec<Watched>) {
        let wanted: BTreeMap<_, _> = wanted.into_iter().map(|watched| (watched.id(), watched)).collect();
        // A map of watches is whole after any panic.
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|id, watch| wanted.get(id) == Some(&watch.watched));
        self.ledger.keep(&wanted.keys().cloned().collect());
        for (id, watched) in wanted {
            watches.entry(id).or_insert_with(|| Watch::start(Arc::clone(&self.ledger), watched));
        }
    }

    /// Looks into the lists of certificates that are not under watch yet: whether one of them has been revoked.
    pub async fn look_ahead(&self, wanted: Vec<Watched>) -> bool {
        let mut found = false;
        for watched in wanted.iter().filter(|watched| !watched.settings.crl.is_empty()) {
            if check::lists(watched).await.verdict.is_some_and(|verdict| verdict.is_revoked()) {
                self.ledger.records.send_modify(|records| records.revoke(&watched.id()));
                found = true;
            }
        }
        found
    }

    /// Checks everything at once: there are new lists.
    pub fn look_again(&self) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        for watch in watches.values_mut() {
            *watch = Watch::start(Arc::clone(&self.ledger), watch.watched.clone());
        }
    }

    /// The certificates of an identity that are revoked.
    pub fn revoked(&self, identity: &str) -> BTreeSet<Fingerprint> {
        self.ledger.records.borrow().revoked(identity)
    }

    /// What is known of every certificate under watch; the receiver also tells of changes.
    pub fn verdicts(&self) -> watch::Receiver<Records> {
        self.ledger.records.subscribe()
    }
}

/// The task that checks one certificate again and again, ended with this.
struct Watch {
    watched: Watched,
    task: AbortHandle,
}

impl Watch {
    fn start(ledger: Arc<Ledger>, watched: Watched) -> Self {
        let task = tokio::spawn(go_round(ledger, watched.clone())).abort_handle();
        Self { watched, task }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn go_round(ledger: Arc<Ledger>, watched: Watched) {
    let mut failed = 0_u32;
    loop {
        let round = {
            let _turn = ledger.turns.acquire().await;
            // A responder may be silent for long, and what a list says is known at once.
            if let Some(revoked) = revoked_by_list(&watched).await {
                ledger.enter(&watched, revoked, SystemTime::now());
            }
            check(&watched).await
        };
        failed = if round.failures.is_empty() { 0 } else { failed.saturating_add(1) };
        ledger.enter(&watched, round, SystemTime::now());
        tokio::time::sleep(pause(watched.settings.every, failed, luck())).await;
    }
}

async fn revoked_by_list(watched: &Watched) -> Option<Round> {
    if watched.settings.crl.is_empty() || watched.settings.ocsp == config::Ocsp::Off {
        return None;
    }
    Some(check::lists(watched).await).filter(|round| round.verdict.is_some_and(|verdict| verdict.is_revoked()))
}

/// Until the next check: `every`, or sooner while checks fail, and up to a tenth more, so that the proxies of a company
/// do not ask all at once.
fn pause(every: Duration, failed: u32, luck: u8) -> Duration {
    let base = match failed.checked_sub(1) {
        None => every,
        Some(before) => every.min(RETRY * 2_u32.pow(before.min(MAX_DOUBLINGS))),
    };
    base + base / 10 * u32::from(luck) / 255
}

/// After the first failure; each further one doubles it.
const RETRY: Duration = Duration::from_secs(60);
/// Beyond the longest `every`.
const MAX_DOUBLINGS: u32 = 14;
/// Checks under way: a list of revocations may take tens of megabytes.
const AT_A_TIME: usize = 2;

fn luck() -> u8 {
    let mut byte = [0];
    // Without randomness all checks come a little earlier.
    let _ = SystemRandom::new().fill(&mut byte);
    byte[0]
}

/// Where verdicts are written down.
struct Ledger {
    metrics: Metrics,
    log: Log,
    records: watch::Sender<Records>,
    turns: Semaphore,
}

impl Ledger {
    /// Forgets what is known of certificates that are watched no more, and makes room for new ones.
    fn keep(&self, wanted: &BTreeSet<Id>) {
        self.records.send_modify(|records| {
            for name in records.keep(wanted) {
                self.metrics.forget(&name);
            }
            wanted.iter().for_each(|id| self.metrics.show(&id.name, records));
        });
    }

    /// Whoever is told of a change by the channel finds metrics and log ahead of it.
    fn enter(&self, watched: &Watched, round: Round, now: SystemTime) {
        let failed = !round.failures.is_empty();
        self.records.send_modify(|records| {
            // A task that was just replaced may have come to its end all the same.
            let Some((record, changed)) = records.settle(&watched.id(), round, now) else { return };
            self.metrics.count(&watched.name, failed);
            self.metrics.show(&watched.name, records);
            if changed || failed {
                self.say(&watched.name, &record, now);
            }
        });
    }

    fn say(&self, name: &Name, record: &Record, now: SystemTime) {
        let (since, reason) = match record.verdict {
            Some(Verdict::Revoked { since, reason }) => (Some(timestamp(since)), reason),
            _ => (None, None),
        };
        let line = Line {
            time: timestamp(now),
            event: "revocation",
            identity: &name.identity,
            part: &name.part,
            verdict: record.word(),
            since,
            reason: reason.map(|reason| reason.to_string()),
            failure: record.failure.as_deref(),
        };
        let importance = if record.is_revoked() { Importance::Keep } else { Importance::Usual };
        self.log.entry(&line, importance);
    }
}

/// The log line of a verdict that changed, or of a check that failed.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    event: &'static str,
    identity: &'a str,
    #[serde(rename = "use")]
    part: &'a str,
    /// The last certain one.
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_tried_again_soon_and_then_ever_later() {
        let hour = Duration::from_secs(3600);
        let seconds = [0, 1, 2, 3, 6, 7, u32::MAX].map(|failed| pause(hour, failed, 0).as_secs());
        assert_eq!(seconds, [3600, 60, 120, 240, 1920, 3600, 3600]);
        assert_eq!(pause(hour, 0, 255), hour + hour / 10);
        assert_eq!(pause(RETRY, 9, 0), RETRY);
    }
}
