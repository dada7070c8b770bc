//! `identities.NAME.revocation`: how the certificates of one identity are checked for revocation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::finding::Fault;
use super::identities::path;
use super::quantity::{boolean, duration};
use super::section::{Section, Value};
use super::upstreams::via;
use crate::identity::revocation::{ResponderUrl, UrlError};
use crate::upstream::Via;

pub(super) const KEYS: [&str; 5] = ["crl", "ocsp", "every", "via", "stops"];

/// What tells whether the certificates of an identity have been revoked, and what follows. At least one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Files with CRLs, read anew for each check.
    pub crl: Vec<PathBuf>,
    /// Who is asked.
    pub ocsp: Ocsp,
    /// From one check to the next: at least a minute.
    pub every: Duration,
    /// The company's proxy that leads to the responder; `None`: directly.
    pub via: Option<Via>,
    /// Whether an identity that is revoked is used no more.
    pub stops: bool,
}

/// Which OCSP responder is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ocsp {
    /// None.
    Off,
    /// The one that each certificate names.
    Named,
    /// This one, for all certificates of the identity.
    At(ResponderUrl),
}

/// The settings of the identities that have some and name a source.
pub(super) fn revocations(root: &Section<'_>, folder: &Path) -> BTreeMap<String, Revocation> {
    // What is wrong with `identities` itself has been reported by who reads the rest of it.
    let identities = root.value("identities").filter(Value::is_map).map(|value| value.named()).unwrap_or_default();
    let settings = identities.iter().filter(|(_, identity)| identity.is_map()).filter_map(|(name, identity)| {
        let (_, value) = identity.named().into_iter().find(|(key, _)| *key == "revocation")?;
        Some(((*name).to_owned(), revocation(&value, folder)?))
    });
    settings.collect()
}

/// `None`: an error was reported, or there is nothing to check with.
fn revocation(value: &Value<'_>, folder: &Path) -> Option<Revocation> {
    let section = value.section(&KEYS)?;
    let files = section.value("crl").map(|value| value.items_or_one()).unwrap_or_default();
    let crl: Vec<_> = files.iter().filter_map(|file| file.text(|text| path(text, folder))).collect();
    let every = section.quantity("every", Duration::from_secs(3600), every);
    let via = section.value("via").and_then(|value| via(&value, folder));
    let stops = section.quantity("stops", false, boolean);
    let ocsp = section.value("ocsp").map_or(Some(Ocsp::Off), |value| value.quantity(ocsp))?;
    if !files.is_empty() || ocsp != Ocsp::Off {
        return Some(Revocation { crl, ocsp, every, via, stops });
    }
    let hint = "name CRL files in `crl`, or write `ocsp: true`";
    if let Some(stops) = section.value("stops").filter(|_| stops) {
        stops.refuse(Fault::new("has nothing to go by: no revocation is looked for").code("conflict").hint(hint));
    } else if section.value("ocsp").is_none() && !section.report.has_errors() {
        // Whoever writes `ocsp: false` has it off on purpose, and a source that is spelt wrong was told.
        let fault = Fault::new("names no source, and no revocation is looked for");
        section.report.warning(&value.key, fault.code("no-revocation-source").hint(hint));
    }
    None
}

fn ocsp(text: &str) -> Result<Ocsp, Fault> {
    let hint = "write true for the responder that the certificate names, false, or http://HOST/PATH";
    match text {
        "true" => Ok(Ocsp::Named),
        "false" => Ok(Ocsp::Off),
        url => url.parse().map(Ocsp::At).map_err(|error: UrlError| {
            let fault = Fault::new(error.to_string()).hint(hint);
            if error == UrlError::UserInfo { fault.hidden() } else { fault }
        }),
    }
}

fn every(text: &str) -> Result<Duration, Fault> {
    match duration(text)? {
        every if every < MIN_EVERY => {
            Err(Fault::new("is shorter than a minute").hint("responders answer for hours: 1h is usual"))
        }
        every => Ok(every),
    }
}

const MIN_EVERY: Duration = Duration::from_secs(60);
