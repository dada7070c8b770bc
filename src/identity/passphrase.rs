//! Where the passphrase of an encrypted key is, and the passphrase itself: wiped when it is no longer needed, and in no
//! message. Must not know what it opens.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;
use zeroize::{Zeroize as _, Zeroizing};

/// Where a passphrase is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassphraseSource {
    /// In a file, alone; the line's end does not belong to it.
    File(PathBuf),
    /// In an environment variable.
    Variable(String),
}

impl PassphraseSource {
    /// Reads it.
    pub fn read(&self) -> Result<Passphrase, PassphraseError> {
        let text = match self {
            Self::File(path) => {
                // Whoever opens a pipe waits for its writer.
                let is_file = std::fs::metadata(path).map_err(PassphraseError::Unreadable)?.is_file();
                if !is_file {
                    return Err(PassphraseError::Unreadable(io::ErrorKind::InvalidInput.into()));
                }
                let mut bytes = Zeroizing::new(std::fs::read(path).map_err(PassphraseError::Unreadable)?);
                let text = String::from_utf8(std::mem::take(&mut *bytes)).map_err(|error| {
                    error.into_bytes().zeroize();
                    PassphraseError::NotText
                })?;
                Zeroizing::new(text)
            }
            Self::Variable(name) => match std::env::var(name) {
                Ok(text) => Zeroizing::new(text),
                Err(_) => return Err(PassphraseError::Unset),
            },
        };
        let passphrase = text.trim_end_matches(['\r', '\n']);
        if passphrase.is_empty() {
            return Err(PassphraseError::Empty);
        }
        Ok(Passphrase(Zeroizing::new(passphrase.to_owned())))
    }
}

impl fmt::Display for PassphraseSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Variable(name) => write!(f, "the environment variable {name}"),
        }
    }
}

/// What opens an encrypted key.
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// Why there is no passphrase.
#[derive(Debug, Error)]
pub enum PassphraseError {
    /// Its file.
    #[error("the passphrase cannot be read")]
    Unreadable(#[source] io::Error),
    /// Something else than text.
    #[error("the passphrase is not UTF-8")]
    NotText,
    /// The variable is not there, or not text.
    #[error("the environment variable of the passphrase is not set")]
    Unset,
    /// Nothing, or a line's end alone.
    #[error("the passphrase is empty")]
    Empty,
}

impl PassphraseError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "name a file with the passphrase alone, readable to the user that runs sealproxy",
            Self::NotText | Self::Empty => "write the passphrase alone, as UTF-8",
            Self::Unset => "set it where the process is started, or name a file",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_is_the_file_without_its_line_end_and_never_shown() {
        let file = std::env::temp_dir().join(format!("sealproxy-passphrase-{}", std::process::id()));
        let source = PassphraseSource::File(file.clone());
        assert!(matches!(source.read(), Err(PassphraseError::Unreadable(_))));
        for (bytes, expected) in [
            (&b"hunter2 \r\n"[..], Some("hunter2 ")),
            (b"\n", None),
            (b"", None),
            (b"\xff\xfe", None),
            ("é".as_bytes(), Some("é")),
        ] {
            std::fs::write(&file, bytes).unwrap();
            let read = source.read();
            assert_eq!(read.as_ref().ok().map(Passphrase::expose), expected);
            assert!(!format!("{read:?}").contains("hunter2"));
        }
        std::fs::remove_file(file).unwrap();
        assert!(matches!(PassphraseSource::Variable("SEALPROXY_NO_SUCH".into()).read(), Err(PassphraseError::Unset)));
    }
}
