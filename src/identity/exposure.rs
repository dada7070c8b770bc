//! Files with secrets that everybody on the machine may read. Judged is the file that a path leads to: Kubernetes' secrets
//! are links.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::{KeySource, Pair, PassphraseSource, Settings};

/// A file with a secret that users other than its owner and group may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// The pair that it belongs to, and what it is to it: `qwac.key`.
    pub setting: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its permissions, as chmod(1) writes them.
    pub mode: u32,
}

/// The files of an identity that are so. A file that cannot be looked at is somebody else's finding.
pub fn exposed(settings: &Settings) -> Vec<Exposed> {
    let secrets = settings.pairs().flat_map(|pair| secrets(pair).map(move |(name, path)| (pair, name, path)));
    let judged = secrets.filter_map(|(pair, name, path)| {
        let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o7777;
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

/// The group is how Kubernetes gives a secret to a user that is not root.
fn is_exposed(mode: u32) -> bool {
    mode & 0o004 != 0
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
    fn the_group_may_read_and_others_may_not() {
        for (mode, exposed) in
            [(0o600, false), (0o400, false), (0o440, false), (0o640, false), (0o644, true), (0o404, true)]
        {
            assert_eq!(is_exposed(mode), exposed, "{mode:o}");
        }
    }

    #[test]
    fn every_kind_of_file_with_a_secret_is_judged_and_links_are_followed() {
        let folder = std::env::temp_dir().join(format!("sealproxy-exposure-{}", std::process::id()));
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
        // Certificates are no secret, and what is not there is no finding.
        let open = || file("open.pem", 0o644);
        let settings = Settings {
            qwac: pair("qwac", open(), KeySource::File(link.clone()), pass("shared.pass", 0o640)),
            seals: vec![
                seal(pair("qsealc[0]", file("open.p12", 0o444), KeySource::Bundle, pass("open.pass", 0o606))),
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
                ("qsealc[0].pkcs12", &at("open.p12"), 0o444),
                ("qsealc[0].passphrase", &at("open.pass"), 0o606),
                ("qsealc[1].key", &at("open.pin"), 0o604),
            ]
        );
        std::fs::remove_dir_all(folder).unwrap();
    }
}
