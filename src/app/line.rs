//! One bank as one identity reaches it: the connections under the present QWAC and trust, and the seal that the bank
//! knows. A seal certificate goes live only where the configuration says that it is registered. Must not know routes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::holding::{Holding, finding, is_usable};
use super::marks::Marks;
use super::registered::{EARLY, Known, Pins, Succession, is_of_another, succession};
use super::{KnownSeal, Process};
use crate::causes::in_words;
use crate::config::{Finding, Registration, Upstream as Config};
use crate::identity::certificate::{Certificate, Fingerprint, Validity};
use crate::identity::preflight::EXPIRES_SOON;
use crate::identity::{Credential, Qwac, SealSettings, preflight};
use crate::log::timestamp;
use crate::proxy::api::Environment;
use crate::seal::{Profile, Sealer, SetupError as SealError};
use crate::upstream::{Destination, Origin, SetupError, Upstream};

/// The way to one bank.
pub(super) struct Line {
    destination: Arc<Destination>,
    /// What is presented there.
    pub(super) qwac: Option<Arc<Qwac>>,
    /// The state of the files that the upstream was made with.
    marks: Marks,
    pub(super) upstream: Option<Arc<Upstream>>,
    /// The seals that the bank knows, by name.
    pub(super) known: BTreeMap<String, Known>,
    /// The one of them that seals now.
    pub(super) active: Option<String>,
    /// Seals that lie ready, and are not used here.
    pub(super) staged: Vec<Staged>,
    /// The certificates that are not to be used.
    stopped: BTreeSet<Fingerprint>,
    /// When a certificate that lies ready, and may take the place of the one in use, begins to be valid.
    due: Option<SystemTime>,
    /// Whether any of its routes seals.
    seals: bool,
    /// Whether requests may take it.
    pub(super) is_usable: bool,
    /// What was found in drawing it.
    pub(super) findings: Vec<Finding>,
}

/// A seal that waits.
pub(super) struct Staged {
    pub(super) name: String,
    pub(super) credential: Arc<Credential>,
    pub(super) reason: &'static str,
}

/// What a line is drawn from.
#[derive(Clone, Copy)]
pub(super) struct Plan<'a> {
    /// The configuration's file.
    pub(super) file: &'a Path,
    /// The upstream's.
    pub(super) name: &'a str,
    pub(super) config: &'a Config,
    /// Whether any of its routes seals.
    pub(super) seals: bool,
    /// What there is of its identity.
    pub(super) holding: &'a Holding,
    pub(super) pins: &'a Pins,
    /// The state of all files.
    pub(super) marks: &'a Marks,
    /// As of when.
    pub(super) now: SystemTime,
}

/// A line, and what its drawing showed.
pub(super) struct Drawn {
    pub(super) line: Line,
    /// Whether the upstream's own settings have an error.
    pub(super) is_faulty: bool,
}

/// A line that is being drawn.
struct Drawing<'a> {
    plan: Plan<'a>,
    line: Line,
    is_faulty: bool,
}

impl Line {
    /// Draws the line. `earlier` is the same upstream's of the generation before, and its settings then.
    pub(super) fn draw(process: &Process, plan: Plan<'_>, earlier: Option<&Self>) -> Drawn {
        let Plan { name, config, holding, now, .. } = plan;
        let destination = match earlier.map(|line| &line.destination) {
            Some(earlier) if *earlier.settings() == config.settings => Arc::clone(earlier),
            Some(earlier) => earlier.with(config.settings.clone()),
            None => Destination::new(name, config.settings.clone(), &process.families, process.log.clone()),
        };
        let line = Self {
            destination,
            qwac: holding.qwac.clone(),
            marks: plan.marks.only(config.settings.files()),
            upstream: None,
            known: BTreeMap::new(),
            active: None,
            staged: Vec::new(),
            stopped: holding.stopped.clone(),
            due: None,
            seals: plan.seals,
            is_usable: false,
            findings: Vec::new(),
        };
        let mut drawing = Drawing { plan, line, is_faulty: false };
        if drawing.follows() {
            drawing.connect(earlier);
        }
        // Even where nothing is sealed at present: what the bank knows is not to be forgotten.
        drawing.adopt();
        drawing.judge_environment();
        drawing.line.active = drawing.line.choose(config, now);
        drawing.judge_seals();
        let Drawing { mut line, is_faulty, .. } = drawing;
        line.is_usable = line.leads(config, now);
        Drawn { line, is_faulty }
    }

    /// Puts the upstream's limits in force, and shows when its revocation lists become too old.
    pub(super) fn takes_over(&self) {
        self.destination.takes_over();
        self.upstream.iter().for_each(|upstream| upstream.show_lists());
    }

    /// Where the bank is.
    pub(super) fn origin(&self) -> &Origin {
        &self.destination.settings().origin
    }

    /// The sealer of the seal in use.
    pub(super) fn sealer(&self) -> Option<Arc<Sealer>> {
        let known = self.known.get(self.active.as_ref()?)?;
        Some(Arc::clone(&known.sealer))
    }

    /// The library that seals, and why it makes one seal at a time if it does.
    pub(super) fn backend(&self) -> Option<(&'static str, Option<&'static str>)> {
        let key = self.known.get(self.active.as_ref()?)?.credential.key();
        Some((key.backend(), key.alone()))
    }

    /// The seals that the bank knows.
    pub(super) fn seals(&self) -> Vec<KnownSeal> {
        let seal = |(name, known): (&String, &Known)| KnownSeal {
            name: name.clone(),
            key_id: known.sealer.key_id().to_owned(),
            chain: known.credential.chain().to_vec(),
        };
        self.known.iter().map(seal).collect()
    }

    /// Whether it is not used because what would be used has been revoked.
    pub(super) fn is_stopped(&self) -> bool {
        let revoked = |certificate: &Certificate| self.stopped.contains(&certificate.id());
        self.qwac.as_ref().is_some_and(|qwac| revoked(qwac.certificate()))
            || self.known.values().any(|known| revoked(known.credential.certificate()))
    }

    /// Whether requests would not notice a change from `earlier`.
    pub(super) fn is_like(&self, earlier: &Self) -> bool {
        let upstream = |line: &Self| line.upstream.as_ref().map(Arc::as_ptr);
        let seal = |line: &Self| Some(Arc::as_ptr(&line.known.get(line.active.as_ref()?)?.credential));
        (upstream(self), seal(self), self.is_usable) == (upstream(earlier), seal(earlier), earlier.is_usable)
    }

    /// Whether another seal's time has come, or a certificate's has ended.
    pub(super) fn has_aged(&self, config: &Config, now: SystemTime) -> bool {
        self.choose(config, now) != self.active
            || self.leads(config, now) != self.is_usable
            || self.due.is_some_and(|due| due <= now)
    }

    /// Whether there is a certificate to present, and one to seal with where that is needed.
    fn leads(&self, config: &Config, now: SystemTime) -> bool {
        let presents = |qwac: &Arc<Qwac>| is_usable(qwac.certificate(), &self.stopped, now);
        self.upstream.is_some()
            && self.qwac.as_ref().is_some_and(presents)
            && (!self.seals || self.choose(config, now).is_some())
    }

    /// The seal to use: of those whose time has come and whose certificate is valid, the one that came last.
    fn choose(&self, config: &Config, now: SystemTime) -> Option<String> {
        let usable = config.registrations.iter().filter(|registration| {
            let known = self.known.get(&registration.seal);
            let seals = |known: &Known| is_usable(known.credential.certificate(), &self.stopped, now);
            registration.is_due(now) && known.is_some_and(seals)
        });
        // Of several with the same moment the one that stands last.
        usable.max_by_key(|registration| registration.from).map(|registration| registration.seal.clone())
    }
}

impl Drawing<'_> {
    fn key(&self, setting: &str) -> String {
        format!("upstreams.{}.{setting}", self.plan.name)
    }

    /// Whether the bank may be shown the QWAC after what it was shown last, by whatever identity. The files of one
    /// identity are held to it where they are read: only a configuration that is read anew fails here, and is refused
    /// as a whole.
    fn follows(&mut self) -> bool {
        let Plan { file, name, config, holding, pins, now, .. } = self.plan;
        let Some(qwac) = &self.line.qwac else { return true };
        let (new, stopped) = (qwac.certificate(), &self.line.stopped);
        let is_production = config.environment == Environment::Production;
        let judge = |held: &Certificate| {
            let subject = preflight::judge_subject(new, held).filter(|_| !holding.settings.allow_subject_change);
            let is_held_to_it = is_production && is_usable(held, stopped, now);
            subject.or_else(|| preflight::judge_qualification(new, held).filter(|_| is_held_to_it))
        };
        let mut found = None;
        for held in pins.shown(name, &config.settings.origin) {
            let Some(issue) = judge(held) else { return true };
            found = Some(issue);
        }
        let Some(issue) = found else { return true };
        self.line.findings.push(finding(file, self.key("identity"), "", issue));
        self.is_faulty = true;
        false
    }

    /// The connections: those of the generation before, where nothing that they depend on has changed.
    fn connect(&mut self, earlier: Option<&Line>) {
        let Plan { now, .. } = self.plan;
        let Some(qwac) = self.line.qwac.clone() else {
            // What else is wrong is told with what is wrong with the identity, not after it.
            let error = self.line.destination.check(now).err();
            return error.iter().for_each(|error| self.unusable(error));
        };
        let line = &mut self.line;
        let same = earlier.filter(|earlier| {
            Arc::ptr_eq(&earlier.destination, &line.destination)
                && earlier.qwac.as_ref().is_some_and(|earlier| Arc::ptr_eq(earlier, &qwac))
                && earlier.marks == line.marks
        });
        if let Some(upstream) = same.and_then(|same| same.upstream.clone()) {
            line.upstream = Some(upstream);
            return;
        }
        match Upstream::new(Arc::clone(&line.destination), qwac.resolver(), qwac.at_token(), now) {
            Ok(upstream) => line.upstream = Some(Arc::new(upstream)),
            Err(error) => {
                self.unusable(&error);
                self.is_faulty = true;
                let line = &mut self.line;
                // What works goes on: the trust and the credentials as they were read before, with the QWAC as it is
                // now.
                let Some((earlier, upstream)) = earlier.and_then(|line| Some((line, line.upstream.as_ref()?))) else {
                    return;
                };
                let is_same = earlier.qwac.as_ref().is_some_and(|earlier| Arc::ptr_eq(earlier, &qwac));
                let renewed = || upstream.renewed(qwac.resolver(), qwac.at_token()).ok().map(Arc::new);
                let renewed = if is_same { None } else { renewed() };
                line.marks = earlier.marks.clone();
                if renewed.is_none() {
                    line.qwac.clone_from(&earlier.qwac);
                }
                line.upstream = renewed.or_else(|| Some(Arc::clone(upstream)));
            }
        }
    }

    /// The seals: what is held takes the place of what the bank knows only where it is known to know it too.
    fn adopt(&mut self) {
        let Plan { name: upstream, config, holding, pins, now, .. } = self.plan;
        for (name, credential) in &holding.seals {
            let Some(seal) = holding.settings.seals.iter().find(|seal| seal.name == *name) else { continue };
            let registration = config.registrations.iter().find(|registration| registration.seal == *name);
            let held = Held { seal, credential, registration, may_wait: may_wait(registration, config, now) };
            let Some(registration) = registration else {
                self.stage(&held, "the bank does not know it: `seal_keys` does not list it");
                continue;
            };
            if registration.from.is_none() {
                self.stage(&held, "`seal_keys` says that it is not registered yet");
            }
            let place = &seal.pair.certificate;
            let before = pins.find(upstream, &config.settings.origin, place, registration);
            let is_unknown = before.is_none_or(|before| !before.is_settled() && !before.is_named(registration));
            if is_unknown && !config.opaque_key_ids && is_of_another(registration, credential) {
                self.refuse_key_id(registration, &held);
                self.stage(&held, OF_ANOTHER);
                continue;
            }
            let Succession { used, key_id, reason } = succession(before, registration, credential, now);
            if let Some(reason) = reason {
                self.stage(&held, reason);
            }
            if reason == Some(EARLY) {
                self.line.due = self.line.due.into_iter().chain([credential.certificate().not_before()]).min();
            }
            let registration = Registration { key_id, ..registration.clone() };
            let profile = Profile { key_id: registration.key_id.clone(), ..config.profile.clone() };
            match Sealer::new(&profile, &used) {
                Ok(sealer) => {
                    self.judge_key_id(&registration, sealer.key_id(), &used);
                    let earlier = before.map(|before| before.until(&used)).unwrap_or_default();
                    let key = used.certificate().public_key();
                    let was_due =
                        |before: &Known| before.was_due && before.credential.certificate().public_key() == key;
                    let was_due = registration.is_due(now) || before.is_some_and(was_due);
                    let (sealer, place) = (Arc::new(sealer), place.clone());
                    let known = Known { registration, was_due, place, credential: used, sealer, earlier };
                    self.line.known.insert(name.clone(), known);
                }
                Err(error) => self.refuse_sealer(&held, &error),
            }
        }
    }

    fn judge_key_id(&mut self, known: &Registration, known_as: &str, used: &Credential) {
        let Plan { file, config, .. } = self.plan;
        let wanted = config.registrations.iter().find(|registration| registration.seal == known.seal);
        if let Some(wanted) = wanted
            && wanted.key_id != known.key_id
        {
            let wanted = wanted.key_id.as_deref().unwrap_or("the one that is made from the certificate");
            let reason = format!(
                "the key id is now {wanted}, and the certificate in use is still the one that the bank knew as {known_as}"
            );
            let hint = "install the certificate that the new key id belongs to; if the bank renamed the key, restart";
            let finding = Finding::warning(file, self.key(&known.key_id_setting), reason);
            return self.line.findings.push(finding.hint(hint).code("key-id-without-certificate"));
        }
        let key_id = known.key_id.as_ref().filter(|_| !config.opaque_key_ids);
        let issue = key_id.and_then(|key_id| preflight::judge_key_id(key_id, used.certificate()));
        self.line.findings.extend(issue.map(|issue| finding(file, self.key(&known.key_id_setting), "", issue)));
    }

    /// The process has not seen what the bank knows, and what lies there is not it.
    fn refuse_key_id(&mut self, registration: &Registration, held: &Held<'_>) {
        let issue = registration.key_id.as_ref();
        let issue = issue.and_then(|key_id| preflight::judge_key_id(key_id, held.credential.certificate()));
        let Some(issue) = issue else { return };
        let hint = "the bank knows another certificate by this name: put that one back, or give the key id that the bank \
                    returned for this one; if the bank's key ids only look like fingerprints, `key_id_opaque: true` in \
                    `profile` says so";
        let key = self.key(&registration.key_id_setting);
        let finding = Finding::error(self.plan.file, key, issue.reason).hint(hint).code(issue.code);
        self.line.findings.push(held.weigh(finding));
    }

    /// The seals in use may be older than those in the files, which are judged where they are read.
    fn judge_seals(&mut self) {
        let Plan { file, now, .. } = self.plan;
        let soon = now + EXPIRES_SOON;
        if let Some(known) = self.line.active.as_ref().and_then(|active| self.line.known.get(active))
            && known.credential.certificate().not_after() < soon
            && self.line.staged.iter().any(|staged| Some(&staged.name) == self.line.active.as_ref())
        {
            let end = timestamp(known.credential.certificate().not_after());
            let reason = format!("the seal in use ends on {end}, and its successor lies staged");
            let hint = "register the successor's key with the bank, then say so in `seal_keys` or `key_id`";
            self.line
                .findings
                .push(Finding::warning(file, self.key("seal_keys"), reason).hint(hint).code("expires-soon"));
        }
        if self.line.seals && self.line.active.is_none() && !self.line.known.is_empty() {
            let reason = "no seal is registered, valid and due now: its routes cannot be used";
            let hint = "see `registered` and `active_from`, and the ends of the certificates";
            self.line.findings.push(Finding::error(file, self.key("seal_keys"), reason).hint(hint).code("no-seal"));
        }
    }

    /// The QWAC or, if that is beyond suspicion, a seal.
    fn judge_environment(&mut self) {
        let Plan { file, config, .. } = self.plan;
        let is_production = config.environment == Environment::Production;
        let qwac = self.line.qwac.iter().map(|qwac| qwac.certificate());
        let mut used = qwac.chain(self.line.known.values().map(|known| known.credential.certificate()));
        let issue = used.find_map(|certificate| preflight::judge_environment(certificate, is_production));
        self.line.findings.extend(issue.map(|issue| finding(file, self.key("environment"), "", issue)));
    }

    fn refuse_sealer(&mut self, held: &Held<'_>, error: &SealError) {
        let Plan { file, config, .. } = self.plan;
        let pair = &held.seal.pair;
        let finding = |key, hint: &str| Finding::error(file, key, in_words(error)).hint(hint).code("cannot-seal");
        self.line.findings.push(match error {
            SealError::NoLabel { .. } => {
                let key = format!("identities.{}.{}.{}", config.identity, pair.setting, pair.key_setting());
                held.weigh(finding(key, "this bank takes seals of RSA keys"))
            }
            SealError::KeyId { .. } => {
                self.is_faulty = true;
                let setting = held.registration.map_or("key_id", |registration| &registration.key_id_setting);
                finding(self.key(setting), "give the key id exactly as the bank returned it")
            }
        });
    }

    /// What has expired is told where certificates are judged, and lies ready for nothing; nor does what could never
    /// seal.
    fn stage(&mut self, held: &Held<'_>, reason: &'static str) {
        let Plan { file, config, now, .. } = self.plan;
        let (name, credential) = (&held.seal.name, held.credential);
        let fingerprint = credential.certificate().sha1_hex();
        let is_over = credential.certificate().validity_at(now) == Validity::Expired;
        if is_over || self.line.staged.iter().any(|staged| staged.name == *name) {
            return;
        }
        let profile = Profile { key_id: None, ..config.profile.clone() };
        if let Err(error @ SealError::NoLabel { .. }) = Sealer::new(&profile, credential) {
            return self.refuse_sealer(held, &error);
        }
        let text = format!("the seal {name} ({fingerprint}) lies ready and is not used: {reason}");
        let hint = format!(
            "register its key with the bank, then say so with its key id ({fingerprint} where the bank made none of its own), \
             in `key_id` or `seal_keys`"
        );
        let refused = held.registration.filter(|it| !config.opaque_key_ids && is_of_another(it, credential));
        let finding = match refused.filter(|_| reason != OF_ANOTHER) {
            Some(_) => {
                let text =
                    format!("{text}; a process that starts meanwhile has no seal, because its key id is another's");
                Finding::warning(file, self.key("seal_keys"), text)
            }
            None => Finding::note(file, self.key("seal_keys"), text),
        };
        self.line.findings.push(finding.hint(hint).code("staged"));
        self.line.staged.push(Staged { name: name.clone(), credential: Arc::clone(credential), reason });
    }

    /// What keeps an upstream from being made of its settings.
    fn unusable(&mut self, error: &SetupError) {
        let (setting, hint) = match error {
            SetupError::Name(_) => ("url", "give the host name that stands in the bank's certificate"),
            SetupError::Trust(error) => (error.setting(), error.hint()),
            SetupError::Credentials(error) => ("via.credentials", error.hint()),
            SetupError::Thread(_) => ("identity", "let this process have more threads"),
        };
        let finding =
            Finding::error(self.plan.file, self.key(setting), in_words(error)).hint(hint).code("unusable-upstream");
        self.line.findings.push(finding);
    }
}

/// What an identity holds of a seal, and what the configuration says of it.
struct Held<'a> {
    seal: &'a SealSettings,
    credential: &'a Arc<Credential>,
    registration: Option<&'a Registration>,
    /// Whether what is wrong with it keeps nothing from going on.
    may_wait: bool,
}

impl Held<'_> {
    fn weigh(&self, finding: Finding) -> Finding {
        if self.may_wait { finding.lowered() } else { finding }
    }
}

/// Whether a seal is one that the bank does not know, or whose time is yet to come while that of another one has.
fn may_wait(registration: Option<&Registration>, config: &Config, now: SystemTime) -> bool {
    let is_any_due = config.registrations.iter().any(|registration| registration.is_due(now));
    registration.is_none_or(|registration| registration.from.is_none() || (is_any_due && !registration.is_due(now)))
}

/// Why a seal waits that the process has not seen before.
const OF_ANOTHER: &str = "its key id is the SHA-1 of another certificate";
