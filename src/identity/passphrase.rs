//! Where the passphrase of an encrypted key is, and the passphrase itself: wiped when it is no longer needed, and in no
//! message. Must not know what it opens.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::files::{self, ReadError};

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
            Self::File(path) => text(path)?,
            Self::Variable(name) => Zeroizing::new(std::env::var(name).map_err(|_| PassphraseError::Unset)?),
        };
        Passphrase::new(text.trim_end_matches(['\r', '\n'])).ok_or(PassphraseError::Empty)
    }

    /// What an error may say of it. Where there is no such file the folders alone that there are: the rest may be the
    /// passphrase.
    pub(super) fn place(&self, error: &PassphraseError) -> String {
        match (self, error) {
            (Self::File(path), PassphraseError::Missing) => match path.ancestors().find(|folder| folder.exists()) {
                Some(there) => format!("below {}", there.display()),
                None => "below the working directory".to_owned(),
            },
            _ => self.to_string(),
        }
    }
}

fn text(path: &Path) -> Result<Zeroizing<String>, PassphraseError> {
    let bytes = files::read(path, LIMIT).map_err(|error| match error {
        ReadError::TooLarge(_) => PassphraseError::TooLong,
        ReadError::Unreadable(error) => PassphraseError::of_file(error),
        error => PassphraseError::Unreadable(error.into()),
    })?;
    let text = std::str::from_utf8(&bytes).map_err(|_| PassphraseError::NotText)?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Bytes of a passphrase's file: nobody types more, and OpenSSL reads no more of a passphrase.
const LIMIT: u64 = 1024;

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
    /// Any text but none.
    pub fn new(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(Zeroizing::new(text.to_owned())))
    }

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
    /// There is no such file: what stands in the configuration may be the passphrase itself.
    #[error("there is no such passphrase file")]
    Missing,
    /// Its file.
    #[error("the passphrase cannot be read")]
    Unreadable(#[source] io::Error),
    /// Another file, in all likelihood.
    #[error("the passphrase is longer than {LIMIT} bytes")]
    TooLong,
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
    fn of_file(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename | io::ErrorKind::NotADirectory => Self::Missing,
            _ => Self::Unreadable(error),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "name a file with the passphrase alone, readable to the user that runs sealproxy",
            Self::Missing => {
                "name a file that holds the passphrase; the passphrase itself never stands in the configuration, so a name \
                 that leads nowhere is not shown"
            }
            Self::NotText | Self::TooLong | Self::Empty => "write the passphrase alone into its file, as UTF-8",
            Self::Unset => "set it where the process is started, or name a file",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_is_the_file_without_its_line_end_and_never_shown() {
        let file = std::env::temp_dir().join(format!("sealproxy-passphrase-{}", uuid::Uuid::new_v4()));
        let source = PassphraseSource::File(file.clone());
        assert!(matches!(source.read(), Err(PassphraseError::Missing)));
        assert!(matches!(PassphraseSource::File("/".into()).read(), Err(PassphraseError::Unreadable(_))));
        assert!(matches!(PassphraseSource::File("/dev/zero".into()).read(), Err(PassphraseError::Unreadable(_))));
        std::fs::write(&file, vec![b'a'; 1025]).unwrap();
        assert!(matches!(source.read(), Err(PassphraseError::TooLong)));
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
