//! What is known of each certificate: the last certain verdict, when it was reached, and why the last check was less than
//! that. Pure; the clock is an argument.

use std::collections::BTreeMap;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use super::check::Round;
use super::{Verdict, Watched};

/// Whose certificate: an identity, and what the certificate is to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Its name in the configuration.
    pub identity: String,
    /// `qwac`, `qsealc` or the seal's own name: the label `use` of the metrics.
    pub part: String,
}

/// What is known of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    certificate: CertificateDer<'static>,
    /// The last certain verdict; `None`: there has been none.
    pub verdict: Option<Verdict>,
    /// When a check last came to a certain verdict.
    pub checked: Option<SystemTime>,
    /// What was wrong with the last check, in words. It may have come to a verdict all the same, by another source.
    pub failure: Option<String>,
    /// Whether this certificate is not to be used once it is revoked.
    pub stops: bool,
}

impl Record {
    /// Whether the last certain verdict is that the certificate is revoked.
    pub fn is_revoked(&self) -> bool {
        self.verdict.is_some_and(|verdict| verdict.is_revoked())
    }

    /// The last certain verdict in a word: `good`, `revoked` or `unknown`.
    pub fn word(&self) -> &'static str {
        match self.verdict {
            None => "unknown",
            Some(Verdict::Good { .. }) => "good",
            Some(Verdict::Revoked { .. }) => "revoked",
        }
    }

    /// Takes in what a check found. Whether the verdict is another one now.
    pub(super) fn settle(&mut self, round: Round, now: SystemTime) -> bool {
        let before = self.word();
        let whole = round.failures.is_empty();
        self.failure = (!whole).then(|| round.failures.join("; "));
        // A list that is older than the revocation calls the certificate good. While the source that said otherwise is
        // silent, that is no reason to forget it.
        let doubtful = self.is_revoked() && !whole;
        if let Some(verdict) = round.verdict.filter(|verdict| verdict.is_revoked() || !doubtful) {
            self.verdict = Some(verdict);
            self.checked = Some(now);
        }
        before != self.word()
    }
}

/// What is known of every certificate under watch.
#[derive(Clone, Debug, Default)]
pub struct Records(BTreeMap<Name, Record>);

impl Records {
    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Record)> {
        self.0.iter()
    }

    /// One of them; `None`: it is not under watch.
    pub fn get(&self, name: &Name) -> Option<&Record> {
        self.0.get(name)
    }

    /// The certificates of an identity that are revoked and, by the setting `stops`, not to be used.
    pub fn stopped(&self, identity: &str) -> impl Iterator<Item = &Name> {
        let stopped = self
            .0
            .iter()
            .filter(move |(name, record)| name.identity == identity && record.stops && record.is_revoked());
        stopped.map(|(name, _)| name)
    }

    /// What belongs to this certificate, and not to one that has taken its place.
    pub(super) fn of(&mut self, watched: &Watched) -> Option<&mut Record> {
        self.0.get_mut(&watched.name).filter(|record| watched.chain.first() == Some(&record.certificate))
    }

    /// Keeps what concerns the same certificates and adds the new ones. Returns the names whose certificate is gone.
    pub(super) fn keep(&mut self, wanted: &BTreeMap<Name, Watched>) -> Vec<Name> {
        let mut gone = Vec::new();
        self.0.retain(|name, record| {
            let stays = wanted.get(name).is_some_and(|watched| watched.chain.first() == Some(&record.certificate));
            if !stays {
                gone.push(name.clone());
            }
            stays
        });
        for (name, watched) in wanted {
            let certificate = watched.chain.first().cloned().unwrap_or_else(|| CertificateDer::from(Vec::new()));
            let new = Record { certificate, verdict: None, checked: None, failure: None, stops: false };
            self.0.entry(name.clone()).or_insert(new).stops = watched.settings.stops;
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn round(verdict: Option<Verdict>, failures: &[&str]) -> Round {
        Round { verdict, failures: failures.iter().map(|text| (*text).to_owned()).collect() }
    }

    #[test]
    fn a_revocation_is_lifted_only_by_a_check_without_failures() {
        let (good, revoked) = (Verdict::Good { until: at(9) }, Verdict::Revoked { since: at(0), reason: None });
        let mut record = Record {
            certificate: CertificateDer::from(Vec::new()),
            verdict: None,
            checked: None,
            failure: None,
            stops: true,
        };
        for (moment, verdict, failures, word, checked) in [
            (1, None, &["silent"][..], "unknown", None),
            (2, Some(good), &[], "good", Some(2)),
            (3, None, &["silent"], "good", Some(2)),
            (4, Some(good), &["silent"], "good", Some(4)),
            (5, Some(revoked), &["silent"], "revoked", Some(5)),
            (6, Some(good), &["silent"], "revoked", Some(5)),
            (7, None, &["silent"], "revoked", Some(5)),
            (8, Some(good), &[], "good", Some(8)),
        ] {
            let before = record.word();
            assert_eq!(record.settle(round(verdict, failures), at(moment)), before != word, "{moment}");
            assert_eq!((record.word(), record.checked), (word, checked.map(at)), "{moment}");
            assert_eq!(record.failure.is_some(), !failures.is_empty(), "{moment}");
        }
    }
}
