//! `identities`: where certificates and keys are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::finding::Fault;
use super::quantity::{boolean, whole};
use super::section::{Section, Value, distinct};
use crate::identity::preflight::Expectations;
use crate::identity::qcstatements::Role;
use crate::identity::{KeySource, Pair, PassphraseSource, SealSettings, Settings};
use crate::key::TokenSettings;
use crate::key::uri::{self, TokenUri};

pub(super) const KEYS: [&str; 6] = ["qwac", "qsealc", "authorisation", "roles", "allow_subject_change", "revocation"];
/// As people say them, and as certificates do (TS 119 495).
const ROLES: [(&str, Role); 8] = [
    ("AISP", Role::AccountInformation),
    ("PISP", Role::PaymentInitiation),
    ("CBPII", Role::CardIssuing),
    ("ASPSP", Role::AccountServicing),
    ("PSP_AI", Role::AccountInformation),
    ("PSP_PI", Role::PaymentInitiation),
    ("PSP_IC", Role::CardIssuing),
    ("PSP_AS", Role::AccountServicing),
];
pub(super) const PAIR_KEYS: [&str; 5] = ["certificate", "key", "pkcs12", "passphrase", "sessions"];
pub(super) const PASSPHRASE_KEYS: [&str; 2] = ["file", "env"];
pub(super) const SEAL_KEYS: [&str; 6] = ["name", "certificate", "key", "pkcs12", "passphrase", "sessions"];

/// The identities that are legal, and the names of all. `waiting` signatures may wait for a key on a token.
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
    for (name, value) in &entries {
        if !is_name(name) {
            value.refuse(Fault::new("is not a name").hint(NAME_HINT));
        }
    }
    entries
}

/// Whether a text can stand in metrics and logs.
fn is_name(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(legal)
}

const NAME_HINT: &str = "write 1 to 64 of the characters a-z, A-Z, 0-9, `_` and `-`";

fn identity(value: &Value<'_>, folder: &Path, waiting: usize) -> Option<Settings> {
    let section = value.section(&KEYS)?;
    let qwac = qwac(&section, folder, waiting);
    let seals = seals(&section, folder, waiting);
    let expectations = Expectations {
        authorisation: section.value("authorisation").and_then(|value| value.text(authorisation)),
        roles: section.value("roles").map(|value| roles(&value)).unwrap_or_default(),
        needed: Vec::new(),
    };
    let allow_subject_change = section.quantity("allow_subject_change", false, boolean);
    Some(Settings { qwac: qwac?, seals: seals?, expectations, allow_subject_change })
}

/// An organizationIdentifier (EN 319 412-1 section 5.1.4), such as `PSDFR-ACPR-12345`.
fn authorisation(text: &str) -> Result<String, Fault> {
    let (head, rest) = text.split_once('-').unwrap_or_default();
    let legal = head.len() == 5 && head.bytes().all(|byte| byte.is_ascii_uppercase()) && !rest.is_empty();
    if legal {
        Ok(text.to_owned())
    } else {
        Err(Fault::new("is not an organizationIdentifier")
            .hint("write it as in the certificates, such as PSDFR-ACPR-12345"))
    }
}

fn roles(value: &Value<'_>) -> Vec<Role> {
    distinct(&value.items(), "role", |item| item.choice("role", &ROLES))
}

fn qwac(section: &Section<'_>, folder: &Path, waiting: usize) -> Option<Pair> {
    let hint = "name the certificate and the key that are presented on the TLS connection";
    let section = section.required("qwac", hint)?.section(&PAIR_KEYS)?;
    pair(&section, "qwac".into(), folder, waiting)
}

/// One seal, or a list of them, each under a name of its own.
fn seals(section: &Section<'_>, folder: &Path, waiting: usize) -> Option<Vec<SealSettings>> {
    let hint = "name the certificate and the key that sign the requests";
    let value = section.required("qsealc", hint)?;
    if !value.is_list() {
        return Some(vec![seal(&value, "qsealc".into(), folder, waiting)?]);
    }
    let items = value.items();
    if items.is_empty() {
        value.refuse(Fault::new("is empty").hint(hint));
    }
    let seals: Vec<_> = items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| seal(item, format!("qsealc[{index}]"), folder, waiting))
        .collect();
    for (index, seal) in seals.iter().enumerate() {
        if seals[..index].iter().any(|earlier| earlier.name == seal.name) {
            value.refuse(
                Fault::new(format!("two seals have the name {}", seal.name))
                    .code("listed-twice")
                    .hint("give each its own"),
            );
        }
    }
    (seals.len() == items.len()).then_some(seals)
}

fn seal(value: &Value<'_>, setting: String, folder: &Path, waiting: usize) -> Option<SealSettings> {
    let section = value.section(&SEAL_KEYS)?;
    let name = match section.value("name") {
        Some(name) => name.text(seal_name),
        None if setting == ONLY_SEAL => Some(ONLY_SEAL.to_owned()),
        None => section
            .required("name", "give each seal a name, which `seal_keys` of the upstreams refer to")?
            .text(seal_name),
    };
    let pair = pair(&section, setting, folder, waiting);
    Some(SealSettings { name: name?, pair: pair? })
}

/// A certificate and its key, each where it is, or both in a bundle.
fn pair(section: &Section<'_>, setting: String, folder: &Path, waiting: usize) -> Option<Pair> {
    let passphrase = section.value("passphrase").map(|value| passphrase(&value, folder));
    let Some(bundle) = section.value("pkcs12") else {
        let certificate = certificate(section, folder);
        let key = key(section, folder, waiting);
        if let (Some(value), Some(KeySource::Token(_))) = (section.value("passphrase"), &key) {
            value.refuse(
                Fault::new("concerns key files alone: a token has a PIN")
                    .code("conflict")
                    .hint("write pin-source into the URI"),
            );
        }
        let passphrase = passphrase.map_or(Some(None), |passphrase| passphrase.map(Some))?;
        return Some(Pair { setting, certificate: certificate?, key: key?, passphrase });
    };
    for name in ["certificate", "key", "sessions"] {
        if let Some(value) = section.value(name) {
            value.refuse(
                Fault::new("stands beside `pkcs12`, which holds certificate and key")
                    .code("conflict")
                    .hint("take one away"),
            );
        }
    }
    let bundle = bundle.text(|text| path(text, folder));
    if passphrase.is_none() {
        section.required("passphrase", "say where the bundle's passphrase is: a file, or { env: NAME }");
    }
    let (bundle, passphrase) = (bundle?, passphrase??);
    Some(Pair { setting, certificate: bundle, key: KeySource::Bundle, passphrase: Some(passphrase) })
}

/// A file's path, or a map that names a file or an environment variable. Never the passphrase itself.
fn passphrase(value: &Value<'_>, folder: &Path) -> Option<PassphraseSource> {
    if !value.is_map() {
        return value.text(|text| path(text, folder)).map(PassphraseSource::File);
    }
    let section = value.section(&PASSPHRASE_KEYS)?;
    match (section.value("file"), section.value("env")) {
        (Some(file), None) => file.text(|text| path(text, folder)).map(PassphraseSource::File),
        (None, Some(variable)) => variable.text(variable_name).map(PassphraseSource::Variable),
        _ => {
            value.refuse(Fault::new("does not name one place").hint("write { file: PATH }, or { env: NAME }"));
            None
        }
    }
}

fn variable_name(text: &str) -> Result<String, Fault> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if !text.is_empty() && text.bytes().all(legal) && !text.as_bytes()[0].is_ascii_digit() {
        return Ok(text.to_owned());
    }
    // It may be the passphrase.
    Err(Fault::new("is not the name of an environment variable").hint("write its name, without `$`").hidden())
}

/// A key's file, or where it is on a token.
fn key(section: &Section<'_>, folder: &Path, waiting: usize) -> Option<KeySource> {
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
        value.refuse(
            Fault::new("concerns keys on a token alone: a key in memory signs at once")
                .code("conflict")
                .hint("take it away"),
        );
    }
    key
}

/// The name of a seal that is the only one.
const ONLY_SEAL: &str = "qsealc";

fn seal_name(text: &str) -> Result<String, Fault> {
    match text {
        // In metrics the two stand side by side.
        "qwac" => Err(Fault::new("is the name of the other certificate").hint("choose another one")),
        name if is_name(name) => Ok(name.to_owned()),
        _ => Err(Fault::new("is not a name").hint(NAME_HINT)),
    }
}

const DEFAULT_SESSIONS: usize = 4;
const MAX_SESSIONS: usize = 64;
const KEY_HINT: &str = "name the file with the certificate's private key";

fn certificate(section: &Section<'_>, folder: &Path) -> Option<PathBuf> {
    let hint = "name the file with the certificate, followed by its chain";
    section.required("certificate", hint)?.text(|text| path(text, folder))
}

/// A file's path; one that is not absolute begins at the configuration's folder.
pub(super) fn path(text: &str, folder: &Path) -> Result<PathBuf, Fault> {
    // Such a text may be the key itself. It must not stand in a message, here or where the file is not found.
    if text.contains(char::is_control) || text.contains("-----BEGIN") {
        return Err(Fault::new("is not a path").hint("write the PEM text to a file, and name the file").hidden());
    }
    Ok(folder.join(text))
}
