//! What files hold, as digests, and who may read them: whether anything has changed, and whether what was read one
//! after the other belongs together. Must not know what the files mean.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use zeroize::Zeroizing;

use crate::files;

/// The state of some files at one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks(BTreeMap<PathBuf, Mark>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Mark {
    Content { digest: [u8; SHA256_OUTPUT_LEN], mode: u32, version: Version },
    Unreadable(io::ErrorKind),
}

/// Which file it is and when it was last changed: equal to any other, because a file that is written anew with what it
/// held is the same to us.
#[derive(Clone, Copy, Debug)]
struct Version {
    inode: u64,
    changed: (i64, i64),
}

impl PartialEq for Version {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Version {}

impl Version {
    fn is(&self, other: &Self) -> bool {
        (self.inode, self.changed) == (other.inode, other.changed)
    }
}

impl Marks {
    /// Whether nobody has touched the files between two looks, not even to put them back: what was read meanwhile is
    /// what the marks say.
    pub(super) fn is_untouched(&self, later: &Self) -> bool {
        let same = |(file, mark): (&PathBuf, &Mark)| match (mark, later.0.get(file)) {
            (Mark::Content { version: one, .. }, Some(Mark::Content { version: other, .. })) => one.is(other),
            _ => true,
        };
        self == later && self.0.iter().all(same)
    }

    /// Reads the files, for as long as that takes.
    pub(super) fn of<'a>(files: impl Iterator<Item = &'a Path>) -> Self {
        Self(files.map(|file| (file.to_owned(), Mark::of(file))).collect())
    }

    /// Those of some of the files.
    pub(super) fn only<'a>(&self, files: impl Iterator<Item = &'a Path>) -> Self {
        Self(
            files
                .filter_map(|file| self.0.get_key_value(file))
                .map(|(file, mark)| (file.clone(), mark.clone()))
                .collect(),
        )
    }

    /// The files.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }
}

impl Mark {
    fn of(file: &Path) -> Self {
        let read = files::open(file).map_err(io::Error::from).and_then(|(file, found)| {
            let changed = (found.ctime(), found.ctime_nsec());
            Ok((digest(file)?, found.mode(), Version { inode: found.ino(), changed }))
        });
        match read {
            Ok((digest, mode, version)) => Self::Content { digest, mode, version },
            Err(error) => Self::Unreadable(error.kind()),
        }
    }
}

/// Piece by piece: a path that was mistaken costs time, and no memory.
fn digest(mut file: File) -> io::Result<[u8; SHA256_OUTPUT_LEN]> {
    // Of a key too: what was read must not stay in memory.
    let mut piece = Zeroizing::new([0; PIECE]);
    let (mut digest, mut left) = (Context::new(&SHA256), MOST);
    while left > 0 {
        let read = file.read(&mut *piece)?;
        if read == 0 {
            break;
        }
        digest.update(&piece[..read]);
        left = left.saturating_sub(read as u64);
    }
    Ok(digest.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

const PIECE: usize = 8 * 1024;
/// A path that leads to a disk is not read to its end.
const MOST: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_follows_the_content_and_the_mode_and_not_the_name() {
        let folder = std::env::temp_dir().join(format!("sealproxy-marks-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join("a");
        let look = || Marks::of(std::iter::once(file.as_path()));
        let absent = look();
        assert_eq!(absent, look());
        std::fs::write(&file, "one").expect("written");
        let one = look();
        assert_ne!(one, absent);
        assert!(one.is_untouched(&look()));
        std::fs::write(&file, "two").expect("written");
        assert_ne!(look(), one);
        // Kernels count the time of a change in steps of some milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&file, "one").expect("written");
        assert_eq!(look(), one);
        assert!(!one.is_untouched(&look()), "it was another one in between");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("set");
        assert_ne!(look(), one);
        assert_eq!(one.only(std::iter::once(Path::new("/elsewhere"))), Marks::default());
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
