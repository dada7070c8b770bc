//! `/status`: who we are at present, for people and for scripts. Certificates are public; nothing of a key is here.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;

use super::generation::Generation;
use super::holding::Holding;
use super::line::Line;
use super::revocation::Records;
use crate::config::{Finding, Upstream as Config};
use crate::identity::certificate::Certificate;
use crate::log::timestamp;

/// The page.
#[derive(Serialize)]
pub(super) struct Status<'a> {
    version: &'static str,
    configuration: String,
    /// Counts what has been put in place since the start.
    generation: u64,
    since: String,
    last_reload: Option<&'a Reload>,
    identities: BTreeMap<&'a str, Identity<'a>>,
    upstreams: BTreeMap<&'a str, Upstream<'a>>,
}

/// The last look at the files, or at the configuration, that found something new.
#[derive(Clone, Serialize)]
pub(super) struct Reload {
    pub(super) time: String,
    pub(super) event: &'static str,
    pub(super) trigger: Trigger,
    /// `applied`; `refused`; `staged`: a seal lies ready, or no more; `restored`: the files hold again what is in use;
    /// `unchanged`: a configuration that says the same.
    pub(super) result: &'static str,
    pub(super) findings: Vec<String>,
}

/// Why somebody looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Trigger {
    /// The files of keys, certificates and lists have changed, or are to be tried again.
    Files,
    /// Somebody asked that the configuration be read anew.
    Configuration,
    /// A certificate's time has come or gone.
    Time,
    /// A certificate was revoked.
    Revocation,
}

#[derive(Serialize)]
struct Identity<'a> {
    usable: bool,
    qwac: Option<Facts<'a>>,
    seals: BTreeMap<&'a str, Facts<'a>>,
    /// By certificate; empty where nobody looks.
    revocation: BTreeMap<String, Verdict>,
    /// What is wrong with the files as they are now; what is in use may be older and sound.
    findings: Vec<String>,
}

/// Whether a certificate has been revoked, as far as is known.
#[derive(Serialize)]
struct Verdict {
    /// `good`, `revoked` or `unknown`.
    verdict: &'static str,
    checked: Option<String>,
    failure: Option<String>,
}

#[derive(Serialize)]
struct Facts<'a> {
    subject: &'a str,
    organization_identifier: Option<&'a str>,
    issuer: &'a str,
    serial: String,
    not_before: String,
    not_after: String,
    sha1: String,
    sha256: String,
}

#[derive(Serialize)]
struct Upstream<'a> {
    usable: bool,
    identity: &'a str,
    url: String,
    /// The QWAC that is presented there.
    qwac_sha256: Option<String>,
    seal: Option<Seal<'a>>,
    staged: Vec<Staged<'a>>,
    /// What is wrong with the settings and files that are the upstream's own.
    findings: Vec<String>,
}

#[derive(Serialize)]
struct Seal<'a> {
    name: &'a str,
    key_id: &'a str,
    key: &'static str,
    not_after: String,
    sha256: String,
}

#[derive(Serialize)]
struct Staged<'a> {
    name: &'a str,
    sha1: String,
    not_after: String,
    reason: &'a str,
}

impl<'a> Status<'a> {
    /// The page as of `now`, of the `number`th generation, which is in place `since`.
    pub(super) fn new(
        generation: &'a Generation,
        verdicts: &Records,
        number: u64,
        since: SystemTime,
        last_reload: Option<&'a Reload>,
        now: SystemTime,
    ) -> Self {
        let identity = |(name, holding): (&'a String, &'a Holding)| {
            let findings = holding.findings.iter().chain(generation.revoked(name));
            (name.as_str(), Identity::new(name, holding, findings, verdicts, generation.is_usable(name, now)))
        };
        let upstream = |(name, line): (&'a String, &'a Line)| {
            Some((name.as_str(), Upstream::new(line, generation.config.upstreams.get(name)?)))
        };
        Self {
            version: env!("CARGO_PKG_VERSION"),
            configuration: generation.config.file.display().to_string(),
            generation: number,
            since: timestamp(since),
            last_reload,
            identities: generation.holdings.iter().map(identity).collect(),
            upstreams: generation.lines.iter().filter_map(upstream).collect(),
        }
    }

    /// The page's text.
    pub(super) fn render(&self) -> String {
        serde_json::to_string_pretty(self).expect("a page is plain strings") + "\n"
    }
}

impl<'a> Identity<'a> {
    fn new(
        name: &str,
        holding: &'a Holding,
        findings: impl Iterator<Item = &'a Finding>,
        verdicts: &Records,
        usable: bool,
    ) -> Self {
        let revocation = verdicts.of_identity(name).into_iter().map(|(part, record)| {
            let (verdict, checked) = (record.word(), record.checked.map(timestamp));
            (part.to_owned(), Verdict { verdict, checked, failure: record.failure.clone() })
        });
        Self {
            usable,
            revocation: revocation.collect(),
            qwac: holding.qwac.as_ref().map(|qwac| Facts::new(qwac.certificate())),
            seals: holding.seals.iter().map(|(name, seal)| (name.as_str(), Facts::new(seal.certificate()))).collect(),
            findings: findings.map(Finding::to_string).collect(),
        }
    }
}

impl<'a> Facts<'a> {
    fn new(certificate: &'a Certificate) -> Self {
        Self {
            subject: certificate.subject(),
            organization_identifier: certificate.organization_identifier(),
            issuer: certificate.issuer(),
            serial: certificate.serial_hex(),
            not_before: timestamp(certificate.not_before()),
            not_after: timestamp(certificate.not_after()),
            sha1: certificate.sha1_hex(),
            sha256: certificate.sha256_hex(),
        }
    }
}

impl<'a> Upstream<'a> {
    fn new(line: &'a Line, config: &'a Config) -> Self {
        let seal = |name: &'a String| {
            let known = line.known.get(name)?;
            let certificate = known.credential.certificate();
            Some(Seal {
                name,
                key_id: known.sealer.key_id(),
                key: known.credential.key().backend(),
                not_after: timestamp(certificate.not_after()),
                sha256: certificate.sha256_hex(),
            })
        };
        let staged = line.staged.iter().map(|staged| Staged {
            name: &staged.name,
            sha1: staged.credential.certificate().sha1_hex(),
            not_after: timestamp(staged.credential.certificate().not_after()),
            reason: staged.reason,
        });
        Self {
            usable: line.is_usable,
            identity: &config.identity,
            url: format!("https://{}", config.settings.origin),
            qwac_sha256: line.qwac.as_ref().map(|qwac| qwac.certificate().sha256_hex()),
            seal: line.active.as_ref().and_then(seal),
            staged: staged.collect(),
            findings: line.findings.iter().map(Finding::to_string).collect(),
        }
    }
}
