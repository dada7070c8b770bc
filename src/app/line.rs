//! One bank as one identity reaches it: the connections under the present QWAC and trust, and the seal that the bank
//! knows. A seal certificate goes live only where the configuration says that it is registered. Must not know routes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::holding::{Holding, QWAC, finding};
use super::marks::Marks;
use super::{KnownSeal, Process};
use crate::config::{Finding, Registration, Upstream as Config};
use crate::identity::certificate::Validity;
use crate::identity::preflight::EXPIRES_SOON;
use crate::identity::{Credential, Qwac, preflight};
use crate::log::timestamp;
use crate::proxy::api::Environment;
use crate::seal::{Profile, Sealer, SetupError as SealError};
use crate::upstream::{Destination, SetupError, Upstream};

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
    /// The names of certificates that are not to be used.
    stopped: BTreeSet<String>,
    /// Whether any of its routes seals.
    seals: bool,
    /// Whether requests may take it.
    pub(super) is_usable: bool,
}

/// A seal that is registered at the bank.
#[derive(Clone)]
pub(super) struct Known {
    registration: Registration,
    pub(super) credential: Arc<Credential>,
    pub(super) sealer: Arc<Sealer>,
}

/// A seal that waits.
pub(super) struct Staged {
    pub(super) name: String,
    pub(super) credential: Arc<Credential>,
    pub(super) reason: &'static str,
}

/// A line, and what was found in drawing it.
pub(super) struct Drawn {
    pub(super) line: Line,
    pub(super) findings: Vec<Finding>,
    /// Whether the upstream's own settings have an error.
    pub(super) is_faulty: bool,
}

impl Line {
    /// Draws the line as of `now`. `earlier` is the same upstream's of the generation before, and its settings then.
    #[expect(clippy::too_many_arguments, reason = "each is another side of the line, and there is one caller")]
    pub(super) fn draw(
        process: &Process,
        file: &Path,
        name: &str,
        config: &Config,
        seals: bool,
        holding: &Holding,
        earlier: Option<(&Self, &Config)>,
        marks: &Marks,
        now: SystemTime,
    ) -> Drawn {
        let key = |setting: &str| format!("upstreams.{name}.{setting}");
        let earlier_line = earlier.map(|(line, _)| line);
        let destination = earlier_line
            .map(|line| Arc::clone(&line.destination))
            .filter(|destination| *destination.settings() == config.settings)
            .unwrap_or_else(|| Destination::new(name, config.settings.clone(), &process.families, process.log.clone()));
        let line = Self {
            destination,
            qwac: holding.qwac.clone(),
            marks: marks.only(config.settings.files()),
            upstream: None,
            known: BTreeMap::new(),
            active: None,
            staged: Vec::new(),
            stopped: holding.stopped.clone(),
            seals,
            is_usable: false,
        };
        let mut drawn = Drawn { line, findings: Vec::new(), is_faulty: false };
        drawn.connect(file, &key, earlier_line, now);
        // Even where nothing is sealed at present: what the bank knows is not to be forgotten.
        drawn.adopt(file, &key, config, holding, earlier);
        drawn.judge_environment(file, &key, config);
        drawn.line.active = drawn.line.choose(config, now);
        drawn.judge_seals(file, &key, now);
        drawn.line.is_usable = drawn.line.leads(config, now);
        drawn
    }

    /// The sealer of the seal in use.
    pub(super) fn sealer(&self) -> Option<Arc<Sealer>> {
        let known = self.known.get(self.active.as_ref()?)?;
        Some(Arc::clone(&known.sealer))
    }

    /// The seals that the bank knows.
    pub(super) fn seals(&self) -> Vec<KnownSeal> {
        let seal = |(name, known): (&String, &Known)| KnownSeal {
            name: name.clone(),
            key_id: known.sealer.key_id().to_owned(),
            certificate: known.credential.certificate().der().to_vec(),
        };
        self.known.iter().map(seal).collect()
    }

    /// Whether requests would not notice a change from `earlier`.
    pub(super) fn is_like(&self, earlier: &Self) -> bool {
        let upstream = |line: &Self| line.upstream.as_ref().map(Arc::as_ptr);
        let seal = |line: &Self| Some(Arc::as_ptr(&line.known.get(line.active.as_ref()?)?.credential));
        (upstream(self), seal(self), self.is_usable) == (upstream(earlier), seal(earlier), earlier.is_usable)
    }

    /// Whether another seal's time has come, or a certificate's has ended.
    pub(super) fn has_aged(&self, config: &Config, now: SystemTime) -> bool {
        self.choose(config, now) != self.active || self.leads(config, now) != self.is_usable
    }

    /// Whether there is a certificate to present, and one to seal with where that is needed.
    fn leads(&self, config: &Config, now: SystemTime) -> bool {
        let is_valid = |qwac: &Arc<Qwac>| qwac.certificate().validity_at(now) == Validity::Valid;
        self.upstream.is_some()
            && self.qwac.as_ref().is_some_and(is_valid)
            && !self.stopped.contains(QWAC)
            && (!self.seals || self.choose(config, now).is_some())
    }

    /// The seal to use: of those whose time has come and whose certificate is valid, the one that came last.
    fn choose(&self, config: &Config, now: SystemTime) -> Option<String> {
        let usable = config.registrations.iter().filter(|registration| {
            let known = self.known.get(&registration.seal);
            let valid = |known: &Known| known.credential.certificate().validity_at(now) == Validity::Valid;
            registration.from.is_some_and(|from| from <= now)
                && known.is_some_and(valid)
                && !self.stopped.contains(&registration.seal)
        });
        // Of several with the same moment the one that stands last.
        usable.max_by_key(|registration| registration.from).map(|registration| registration.seal.clone())
    }
}

impl Drawn {
    /// The connections: those of the generation before, where nothing that they depend on has changed.
    fn connect(&mut self, file: &Path, key: &impl Fn(&str) -> String, earlier: Option<&Line>, now: SystemTime) {
        let line = &mut self.line;
        let Some(qwac) = &line.qwac else { return };
        let same = earlier.filter(|earlier| {
            Arc::ptr_eq(&earlier.destination, &line.destination)
                && earlier.qwac.as_ref().is_some_and(|earlier| Arc::ptr_eq(earlier, qwac))
                && earlier.marks == line.marks
        });
        if let Some(upstream) = same.and_then(|same| same.upstream.clone()) {
            line.upstream = Some(upstream);
            return;
        }
        match Upstream::new(Arc::clone(&line.destination), qwac.resolver(), qwac.at_token(), now) {
            Ok(upstream) => line.upstream = Some(Arc::new(upstream)),
            Err(error) => {
                let (setting, hint) = match &error {
                    SetupError::Name(_) => ("url", "give the host name that stands in the bank's certificate"),
                    SetupError::Trust(error) => (error.setting(), error.hint()),
                    SetupError::Credentials(error) => ("via.credentials", error.hint()),
                    SetupError::Thread(_) => ("identity", "let this process have more threads"),
                };
                self.findings.push(Finding::error(file, key(setting), error.to_string()).hint(hint));
                self.is_faulty = true;
                // What works goes on.
                if let Some(earlier) = earlier {
                    line.qwac.clone_from(&earlier.qwac);
                    line.marks = earlier.marks.clone();
                    line.upstream.clone_from(&earlier.upstream);
                }
            }
        }
    }

    /// The seals: what is held takes the place of what the bank knows only where it is known to know it too.
    fn adopt(
        &mut self,
        file: &Path,
        key: &impl Fn(&str) -> String,
        config: &Config,
        holding: &Holding,
        earlier: Option<(&Line, &Config)>,
    ) {
        let listed = |name: &String| config.registrations.iter().find(|registration| registration.seal == *name);
        for (name, credential) in &holding.seals {
            let Some(registration) = listed(name) else {
                self.stage(file, key, name, credential, "the bank does not know it: `seal_keys` does not list it");
                continue;
            };
            let before = earlier.filter(|(_, before)| before.identity == config.identity);
            let before = before.and_then(|(line, _)| line.known.get(name));
            let kept = before.filter(|before| !may_follow(before, registration, credential));
            let used = kept.map_or(credential, |kept| &kept.credential);
            if kept.is_some() {
                let reason = "its file has changed, and the bank knows the certificate that was there before";
                self.stage(file, key, name, credential, reason);
            } else if registration.from.is_none() {
                self.stage(file, key, name, credential, "`seal_keys` says that it is not registered yet");
            }
            let profile = Profile { key_id: registration.key_id.clone(), ..config.profile.clone() };
            match Sealer::new(&profile, used) {
                Ok(sealer) => {
                    self.judge_key_id(file, key, registration, used);
                    let (credential, sealer) = (Arc::clone(used), Arc::new(sealer));
                    let known = Known { registration: registration.clone(), credential, sealer };
                    self.line.known.insert(name.clone(), known);
                }
                Err(error) => self.refuse_sealer(file, key, config, &error),
            }
        }
    }

    fn judge_key_id(&mut self, file: &Path, key: &impl Fn(&str) -> String, known: &Registration, used: &Credential) {
        let key_id = known.key_id.as_ref();
        let issue = key_id.and_then(|key_id| preflight::judge_key_id(key_id, used.certificate()));
        self.findings.extend(issue.map(|issue| finding(file, key("key_id"), "", issue)));
    }

    /// The seals in use may be older than those in the files, which are judged where they are read.
    fn judge_seals(&mut self, file: &Path, key: &impl Fn(&str) -> String, now: SystemTime) {
        let soon = now + EXPIRES_SOON;
        if let Some(known) = self.line.active.as_ref().and_then(|active| self.line.known.get(active))
            && known.credential.certificate().not_after() < soon
            && self.line.staged.iter().any(|staged| Some(&staged.name) == self.line.active.as_ref())
        {
            let end = timestamp(known.credential.certificate().not_after());
            let reason = format!("the seal in use ends on {end}, and its successor lies staged");
            let hint = "register the successor's key with the bank, then say so in `seal_keys` or `key_id`";
            self.findings.push(Finding::warning(file, key("seal_keys"), reason).hint(hint).code("expires-soon"));
        }
        if self.line.seals && self.line.active.is_none() && !self.line.known.is_empty() {
            let reason = "no seal is registered, valid and due now: the sealed routes cannot be used";
            let hint = "see `registered` and `active_from`, and the ends of the certificates";
            self.findings.push(Finding::error(file, key("seal_keys"), reason).hint(hint).code("no-seal"));
        }
    }

    /// The QWAC or, if that is beyond suspicion, a seal.
    fn judge_environment(&mut self, file: &Path, key: &impl Fn(&str) -> String, config: &Config) {
        let is_production = config.environment == Environment::Production;
        let qwac = self.line.qwac.iter().map(|qwac| qwac.certificate());
        let mut used = qwac.chain(self.line.known.values().map(|known| known.credential.certificate()));
        let issue = used.find_map(|certificate| preflight::judge_environment(certificate, is_production));
        self.findings.extend(issue.map(|issue| finding(file, key("environment"), "", issue)));
    }

    fn refuse_sealer(&mut self, file: &Path, key: &impl Fn(&str) -> String, config: &Config, error: &SealError) {
        let (key, hint) = match error {
            SealError::NoLabel { .. } => {
                (format!("identities.{}.qsealc.key", config.identity), "this bank takes seals of RSA keys")
            }
            SealError::KeyId { .. } => {
                self.is_faulty = true;
                (key("key_id"), "give the key id exactly as the bank returned it")
            }
        };
        self.findings.push(Finding::error(file, key, error.to_string()).hint(hint));
    }

    fn stage(
        &mut self,
        file: &Path,
        key: &impl Fn(&str) -> String,
        name: &str,
        credential: &Arc<Credential>,
        reason: &'static str,
    ) {
        let fingerprint = credential.certificate().sha1_hex();
        let text = format!("the seal {name} ({fingerprint}) lies ready and is not used: {reason}");
        let hint = "register its key with the bank, then say so in `seal_keys`, with its key_id";
        self.findings.push(Finding::note(file, key("seal_keys"), text).hint(hint));
        self.line.staged.push(Staged { name: name.to_owned(), credential: Arc::clone(credential), reason });
    }
}

/// Whether a certificate may seal in the place of another under the same name. The bank knows keys by what was registered:
/// it may if it is the same, if the configuration now says otherwise than then, or if the bank's name for the key fits.
fn may_follow(before: &Known, registration: &Registration, credential: &Credential) -> bool {
    let (old, new) = (before.credential.certificate(), credential.certificate());
    if old.der() == new.der() {
        return true;
    }
    match &registration.key_id {
        Some(key_id) if is_sha1(key_id) => new.sha1_hex().eq_ignore_ascii_case(key_id),
        // Another name than before: that of the new key.
        Some(_) if before.registration.key_id != registration.key_id => true,
        // The certificate was renewed over the same key, which is what the bank checks seals with.
        Some(_) => old.public_key() == new.public_key(),
        // The key id is made from the certificate: a new one would name a key that the bank has never seen.
        None => false,
    }
}

/// Whether a key id has the form of the SHA-1 of a certificate, which is how the banks name keys.
fn is_sha1(key_id: &str) -> bool {
    key_id.len() == 40 && key_id.bytes().all(|byte| byte.is_ascii_hexdigit())
}
