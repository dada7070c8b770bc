//! What is held of one identity: the last good set of certificates and keys, whatever lies on disk now. A bad set changes
//! nothing. Must not know upstreams and routes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::marks::Marks;
use crate::config::Finding;
use crate::identity::certificate::{Certificate, Validity};
use crate::identity::exposure::{self, Exposed};
use crate::identity::preflight::{self, Expectations, Issue, Level, Purpose, Subject};
use crate::identity::qcstatements::Role;
use crate::identity::{Credential, Error, Pair, Qwac, Settings};

/// The certificates and keys of one identity that are in use or lie ready.
#[derive(Clone)]
pub(super) struct Holding {
    pub(super) settings: Settings,
    pub(super) qwac: Option<Arc<Qwac>>,
    /// By name; one that could not be loaded is missing.
    pub(super) seals: BTreeMap<String, Arc<Credential>>,
    /// The names in metrics of the certificates that are revoked and not to be used any more.
    pub(super) stopped: BTreeSet<String>,
    /// What was found in the files at the last look.
    pub(super) findings: Vec<Finding>,
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
    /// The roles that its routes need, with their paths.
    pub(super) needed: Vec<(Role, String)>,
    pub(super) now: SystemTime,
}

impl Holding {
    /// Looks at the files, whose state is `marks`. What has not changed since `earlier` is kept as it is. Of a set with
    /// an error nothing takes the place of what is held, and only what is missing is filled in.
    pub(super) async fn look(place: &Place<'_>, settings: &Settings, earlier: Option<&Self>, marks: &Marks) -> Self {
        let found = Set::read(place, settings, earlier, marks).await;
        match earlier {
            Some(earlier) if found.is_bad() => found.fill(earlier),
            _ => found.into_holding(settings),
        }
    }

    /// Whether the QWAC can be presented.
    pub(super) fn presents(&self, now: SystemTime) -> bool {
        let is_valid = |qwac: &Arc<Qwac>| qwac.certificate().validity_at(now) == Validity::Valid;
        self.qwac.as_ref().is_some_and(is_valid) && !self.stopped.contains(QWAC)
    }

    /// Each certificate that is held, under its name in metrics: `qwac`, `qsealc` or a seal's own.
    pub(super) fn certificates(&self) -> impl Iterator<Item = (&str, &Certificate)> {
        let qwac = self.qwac.iter().map(|qwac| (QWAC, qwac.certificate()));
        qwac.chain(self.seals.iter().map(|(name, seal)| (name.as_str(), seal.certificate())))
    }

    pub(super) fn is_bad(&self) -> bool {
        self.findings.iter().any(Finding::is_error)
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

/// What the files hold, good or bad.
struct Set {
    qwac: Option<Arc<Qwac>>,
    seals: BTreeMap<String, Arc<Credential>>,
    findings: Vec<Finding>,
    /// The pairs with an error; an empty name is the identity as a whole.
    bad: Vec<String>,
    read: BTreeMap<String, Marks>,
}

impl Set {
    async fn read(place: &Place<'_>, settings: &Settings, earlier: Option<&Holding>, marks: &Marks) -> Self {
        let mut set = Self {
            qwac: earlier.and_then(|earlier| earlier.qwac_like(settings, marks)),
            seals: BTreeMap::new(),
            findings: Vec::new(),
            bad: Vec::new(),
            read: settings.pairs().map(|pair| (pair.setting.clone(), marks.only(pair.files()))).collect(),
        };
        if set.qwac.is_none() {
            set.qwac = set.loaded(place, &settings.qwac, Qwac::load(&settings.qwac).await);
        }
        for seal in &settings.seals {
            let held = earlier.and_then(|earlier| earlier.seal_like(&seal.name, &seal.pair, marks));
            let loaded = match held {
                Some(held) => Some(held),
                None => set.loaded(place, &seal.pair, Credential::load(&seal.pair).await),
            };
            set.seals.extend(loaded.map(|loaded| (seal.name.clone(), loaded)));
        }
        set.judge_exposure(place, settings);
        set.judge(place, settings);
        set.judge_subject(place, settings, earlier);
        set
    }

    fn loaded<T>(&mut self, place: &Place<'_>, pair: &Pair, loaded: Result<T, Vec<Error>>) -> Option<Arc<T>> {
        match loaded {
            Ok(it) => Some(Arc::new(it)),
            Err(errors) => {
                for error in errors {
                    let key = format!("identities.{}.{}", place.identity, error.setting);
                    let finding = Finding::error(place.file, key, error.to_string()).hint(error.reason.hint());
                    self.add(&pair.setting, finding);
                }
                None
            }
        }
    }

    fn is_bad(&self) -> bool {
        !self.bad.is_empty()
    }

    fn add(&mut self, setting: &str, finding: Finding) {
        if finding.is_error() {
            self.bad.push(setting.to_owned());
        }
        self.findings.push(finding);
    }

    /// As it is, without what has an error.
    fn into_holding(self, settings: &Settings) -> Holding {
        let is_good = |setting: &str| !self.bad.iter().any(|bad| bad == setting || bad.is_empty());
        let seals = settings.seals.iter().filter(|seal| is_good(&seal.pair.setting));
        let seals = seals.filter_map(|seal| Some((seal.name.clone(), self.seals.get(&seal.name)?.clone()))).collect();
        Holding {
            qwac: self.qwac.clone().filter(|_| is_good(&settings.qwac.setting)),
            seals,
            settings: settings.clone(),
            stopped: BTreeSet::new(),
            findings: self.findings,
            read: self.read,
        }
    }

    /// What is held, and from this set what is missing there.
    fn fill(self, earlier: &Holding) -> Holding {
        let mut held = earlier.clone();
        let new = self.into_holding(&earlier.settings);
        for (pair, marks) in new.read {
            let is_missing = if pair == held.settings.qwac.setting {
                held.qwac.is_none()
            } else {
                held.settings.seals.iter().any(|seal| seal.pair.setting == pair && !held.seals.contains_key(&seal.name))
            };
            if is_missing {
                held.read.insert(pair, marks);
            }
        }
        held.qwac = held.qwac.or(new.qwac);
        for (name, seal) in new.seals {
            held.seals.entry(name).or_insert(seal);
        }
        held.findings = new.findings;
        held
    }

    /// The bank knows its client by the QWAC's subject.
    fn judge_subject(&mut self, place: &Place<'_>, settings: &Settings, earlier: Option<&Holding>) {
        let held = earlier.and_then(|earlier| earlier.qwac.clone());
        let (Some(held), Some(new)) = (held, self.qwac.clone()) else { return };
        let name = |qwac: &Qwac| {
            let certificate = qwac.certificate();
            (certificate.subject().to_owned(), certificate.organization_identifier().map(str::to_owned))
        };
        if settings.allow_subject_change || name(&held) == name(&new) {
            return;
        }
        let reason = format!(
            "{}: the new QWAC is for {}, the present one for {}",
            settings.qwac.certificate.display(),
            new.certificate().subject(),
            held.certificate().subject()
        );
        let hint =
            "the bank knows its client by the subject: if it knows the new one, set `allow_subject_change: true`";
        let key = format!("identities.{}.qwac.{}", place.identity, settings.qwac.certificate_setting());
        self.add("qwac", Finding::error(place.file, key, reason).hint(hint).code("other-subject"));
    }

    /// A key that everybody on the machine may read is everybody's key.
    fn judge_exposure(&mut self, place: &Place<'_>, settings: &Settings) {
        for Exposed { setting, path, mode } in exposure::exposed(settings) {
            let key = format!("identities.{}.{setting}", place.identity);
            let reason =
                format!("{}: every user of this machine may read the secret (mode {mode:04o})", path.display());
            let finding = match place.is_for_tests {
                true => Finding::warning(place.file, key, reason),
                false => Finding::error(place.file, key, reason),
            };
            let hint = "`chmod o-rwx` the file; in Kubernetes write `defaultMode: 0440` into the secret's volume and \
                        `fsGroup: GID` into the pod's securityContext";
            let (pair, _) = setting.rsplit_once('.').unwrap_or((&setting, ""));
            self.add(pair, finding.hint(hint).code("exposed-secret"));
        }
    }

    /// What is true of certificates whose files are sound.
    fn judge(&mut self, place: &Place<'_>, settings: &Settings) {
        let expectations = Expectations { needed: place.needed.clone(), ..settings.expectations.clone() };
        let qwac = self.qwac.clone();
        if let Some(qwac) = &qwac {
            let (certificate, chain) = (qwac.certificate(), qwac.chain());
            let subject = Subject { certificate, chain, purpose: Purpose::Presenting };
            self.judge_certificate(place, &settings.qwac, &subject, &expectations);
        }
        for seal in &settings.seals {
            let Some(credential) = self.seals.get(&seal.name).cloned() else { continue };
            let (certificate, chain) = (credential.certificate(), credential.chain());
            let subject = Subject { certificate, chain, purpose: Purpose::Sealing };
            self.judge_certificate(place, &seal.pair, &subject, &expectations);
            let together = qwac.as_ref().and_then(|qwac| preflight::judge_together(qwac.certificate(), certificate));
            if let Some(issue) = together {
                self.add("", finding(place.file, format!("identities.{}", place.identity), "", issue));
            }
        }
    }

    fn judge_certificate(
        &mut self,
        place: &Place<'_>,
        pair: &Pair,
        subject: &Subject<'_>,
        expectations: &Expectations,
    ) {
        let key = format!("identities.{}.{}.{}", place.identity, pair.setting, pair.certificate_setting());
        let path = format!("{}: ", pair.certificate.display());
        for issue in preflight::judge(subject, expectations, place.now) {
            self.add(&pair.setting, finding(place.file, key.clone(), &path, issue));
        }
    }
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
