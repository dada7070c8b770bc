//! What the machine gives this process: cores and memory. Must not know any setting.

use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::thread::available_parallelism;

/// The cores and the memory that `auto` goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    /// Cores that this process may use.
    pub(super) cores: usize,
    /// The limit of its control group, in bytes, where it has one.
    pub(super) memory: Option<u64>,
}

impl Machine {
    /// The machine that we run on.
    pub(super) fn here() -> Self {
        Self { cores: available_parallelism().map_or(1, NonZero::get), memory: memory_limit(Path::new("/")) }
    }
}

/// The least of the limits of our control group: version 2 or version 1, in a container (the group is the root of what
/// we see) or in a systemd unit (`/proc/self/cgroup` names it).
fn memory_limit(root: &Path) -> Option<u64> {
    let own = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let unit = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let groups = root.join("sys/fs/cgroup");
    let files =
        [groups.join("memory.max"), groups.join(unit).join("memory.max"), groups.join("memory/memory.limit_in_bytes")];
    files.iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(name: &str, files: &[(&str, &str)]) -> Option<u64> {
        let root = std::env::temp_dir().join(format!("sealproxy-machine-{}-{name}", uuid::Uuid::new_v4()));
        for (file, text) in files {
            let file = root.join(file);
            fs::create_dir_all(file.parent().expect("a file has a folder")).expect("a folder");
            fs::write(file, text).expect("a file");
        }
        let limit = memory_limit(&root);
        let _ = fs::remove_dir_all(root);
        limit
    }

    #[test]
    fn the_memory_limit_is_found_in_either_version() {
        assert_eq!(limit("none", &[]), None);
        assert_eq!(limit("max", &[("sys/fs/cgroup/memory.max", "max\n")]), None);
        assert_eq!(limit("v2", &[("sys/fs/cgroup/memory.max", "67108864\n")]), Some(64 << 20));
        assert_eq!(limit("v1", &[("sys/fs/cgroup/memory/memory.limit_in_bytes", "67108864\n")]), Some(64 << 20));
    }

    #[test]
    fn a_unit_s_own_limit_counts() {
        let files = [
            ("proc/self/cgroup", "0::/system.slice/s.service\n"),
            ("sys/fs/cgroup/system.slice/s.service/memory.max", "1048576\n"),
        ];
        assert_eq!(limit("unit", &files), Some(1 << 20));
    }
}
