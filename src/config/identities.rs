//! `identities`: where certificates and keys are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::finding::Fault;
use super::section::{Section, Value};
use crate::identity::{Files, Settings};

pub(super) const KEYS: [&str; 2] = ["qwac", "qsealc"];
pub(super) const PAIR_KEYS: [&str; 2] = ["certificate", "key"];

/// The identities that are legal, and the names of all.
pub(super) fn identities<'a>(root: &Section<'a>, folder: &Path) -> (BTreeMap<String, Settings>, Vec<&'a str>) {
    let entries = named(root, "identities", "name an identity, with the files of its QWAC and its QSealC");
    let names = entries.iter().map(|(name, _)| *name).collect();
    let legal = entries.iter().filter_map(|(name, value)| Some(((*name).to_owned(), identity(value, folder)?)));
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

fn identity(value: &Value<'_>, folder: &Path) -> Option<Settings> {
    let section = value.section(&KEYS)?;
    let qwac =
        pair(&section, "qwac", "name the certificate and the key that are presented on the TLS connection", folder);
    let qsealc = pair(&section, "qsealc", "name the certificate and the key that sign the requests", folder);
    Some(Settings { qwac: qwac?, qsealc: qsealc? })
}

fn pair(section: &Section<'_>, key: &str, hint: &str, folder: &Path) -> Option<Files> {
    let section = section.required(key, hint)?.section(&PAIR_KEYS)?;
    let file = |key, hint| section.required(key, hint)?.text(|text| path(text, folder));
    let certificate = file("certificate", "name the file with the certificate, followed by its chain");
    let key = file("key", "name the file with the certificate's private key");
    Some(Files { certificate: certificate?, key: key? })
}

/// A file's path; one that is not absolute begins at the configuration's folder.
pub(super) fn path(text: &str, folder: &Path) -> Result<PathBuf, Fault> {
    // Such a text may be the key itself. It must not stand in a message, here or where the file is not found.
    if text.contains(char::is_control) || text.contains("-----BEGIN") {
        return Err(Fault::new("is not a path").hint("write the PEM text to a file, and name the file").hidden());
    }
    if text.starts_with("pkcs11:") {
        return Err(Fault::new("names a key behind PKCS#11, which this version does not use").hint("name a key file"));
    }
    Ok(folder.join(text))
}
