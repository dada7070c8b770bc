//! `identities`: where certificates and keys are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::finding::Fault;
use super::quantity::whole;
use super::section::{Section, Value};
use crate::identity::{Files, KeySource, SealFiles, Settings};
use crate::key::TokenSettings;
use crate::key::uri::{self, TokenUri};

pub(super) const KEYS: [&str; 2] = ["qwac", "qsealc"];
pub(super) const PAIR_KEYS: [&str; 2] = ["certificate", "key"];
pub(super) const SEAL_KEYS: [&str; 3] = ["certificate", "key", "sessions"];

/// The identities that are legal, and the names of all. `waiting` seals may wait for a key on a token.
pub(super) fn identities<'a>(
    root: &Section<'a>,
    folder: &Path,
    waiting: usize,
) -> (BTreeMap<String, Settings>, Vec<&'a str>) {
    let entries = named(root, "identities", "name an identity, with the files of its QWAC and its QSealC");
    let names = entries.iter().map(|(name, _)| *name).collect();
    let legal =
        entries.iter().filter_map(|(name, value)| Some(((*name).to_owned(), identity(value, folder, waiting)?)));
    (legal.collect(), names)
}

/// The entries of a map that must be there and have at least one, with names that can stand in metrics and logs.
pub(super) fn named<'a>(root: &Section<'a>, key: &str, hint: &str) -> Vec<(&'a str, Value<'a>)> {
    let Some(value) = root.required(key, hint) else { return Vec::new() };
    let entries = value.named();
    if entries.is_empty() && value.is_map() {
        value.refuse(Fault::new("is empty").hint(hint));
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    for (name, value) in &entries {
        if !(1..=64).contains(&name.len()) || !name.bytes().all(legal) {
            value
                .refuse(Fault::new("is not a name").hint("write 1 to 64 of the characters a-z, A-Z, 0-9, `_` and `-`"));
        }
    }
    entries
}

fn identity(value: &Value<'_>, folder: &Path, waiting: usize) -> Option<Settings> {
    let section = value.section(&KEYS)?;
    let qwac = qwac(&section, folder);
    let qsealc = qsealc(&section, folder, waiting);
    Some(Settings { qwac: qwac?, qsealc: qsealc? })
}

fn qwac(section: &Section<'_>, folder: &Path) -> Option<Files> {
    let hint = "name the certificate and the key that are presented on the TLS connection";
    let section = section.required("qwac", hint)?.section(&PAIR_KEYS)?;
    let certificate = certificate(&section, folder);
    let key = section.required("key", KEY_HINT)?.text(|text| key_file(text, folder));
    Some(Files { certificate: certificate?, key: key? })
}

fn qsealc(section: &Section<'_>, folder: &Path, waiting: usize) -> Option<SealFiles> {
    let hint = "name the certificate and the key that sign the requests";
    let section = section.required("qsealc", hint)?.section(&SEAL_KEYS)?;
    let certificate = certificate(&section, folder);
    let sessions = section.quantity("sessions", DEFAULT_SESSIONS, |text| whole(text, 1..=MAX_SESSIONS));
    let key = section.required("key", KEY_HINT)?.text(|text| {
        if !text.starts_with(uri::SCHEME) {
            return path(text, folder).map(KeySource::File);
        }
        let uri: TokenUri =
            text.parse().map_err(|error: uri::UriError| Fault::new(error.to_string()).hint(error.hint()).hidden())?;
        Ok(KeySource::Token(TokenSettings { uri, sessions, waiting }))
    });
    if let (Some(value), Some(KeySource::File(_))) = (section.value("sessions"), &key) {
        value.refuse(Fault::new("concerns keys on a token alone: a key in memory signs at once"));
    }
    Some(SealFiles { certificate: certificate?, key: key? })
}

const DEFAULT_SESSIONS: usize = 4;
const MAX_SESSIONS: usize = 64;
const KEY_HINT: &str = "name the file with the certificate's private key";

fn certificate(section: &Section<'_>, folder: &Path) -> Option<PathBuf> {
    let hint = "name the file with the certificate, followed by its chain";
    section.required("certificate", hint)?.text(|text| path(text, folder))
}

fn key_file(text: &str, folder: &Path) -> Result<PathBuf, Fault> {
    if text.starts_with(uri::SCHEME) {
        return Err(
            Fault::new("names a key on a token, which this version uses for the QSealC alone").hint("name a key file")
        );
    }
    path(text, folder)
}

/// A file's path; one that is not absolute begins at the configuration's folder.
pub(super) fn path(text: &str, folder: &Path) -> Result<PathBuf, Fault> {
    // Such a text may be the key itself. It must not stand in a message, here or where the file is not found.
    if text.contains(char::is_control) || text.contains("-----BEGIN") {
        return Err(Fault::new("is not a path").hint("write the PEM text to a file, and name the file").hidden());
    }
    Ok(folder.join(text))
}
