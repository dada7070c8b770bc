//! What each bank was said to know and what it was shown, and what may take the place of that: banks take only keys
//! that were registered with them. Outlives every change of the configuration. Must not know connections.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::line::Line;
use crate::config::{Registration, Upstream as Config};
use crate::identity::certificate::{Certificate, Fingerprint, Validity};
use crate::identity::{Credential, preflight};
use crate::seal::Sealer;
use crate::upstream::Origin;

/// A seal that is registered at the bank.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) registration: Registration,
    /// Whether its time has come with this key. From then on the bank knows it, whatever a clock or a configuration
    /// says later.
    pub(super) was_due: bool,
    /// Where its certificate was read.
    pub(super) place: PathBuf,
    pub(super) credential: Arc<Credential>,
    pub(super) sealer: Arc<Sealer>,
    /// The certificates that the bank was said to know before it, in the same place.
    pub(super) earlier: BTreeSet<Fingerprint>,
}

impl Known {
    /// Whether another file needs more than its being there: the configuration says that the bank knows this one, and
    /// its time has come.
    pub(super) fn is_settled(&self) -> bool {
        self.was_due && self.registration.from.is_some()
    }

    /// Whether it is the one whose fingerprint is the key id.
    pub(super) fn is_named(&self, registration: &Registration) -> bool {
        let is_own =
            |key_id: &String| preflight::is_fingerprint(key_id) && names(key_id, self.credential.certificate());
        registration.key_id.as_ref().is_some_and(is_own)
    }

    /// All that the bank was said to know before `next`.
    pub(super) fn until(&self, next: &Credential) -> BTreeSet<Fingerprint> {
        let mut earlier = self.earlier.clone();
        // What waits is not known yet.
        if self.is_settled() {
            earlier.insert(self.credential.certificate().id());
        }
        earlier.remove(&next.certificate().id());
        earlier
    }
}

/// What each bank was said to know and what it was shown, whatever became of the upstreams since: a seal must not go
/// live, nor another subject be presented, because its upstream or its identity has another name, or was away for a
/// while.
#[derive(Clone, Default)]
pub(super) struct Pins {
    seals: Vec<Pin<Known>>,
    /// The QWAC that was presented last.
    shown: Vec<Pin<Certificate>>,
}

#[derive(Clone)]
struct Pin<T> {
    upstream: String,
    origin: Origin,
    /// Whether there is still an upstream of this name at this bank.
    is_present: bool,
    what: T,
}

impl Pins {
    /// As a configuration sees them.
    pub(super) fn under(mut self, upstreams: &BTreeMap<String, Config>) -> Self {
        let is_there =
            |name: &str, origin: &Origin| upstreams.get(name).is_some_and(|it| it.settings.origin == *origin);
        self.seals.iter_mut().for_each(|pin| pin.is_present = is_there(&pin.upstream, &pin.origin));
        self.shown.iter_mut().for_each(|pin| pin.is_present = is_there(&pin.upstream, &pin.origin));
        self
    }

    /// With what the lines say by now.
    pub(super) fn with<'a>(mut self, lines: impl Iterator<Item = (&'a String, &'a Line)>) -> Self {
        for (upstream, line) in lines {
            let origin = line.origin();
            for known in line.known.values() {
                self.seals.retain(|pin| !(pin.is(upstream, origin) && pin.what.place == known.place));
                self.seals.push(Pin::new(upstream, origin, known.clone()));
            }
            if let Some(qwac) = line.qwac.as_ref().filter(|_| line.is_usable) {
                self.shown.retain(|pin| !pin.is(upstream, origin));
                self.shown.push(Pin::new(upstream, origin, qwac.certificate().clone()));
            }
        }
        self
    }

    /// What a bank was said to know of a seal, by the file of its certificate: under this upstream, or else under one
    /// that is gone, or else under any.
    pub(super) fn find(
        &self,
        upstream: &str,
        origin: &Origin,
        place: &Path,
        registration: &Registration,
    ) -> Option<&Known> {
        let own = self.seals.iter().filter(|pin| pin.origin == *origin && pin.what.place == *place);
        let rank = |pin: &&Pin<Known>| {
            let is_named = pin.what.registration.key_id == registration.key_id;
            (pin.upstream == upstream, !pin.is_present, is_named)
        };
        own.max_by_key(rank).map(|pin| &pin.what)
    }

    /// What a bank was shown last: by this upstream, or else by those that are gone. Another one that is still there
    /// may be another client of the same bank.
    pub(super) fn shown(&self, upstream: &str, origin: &Origin) -> Vec<&Certificate> {
        let own = self.shown.iter().find(|pin| pin.is(upstream, origin));
        let gone = self.shown.iter().filter(|pin| own.is_none() && pin.origin == *origin && !pin.is_present);
        own.into_iter().chain(gone).map(|pin| &pin.what).collect()
    }
}

impl<T> Pin<T> {
    fn new(upstream: &str, origin: &Origin, what: T) -> Self {
        Self { upstream: upstream.to_owned(), origin: origin.clone(), is_present: true, what }
    }

    fn is(&self, upstream: &str, origin: &Origin) -> bool {
        self.upstream == upstream && self.origin == *origin
    }
}

/// What seals under a name, and by which name the bank knows it.
pub(super) struct Succession {
    pub(super) used: Arc<Credential>,
    pub(super) key_id: Option<String>,
    /// Why what is held is not what is used.
    pub(super) reason: Option<&'static str>,
}

/// Whether a certificate may seal in the place of another under the same name. The bank knows keys by what was
/// registered: it may if the bank knew none yet, if it is the same, if the configuration now says otherwise than then,
/// or if the bank's name for the key fits. A key id goes with its certificate: one that was written down ahead of the
/// certificate waits for it.
pub(super) fn succession(
    before: Option<&Known>,
    registration: &Registration,
    credential: &Arc<Credential>,
    now: SystemTime,
) -> Succession {
    let taken = || Succession { used: Arc::clone(credential), key_id: registration.key_id.clone(), reason: None };
    let Some(before) = before else { return taken() };
    let (old, new) = (before.credential.certificate(), credential.certificate());
    let is_meant = before.is_named(registration);
    // What was not registered yet, or never due, has sealed nothing: it is whatever lies on disk, as for a process that
    // starts, unless the key id says that it is the one before.
    if !before.is_settled() && !is_meant {
        return taken();
    }
    let is_same = old.der() == new.der();
    let is_renamed = before.registration.key_id != registration.key_id;
    // Some banks' own names look like fingerprints and are none.
    let is_other =
        before.registration.key_id.as_ref().is_some_and(|known| preflight::is_fingerprint(known) && !names(known, old));
    let fits = match &registration.key_id {
        Some(key_id) if names(key_id, new) => true,
        Some(key_id) if preflight::is_fingerprint(key_id) && !is_other => is_same && !is_renamed,
        // Another name than before is that of a new key, and the same name that of the same key: the bank checks seals
        // with the key, over which the certificate may have been renewed.
        Some(_) => {
            if is_renamed {
                !is_same
            } else {
                old.public_key() == new.public_key()
            }
        }
        // The key id is made from the certificate: a new one would name a key that the bank has never seen. One that it
        // has seen may come back with the settings that it came with.
        None => is_same || (is_renamed && before.earlier.contains(&new.id())),
    };
    let is_early = !is_same && new.validity_at(now) != Validity::Valid && old.validity_at(now) == Validity::Valid;
    if fits && !is_early {
        return taken();
    }
    let (used, own) = (Arc::clone(&before.credential), registration.key_id.clone());
    let key_id = own.filter(|_| is_meant).or(before.registration.key_id.clone());
    let reason = match (is_same, fits) {
        (true, _) => None,
        (false, true) => Some(EARLY),
        (false, false) => Some("its file has changed, and the bank knows the certificate that was there before"),
    };
    Succession { used, key_id, reason }
}

/// Why a successor waits that the bank knows.
pub(super) const EARLY: &str = "the bank knows it, and it is not valid now";

/// Whether the bank knows another certificate than this one under the key id, if key ids are what they look like.
pub(super) fn is_of_another(registration: &Registration, credential: &Credential) -> bool {
    let key_id = registration.key_id.as_ref();
    key_id.is_some_and(|key_id| preflight::is_fingerprint(key_id) && !names(key_id, credential.certificate()))
}

fn names(key_id: &str, certificate: &Certificate) -> bool {
    certificate.sha1_hex().eq_ignore_ascii_case(key_id)
}
