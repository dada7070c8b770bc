//! Files with secrets that everybody on the machine may read or write. Judged is the file that a path leads to:
//! Kubernetes' secrets are links.

use std::fs::Metadata;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::{KeySource, Pair, PassphraseSource, Settings};

/// A file with a secret that users other than its owner and group may read or write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// The pair that it belongs to, and what it is to it: `qwac.key`.
    pub setting: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its permissions, as chmod(1) writes them.
    pub mode: u32,
}

impl Exposed {
    /// What every user may do with the file.
    pub fn leave(&self) -> &'static str {
        match self.mode & 0o006 {
            0o002 => "write",
            0o004 => "read",
            _ => "read and write",
        }
    }
}

/// The files of an identity that are so. What cannot be looked at, or is no file, is somebody else's finding.
pub fn exposed(settings: &Settings) -> Vec<Exposed> {
    let secrets = settings.pairs().flat_map(|pair| secrets(pair).map(move |(name, path)| (pair, name, path)));
    let judged = secrets.filter_map(|(pair, name, path)| {
        let mode = std::fs::metadata(path).ok().filter(Metadata::is_file)?.permissions().mode() & 0o7777;
        let setting = format!("{}.{name}", pair.setting);
        is_exposed(mode).then(|| Exposed { setting, path: path.to_owned(), mode })
    });
    judged.collect()
}

fn secrets(pair: &Pair) -> impl Iterator<Item = (&'static str, &Path)> {
    let key = match &pair.key {
        KeySource::File(path) => Some(path.as_path()),
        KeySource::Bundle => Some(pair.certificate.as_path()),
        KeySource::Token(token) => token.uri.pin.as_deref(),
    };
    let passphrase = match &pair.passphrase {
        Some(PassphraseSource::File(path)) => Some(path.as_path()),
        _ => None,
    };
    key.map(|path| (pair.key_setting(), path)).into_iter().chain(passphrase.map(|path| ("passphrase", path)))
}

/// The group is how Kubernetes gives a secret to a user that is not root. Whoever may write a key need not read it: he
/// puts his own there.
fn is_exposed(mode: u32) -> bool {
    mode & 0o006 != 0
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::identity::SealSettings;
    use crate::identity::preflight::Expectations;
    use crate::key::TokenSettings;

    #[test]
    fn the_group_may_read_and_write_and_others_neither() {
        for mode in [0o600, 0o400, 0o440, 0o640, 0o660, 0o771] {
            assert!(!is_exposed(mode), "{mode:o}");
        }
        for (mode, leave) in [(0o644, "read"), (0o404, "read"), (0o602, "write"), (0o606, "read and write")] {
            let exposed = Exposed { setting: String::new(), path: PathBuf::new(), mode };
            assert_eq!((is_exposed(mode), exposed.leave()), (true, leave), "{mode:o}");
        }
    }

    #[test]
    fn every_kind_of_file_with_a_secret_is_judged_and_links_are_followed() {
        let folder = std::env::temp_dir().join(format!("sealproxy-exposure-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = |name: &str, mode: u32| {
            let path = folder.join(name);
            std::fs::write(&path, "secret").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path
        };
        let link = folder.join("link");
        symlink(file("open.key", 0o644), &link).unwrap();
        let token = format!("pkcs11:token=t;object=o?module-path=/m&pin-source={}", file("open.pin", 0o604).display());
        let token = TokenSettings { uri: token.parse().unwrap(), sessions: 1, waiting: 1 };
        let pass = |name, mode| Some(PassphraseSource::File(file(name, mode)));
        let pair = |setting: &str, certificate, key, passphrase| Pair {
            setting: setting.into(),
            certificate,
            key,
            passphrase,
        };
        let seal = |pair| SealSettings { name: "a".into(), pair };
        // Certificates are no secret whoever may write them, and what is not there is no finding.
        let open = || file("open.pem", 0o646);
        let settings = Settings {
            qwac: pair("qwac", open(), KeySource::File(link.clone()), pass("shared.pass", 0o660)),
            seals: vec![
                seal(pair("qsealc[0]", file("open.p12", 0o442), KeySource::Bundle, pass("open.pass", 0o606))),
                seal(pair("qsealc[1]", open(), KeySource::Token(token), None)),
                seal(pair("qsealc[2]", open(), KeySource::File(folder.join("gone")), None)),
            ],
            expectations: Expectations::default(),
            allow_subject_change: false,
        };
        let found = exposed(&settings);
        let found: Vec<_> = found.iter().map(|it| (it.setting.as_str(), &it.path, it.mode)).collect();
        let at = |name: &str| folder.join(name);
        assert_eq!(
            found,
            [
                ("qwac.key", &link, 0o644),
                ("qsealc[0].pkcs12", &at("open.p12"), 0o442),
                ("qsealc[0].passphrase", &at("open.pass"), 0o606),
                ("qsealc[1].key", &at("open.pin"), 0o604),
            ]
        );
        std::fs::remove_dir_all(folder).unwrap();
    }
}
