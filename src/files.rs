//! Files of others, read as a server may read them: regular ones alone, and no more of them than is asked for. What is
//! read may be a key or a passphrase. Must not know what is in them.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use thiserror::Error;
use zeroize::Zeroizing;

/// Why a file was not read. The path is the caller's to name.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The path leads to a folder.
    #[error("this is a folder")]
    Folder,
    /// It leads to a pipe, a device or a socket.
    #[error("not a regular file")]
    NoFile,
    /// The file has more bytes than this.
    #[error("larger than {0} bytes")]
    TooLarge(u64),
    /// The system's own words.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unreadable(error) => error,
            ReadError::Folder => io::ErrorKind::IsADirectory.into(),
            error => Self::other(error.to_string()),
        }
    }
}

/// All of a file of at most `limit` bytes. The buffer is wiped; while it holds a key it is not moved.
pub fn read(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    let (file, found) = open(path)?;
    let expected = found.len().max(SMALL).min(limit) + ROOM;
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(expected).unwrap_or_default()));
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(ReadError::TooLarge(limit)) } else { Ok(bytes) }
}

/// Opens a regular file, and nothing else: whoever opens a pipe waits for its writer, and opening some devices is an
/// act.
pub fn open(path: &Path) -> Result<(File, Metadata), ReadError> {
    regular(&std::fs::metadata(path)?)?;
    // The path may lead elsewhere by now: to a pipe that is opened at once, and is none of ours either.
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    let found = file.metadata()?;
    regular(&found)?;
    Ok((file, found))
}

fn regular(found: &Metadata) -> Result<(), ReadError> {
    match found.file_type() {
        kind if kind.is_file() => Ok(()),
        kind if kind.is_dir() => Err(ReadError::Folder),
        _ => Err(ReadError::NoFile),
    }
}

/// More than a key or a passphrase has, so that neither outgrows its buffer while it is being written.
const SMALL: u64 = 64 << 10;
/// So that the buffer does not grow when the file's end is looked for.
const ROOM: u64 = 64;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    fn folder() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("sealproxy-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    #[test]
    fn what_is_no_file_is_named_and_nobody_waits_for_it() {
        let folder = folder();
        let (pipe, socket) = (folder.join("pipe"), folder.join("socket"));
        for left in [&pipe, &socket] {
            let _ = std::fs::remove_file(left);
        }
        assert!(Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()));
        let _listener = UnixListener::bind(&socket).expect("a socket");
        for path in [&pipe, &socket, Path::new("/dev/null")] {
            assert!(matches!(read(path, 9), Err(ReadError::NoFile)), "{}", path.display());
        }
        assert!(matches!(read(&folder, 9), Err(ReadError::Folder)));
        let gone = read(&folder.join("gone"), 9).map_err(io::Error::from);
        assert_eq!(gone.expect_err("there is none").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let path = folder().join("nine");
        std::fs::write(&path, "123456789").expect("written");
        assert_eq!(**read(&path, 9).expect("nine bytes"), *b"123456789");
        assert!(matches!(read(&path, 8), Err(ReadError::TooLarge(8))));
    }
}
