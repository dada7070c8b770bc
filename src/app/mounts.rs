//! Files that are mounted by themselves, as Kubernetes does with `subPath`: their content stays what it was when the
//! container started, whatever becomes of the secret.

use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::generation::Generation;
use crate::config::Finding;

impl Generation {
    /// Warns of files that rotation cannot reach.
    pub(super) fn warn_of_mounts(&mut self) {
        let Ok(mounts) = std::fs::read("/proc/self/mountinfo") else { return };
        let points = points(&mounts);
        let config = Arc::clone(&self.config);
        for (name, pair) in
            config.identities.iter().flat_map(|(name, identity)| identity.pairs().map(move |pair| (name, pair)))
        {
            for file in pair.files().filter(|file| is_mounted(file, &points)) {
                let reason = format!(
                    "{}: the file is mounted by itself (subPath in Kubernetes), and such a mount never changes",
                    file.display()
                );
                let hint = "mount the secret's folder instead: certificates are replaced there while the proxy runs";
                let key = format!("identities.{name}.{}", pair.setting);
                self.findings.push(Finding::warning(&config.file, key, reason).hint(hint).code("mounted-alone"));
            }
        }
    }
}

fn is_mounted(file: &Path, points: &[PathBuf]) -> bool {
    std::path::absolute(file).is_ok_and(|file| points.contains(&file))
}

/// The mount points in a mountinfo: the fifth field of each line, special characters in octal (proc(5)).
fn points(mountinfo: &[u8]) -> Vec<PathBuf> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4)).map(unescaped).collect()
}

fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, behind)) = rest.split_first() {
        let octal = behind.get(..3).filter(|_| *first == b'\\');
        let octal = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &behind[3..] } else { behind };
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_spaces() {
        let info = b"1 2 0:3 / / rw,relatime - overlay overlay rw\n\
            4 1 8:1 /pods/x/qwac.pem /etc/sealproxy/qwac.pem ro - ext4 /dev/sda1 rw\n\
            5 1 0:9 / /mnt/a\\040b\\134c rw - tmpfs tmpfs rw\n\n";
        assert_eq!(points(info), ["/", "/etc/sealproxy/qwac.pem", "/mnt/a b\\c"].map(PathBuf::from));
        assert!(is_mounted(Path::new("/etc/sealproxy/./qwac.pem"), &points(info)));
        assert!(!is_mounted(Path::new("/etc/sealproxy/qwac.key"), &points(info)));
    }
}
