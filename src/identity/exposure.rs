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
        KeySource::Token(token) => token.uri.pin.as_deref(),
    };
    let passphrase = match &pair.passphrase {
        Some(PassphraseSource::File(path)) => Some(path.as_path()),
        _ => None,
    };
    key.map(|path| ("key", path)).into_iter().chain(passphrase.map(|path| ("passphrase", path)))
}

/// The group is how Kubernetes gives a secret to a user that is not root.
fn is_exposed(mode: u32) -> bool {
    mode & 0o004 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_may_read_and_others_may_not() {
        for (mode, exposed) in
            [(0o600, false), (0o400, false), (0o440, false), (0o640, false), (0o644, true), (0o404, true)]
        {
            assert_eq!(is_exposed(mode), exposed, "{mode:o}");
        }
    }
}
