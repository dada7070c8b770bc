//! What is known of each certificate: the last certain verdict, when it was reached, and why the last check was less
//! than that. Pure; the clock is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use super::check::Round;
use super::{Id, Verdict};
use crate::identity::certificate::Fingerprint;

/// Whose certificate: an identity, and what the certificate is to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Its name in the configuration.
    pub identity: String,
    /// `qwac`, `qsealc` or the seal's own name: the label `use` of the metrics.
    pub part: String,
}

/// What is known of one certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The last certain verdict; `None`: there has been none.
    pub verdict: Option<Verdict>,
    /// When a check last came to a certain verdict.
    pub checked: Option<SystemTime>,
    /// What was wrong with the last check, in words. It may have come to a verdict all the same, by another source.
    pub failure: Option<String>,
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

/// What is known of every certificate under watch, and of those that were and have been revoked.
#[derive(Clone, Debug, Default)]
pub struct Records {
    watched: BTreeMap<Id, Record>,
    /// By identity. It outlives the watch: such a certificate may be put back in its place.
    revoked: BTreeSet<(String, Fingerprint)>,
}

impl Records {
    /// One for each name of an identity's certificates: of several with one name, one that is revoked.
    pub fn of_identity<'a>(&'a self, identity: &str) -> BTreeMap<&'a str, &'a Record> {
        let mut found: BTreeMap<&str, &Record> = BTreeMap::new();
        for (id, record) in self.watched.iter().filter(|(id, _)| id.name.identity == identity) {
            let known = found.entry(&id.name.part).or_insert(record);
            if record.is_revoked() {
                *known = record;
            }
        }
        found
    }

    /// All of one name.
    pub(super) fn named(&self, name: &Name) -> impl Iterator<Item = &Record> {
        self.watched.iter().filter(move |(id, _)| id.name == *name).map(|(_, record)| record)
    }

    /// The certificates of an identity that are revoked, whether or not they are in use.
    pub fn revoked(&self, identity: &str) -> BTreeSet<Fingerprint> {
        self.revoked.iter().filter(|(of, _)| of == identity).map(|(_, id)| *id).collect()
    }

    /// Takes in that a certificate has been revoked, whether or not it is under watch.
    pub(super) fn revoke(&mut self, id: &Id) {
        self.revoked.insert((id.name.identity.clone(), id.certificate));
    }

    /// Takes in what a check found. The record, and whether its verdict is another one now; `None`: it is no more under
    /// watch.
    pub(super) fn settle(&mut self, id: &Id, round: Round, now: SystemTime) -> Option<(Record, bool)> {
        let record = self.watched.get_mut(id)?;
        let changed = record.settle(round, now);
        let key = (id.name.identity.clone(), id.certificate);
        match record.word() {
            "revoked" => drop(self.revoked.insert(key)),
            "good" => drop(self.revoked.remove(&key)),
            _ => {}
        }
        Some((record.clone(), changed))
    }

    /// Keeps what concerns the same certificates and adds the new ones. Returns the names that are gone.
    pub(super) fn keep(&mut self, wanted: &BTreeSet<Id>) -> BTreeSet<Name> {
        let before: BTreeSet<_> = self.watched.keys().map(|id| id.name.clone()).collect();
        self.watched.retain(|id, _| wanted.contains(id));
        for id in wanted {
            self.watched.entry(id.clone()).or_default();
        }
        before.into_iter().filter(|name| !wanted.iter().any(|id| id.name == *name)).collect()
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
        let mut record = Record::default();
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

    /// Two banks may know different certificates by one name, and a certificate that was taken away may come back.
    #[test]
    fn what_is_known_is_known_of_a_certificate_and_not_of_its_name() {
        let name = Name { identity: "main".into(), part: "qsealc".into() };
        let id = |der: &[u8]| Id { name: name.clone(), certificate: Fingerprint::of(der) };
        let (old, new) = (id(b"old"), id(b"new"));
        let mut records = Records::default();
        assert!(records.keep(&[old.clone(), new.clone()].into()).is_empty());
        let revoked = Verdict::Revoked { since: at(0), reason: None };
        records.settle(&old, round(Some(revoked), &[]), at(1));
        records.settle(&new, round(Some(Verdict::Good { until: at(9) }), &[]), at(1));
        assert_eq!(records.revoked("main"), [old.certificate].into());
        assert_eq!(records.revoked("other"), [].into());
        assert_eq!(records.of_identity("main")["qsealc"].word(), "revoked");
        assert!(records.keep(&[new.clone()].into()).is_empty(), "the name is still there");
        assert_eq!(records.settle(&old, round(None, &[]), at(2)), None);
        assert_eq!(records.of_identity("main")["qsealc"].word(), "good");
        assert_eq!(records.revoked("main"), [old.certificate].into());
        assert_eq!(records.keep(&[].into()), [name].into());
        assert!(records.keep(&[old.clone()].into()).is_empty());
        records.settle(&old, round(Some(Verdict::Good { until: at(9) }), &[]), at(3));
        assert_eq!(records.revoked("main"), [].into(), "a hold may be lifted");
    }
}
