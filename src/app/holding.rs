//! What is held of one identity: the last good set of certificates and keys, whatever lies on disk now. A bad set
//! changes nothing, except that a certificate that is missing or has expired is replaced by a sound one. Seals that no
//! bank knows are not of the set: what is wrong with them holds nothing up. Must not know upstreams and routes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::{join, join_all};

use super::marks::Marks;
use crate::causes::in_words;
use crate::config::Finding;
use crate::identity::certificate::{Certificate, Fingerprint, Validity};
use crate::identity::exposure::{self, Exposed};
use crate::identity::preflight::{self, Expectations, Issue, Level, Need, Purpose, Subject};
use crate::identity::{Credential, Error, Pair, Qwac, Settings, TOKEN_ABSENT};

/// The certificates and keys of one identity that are in use or lie ready.
#[derive(Clone)]
pub(super) struct Holding {
    pub(super) settings: Settings,
    pub(super) qwac: Option<Arc<Qwac>>,
    /// By name; one that could not be loaded is missing.
    pub(super) seals: BTreeMap<String, Arc<Credential>>,
    /// The certificates that are revoked and not to be used any more.
    pub(super) stopped: BTreeSet<Fingerprint>,
    /// What was found in the files at the last look.
    pub(super) findings: Vec<Finding>,
    /// Whether that was a bad set.
    is_bad: bool,
    /// When a QWAC that lies on disk begins to be valid.
    due: Option<SystemTime>,
    /// The files that the held certificates and keys were read from, by pair.
    read: BTreeMap<String, Marks>,
}

/// The QWAC's name in metrics. No seal may have it.
pub(super) const QWAC: &str = "qwac";

/// Where findings stand, and as of when.
pub(super) struct Place<'a> {
    pub(super) file: &'a Path,
    pub(super) identity: &'a str,
    /// Whether it is used nowhere but in sandboxes.
    pub(super) is_for_tests: bool,
    /// The roles that its routes need.
    pub(super) needed: Vec<Need>,
    /// The seals that some bank knows.
    pub(super) registered: BTreeSet<&'a str>,
    /// Those of them whose time has come nowhere yet, while that of another one has.
    pub(super) early: BTreeSet<&'a str>,
    /// Those that seal now.
    pub(super) used: BTreeSet<&'a str>,
    /// The certificates that are known to be revoked and not to be used.
    pub(super) stopped: BTreeSet<Fingerprint>,
    pub(super) now: SystemTime,
}

impl Holding {
    /// Looks at the files, whose state is `marks`. What has not changed since `earlier` is kept as it is.
    pub(super) async fn look(place: &Place<'_>, settings: &Settings, earlier: Option<&Self>, marks: &Marks) -> Self {
        Set::read(place, settings, earlier, marks).await.settle(place, settings, earlier)
    }

    /// Whether the QWAC can be presented.
    pub(super) fn presents(&self, now: SystemTime) -> bool {
        self.qwac.as_ref().is_some_and(|qwac| is_usable(qwac.certificate(), &self.stopped, now))
    }

    /// Whether a QWAC that was too early at the last look has become valid.
    pub(super) fn has_aged(&self, now: SystemTime) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// The moment at which it does.
    pub(super) fn due(&self) -> Option<SystemTime> {
        self.due
    }

    /// Each certificate that is held.
    pub(super) fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        let qwac = self.qwac.iter().map(|qwac| qwac.certificate());
        qwac.chain(self.seals.values().map(|seal| seal.certificate()))
    }

    /// Whether nothing is wrong but that a token does not answer now. Then it is the same everywhere, and will pass.
    pub(super) fn awaits_token(&self) -> bool {
        let mut errors = self.findings.iter().filter(|finding| finding.is_error()).peekable();
        errors.peek().is_some() && errors.all(|error| error.code == Some(TOKEN_ABSENT))
    }

    /// Whether the files hold a set that was not taken over as a whole.
    pub(super) fn is_bad(&self) -> bool {
        self.is_bad
    }

    /// The valid QWAC whose place in the same files `new` would take.
    fn replaced(&self, new: &Arc<Qwac>, settings: &Settings, now: SystemTime) -> Option<&Qwac> {
        let held = self.qwac.as_ref().filter(|held| !Arc::ptr_eq(held, new) && self.presents(now))?;
        (self.settings.qwac == settings.qwac).then_some(held)
    }

    fn qwac_like(&self, settings: &Settings, marks: &Marks) -> Option<Arc<Qwac>> {
        self.qwac.clone().filter(|_| self.settings.qwac == settings.qwac && self.was_read(&settings.qwac, marks))
    }

    fn seal_like(&self, name: &str, pair: &Pair, marks: &Marks) -> Option<Arc<Credential>> {
        let held = self.settings.seals.iter().find(|seal| seal.name == name)?;
        self.seals.get(name).filter(|_| held.pair == *pair && self.was_read(pair, marks)).cloned()
    }

    fn was_read(&self, pair: &Pair, marks: &Marks) -> bool {
        self.read.get(&pair.setting) == Some(&marks.only(pair.files()))
    }
}

/// Whether a certificate can be used at `now`.
pub(super) fn is_usable(certificate: &Certificate, stopped: &BTreeSet<Fingerprint>, now: SystemTime) -> bool {
    certificate.validity_at(now) == Validity::Valid && !stopped.contains(&certificate.id())
}

/// What the files hold, good or bad.
struct Set {
    qwac: Option<Arc<Qwac>>,
    seals: BTreeMap<String, Arc<Credential>>,
    findings: Vec<Finding>,
    /// The pairs with an error, whether or not they are of the set.
    unsound: BTreeSet<String>,
    /// Whether one of them is of the set.
    is_bad: bool,
    read: BTreeMap<String, Marks>,
}

impl Set {
    async fn read(place: &Place<'_>, settings: &Settings, earlier: Option<&Holding>, marks: &Marks) -> Self {
        let mut set = Self {
            qwac: earlier.and_then(|earlier| earlier.qwac_like(settings, marks)),
            seals: BTreeMap::new(),
            findings: Vec::new(),
            unsound: BTreeSet::new(),
            is_bad: false,
            read: settings.pairs().map(|pair| (pair.setting.clone(), marks.only(pair.files()))).collect(),
        };
        // All at a time: tokens may hang.
        let qwac = async { if set.qwac.is_none() { Some(Qwac::load(&settings.qwac).await) } else { None } };
        let seals = settings.seals.iter().map(async |seal| {
            match earlier.and_then(|earlier| earlier.seal_like(&seal.name, &seal.pair, marks)) {
                Some(held) => Ok(held),
                None => Err(Credential::load(&seal.pair).await),
            }
        });
        let (qwac, seals) = join(qwac, join_all(seals)).await;
        if let Some(loaded) = qwac {
            set.qwac = set.loaded(place, settings, &settings.qwac, loaded);
        }
        for (seal, found) in settings.seals.iter().zip(seals) {
            let found = found.map_or_else(|loaded| set.loaded(place, settings, &seal.pair, loaded), Some);
            set.seals.extend(found.map(|found| (seal.name.clone(), found)));
        }
        set.judge_exposure(place, settings);
        set.judge(place, settings, earlier);
        set.judge_succession(place, settings, earlier);
        set
    }

    fn loaded<T>(
        &mut self,
        place: &Place<'_>,
        settings: &Settings,
        pair: &Pair,
        loaded: Result<T, Vec<Error>>,
    ) -> Option<Arc<T>> {
        match loaded {
            Ok(it) => Some(Arc::new(it)),
            Err(errors) => {
                for error in errors {
                    let key = format!("identities.{}.{}", place.identity, error.setting);
                    let finding = Finding::error(place.file, key, in_words(&error)).hint(error.reason.hint());
                    self.add(place, settings, &pair.setting, finding.code(error.reason.code()));
                }
                None
            }
        }
    }

    /// Notes what was found in a pair. What is wrong with a seal that does not seal now holds nothing up, and with one
    /// that no bank knows, or whose time is yet to come, it is no error yet.
    fn add(&mut self, place: &Place<'_>, settings: &Settings, setting: &str, finding: Finding) {
        if !finding.is_error() {
            return self.findings.push(finding);
        }
        let seal = settings.seals.iter().find(|seal| seal.pair.setting == setting);
        self.unsound.insert(setting.to_owned());
        self.is_bad |= seal.is_none_or(|seal| place.used.contains(seal.name.as_str()));
        let is_unknown = seal.is_some_and(|seal| !place.registered.contains(seal.name.as_str()));
        let is_early = seal.is_some_and(|seal| place.early.contains(seal.name.as_str()));
        let may_wait = is_unknown || is_early;
        self.findings.push(if may_wait { finding.lowered() } else { finding });
    }

    /// What is to be held from now on: of each pair what was found or what is held already.
    fn settle(self, place: &Place<'_>, settings: &Settings, earlier: Option<&Holding>) -> Holding {
        let found = |pair: &Pair| !self.unsound.contains(&pair.setting);
        // The names of a bad set mean nothing either.
        let held = earlier.filter(|_| self.is_bad);
        let settings = held.map_or(settings, |held| &held.settings);
        let mut read = BTreeMap::new();
        let mut take = |pair: &Pair, is_new: bool| {
            let from = if is_new { Some(&self.read) } else { earlier.map(|earlier| &earlier.read) };
            read.extend(from.and_then(|from| from.get_key_value(&pair.setting)).map(|(k, v)| (k.clone(), v.clone())));
        };
        let qwac = choose(
            self.qwac.clone().filter(|_| found(&settings.qwac)),
            earlier.and_then(|earlier| earlier.qwac.clone()),
            |old| !self.is_bad || !is_usable(old.certificate(), &place.stopped, place.now),
        );
        take(&settings.qwac, same(&qwac, &self.qwac));
        let mut seals = BTreeMap::new();
        for seal in &settings.seals {
            let new = self.seals.get(&seal.name);
            let chosen = choose(
                new.cloned().filter(|_| found(&seal.pair)),
                earlier.and_then(|earlier| earlier.seals.get(&seal.name).cloned()),
                |old| !self.is_bad || !is_usable(old.certificate(), &place.stopped, place.now),
            );
            take(&seal.pair, same(&chosen, &new.cloned()));
            seals.extend(chosen.map(|chosen| (seal.name.clone(), chosen)));
        }
        let begin = self.qwac.as_ref().map(|qwac| qwac.certificate().not_before());
        let (is_bad, settings) = (self.is_bad, settings.clone());
        let (findings, due) = (self.findings, begin.filter(|begin| *begin > place.now));
        Holding { settings, qwac, seals, stopped: place.stopped.clone(), findings, is_bad, due, read }
    }

    /// What a QWAC must not be that comes after another: what the bank would not take for its successor.
    fn judge_succession(&mut self, place: &Place<'_>, settings: &Settings, earlier: Option<&Holding>) {
        let held = earlier.and_then(|earlier| earlier.qwac.clone());
        let (Some(held), Some(new)) = (held, self.qwac.clone()) else { return };
        if Arc::ptr_eq(&held, &new) {
            return;
        }
        let key = format!("identities.{}.qwac.{}", place.identity, settings.qwac.certificate_setting());
        let path = format!("{}: ", settings.qwac.certificate.display());
        let (new, held) = (new.certificate(), held.certificate());
        let is_held_to_it = !place.is_for_tests && is_usable(held, &place.stopped, place.now);
        let issues = [
            preflight::judge_subject(new, held).filter(|_| !settings.allow_subject_change),
            preflight::judge_qualification(new, held).filter(|_| is_held_to_it),
            preflight::judge_issuer(new, held),
        ];
        for issue in issues.into_iter().flatten() {
            self.add(place, settings, QWAC, finding(place.file, key.clone(), &path, issue));
        }
        if place.stopped.contains(&new.id()) {
            let reason = format!("{path}the certificate has been revoked");
            let hint = "it was in use before, and `revocation.stops` keeps it from being used again";
            self.add(place, settings, QWAC, Finding::error(place.file, key, reason).hint(hint).code("revoked"));
        }
    }

    /// A key that everybody on the machine may read is everybody's key, and so is one that everybody may replace.
    fn judge_exposure(&mut self, place: &Place<'_>, settings: &Settings) {
        for exposed in exposure::exposed(settings) {
            let leave = exposed.leave();
            let Exposed { setting, path, mode } = exposed;
            let key = format!("identities.{}.{setting}", place.identity);
            let reason =
                format!("{}: every user of this machine may {leave} the secret (mode {mode:04o})", path.display());
            let finding = match place.is_for_tests {
                true => Finding::warning(place.file, key, reason),
                false => Finding::error(place.file, key, reason),
            };
            let hint = "`chmod o-rwx` the file; in Kubernetes write `defaultMode: 0440` into the secret's volume and \
                        `fsGroup: GID` into the pod's securityContext";
            let (pair, _) = setting.rsplit_once('.').unwrap_or((&setting, ""));
            self.add(place, settings, pair, finding.hint(hint).code("exposed-secret"));
        }
    }

    /// What is true of certificates whose files are sound.
    fn judge(&mut self, place: &Place<'_>, settings: &Settings, earlier: Option<&Holding>) {
        let expectations = Expectations { needed: place.needed.clone(), ..settings.expectations.clone() };
        for issue in preflight::judge_stated_roles(&expectations) {
            let key = format!("identities.{}.roles", place.identity);
            self.findings.push(finding(place.file, key, "", issue));
        }
        let qwac = self.qwac.clone();
        if let Some(qwac) = &qwac {
            let mut issues = preflight::judge(&presented(qwac), &expectations, place.now);
            if let Some(held) = earlier.and_then(|earlier| earlier.replaced(qwac, settings, place.now)) {
                let before = preflight::judge(&presented(held), &expectations, place.now);
                issues.iter_mut().for_each(|issue| issue.compare(&before));
                issues.extend(preflight::judge_succession(qwac.chain(), held.chain()));
            }
            self.add_issues(place, settings, &settings.qwac, issues);
        }
        for seal in &settings.seals {
            let Some(credential) = self.seals.get(&seal.name).cloned() else { continue };
            let (certificate, chain) = (credential.certificate(), credential.chain());
            let subject = Subject { certificate, chain, purpose: Purpose::Sealing };
            let issues = preflight::judge(&subject, &expectations, place.now);
            self.add_issues(place, settings, &seal.pair, issues);
            let together = qwac.as_ref().and_then(|qwac| preflight::judge_together(qwac.certificate(), certificate));
            if let Some(mut issue) = together {
                if !place.is_for_tests {
                    // Nobody here can tell which of the two is the wrong one: nothing is sealed by one beside the
                    // other.
                    issue.level = Level::Error;
                }
                let key = format!("identities.{}", place.identity);
                self.add(place, settings, &seal.pair.setting, finding(place.file, key, "", issue));
            }
        }
    }

    fn add_issues(&mut self, place: &Place<'_>, settings: &Settings, pair: &Pair, issues: Vec<Issue>) {
        let key = format!("identities.{}.{}.{}", place.identity, pair.setting, pair.certificate_setting());
        let path = format!("{}: ", pair.certificate.display());
        let is_seal = pair.setting != settings.qwac.setting;
        for mut issue in issues {
            if issue.code == preflight::OTHER_TYPE && !place.is_for_tests {
                // The bank is going to refuse whatever is presented or sealed with it.
                issue.level = Level::Error;
            }
            let finding = finding(place.file, key.clone(), &path, issue);
            match finding.code {
                // One that comes ahead of its time waits for it, and holds nothing else up.
                Some(preflight::NOT_YET_VALID) if !is_seal => {
                    self.unsound.insert(pair.setting.clone());
                    self.findings.push(finding);
                }
                // Which seal is used is decided at every moment anew; it may wait for its time, or stay until its end.
                Some(preflight::EXPIRED | preflight::NOT_YET_VALID) if is_seal => {
                    let is_alone = settings.seals.len() == 1;
                    self.findings.push(if is_alone { finding } else { finding.lowered() });
                }
                _ => self.add(place, settings, &pair.setting, finding),
            }
        }
    }
}

fn presented(qwac: &Qwac) -> Subject<'_> {
    Subject { certificate: qwac.certificate(), chain: qwac.chain(), purpose: Purpose::Presenting }
}

/// The new one, if there is one and it `may_follow` the old one or there is none.
fn choose<T>(new: Option<Arc<T>>, old: Option<Arc<T>>, may_follow: impl Fn(&T) -> bool) -> Option<Arc<T>> {
    match (new, old) {
        (Some(new), Some(old)) => Some(if may_follow(&old) { new } else { old }),
        (new, old) => new.or(old),
    }
}

fn same<T>(one: &Option<Arc<T>>, other: &Option<Arc<T>>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if Arc::ptr_eq(one, other))
}

/// An issue at its place in the configuration.
pub(super) fn finding(file: &Path, key: String, path: &str, issue: Issue) -> Finding {
    let reason = format!("{path}{}", issue.reason);
    let finding = match issue.level {
        Level::Error => Finding::error(file, key, reason),
        Level::Warning => Finding::warning(file, key, reason),
        Level::Note => Finding::note(file, key, reason),
    };
    finding.hint(issue.hint).code(issue.code)
}
