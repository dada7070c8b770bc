//! Says when something may have changed in the folders of some files. A hint and no proof: events get lost, and some
//! file systems have none, so whoever waits also looks from time to time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// Watches folders: Kubernetes changes a secret's files by swapping a link beside them, and a watch on the file itself
/// would stay with the old one.
pub(super) struct Folders {
    changed: Arc<Notify>,
    /// `None` where the system has no watches left.
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
}

impl Folders {
    pub(super) fn new() -> Self {
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        let handler = move |event: Result<Event, notify::Error>| {
            if event.map_or(true, |event| is_change(event.kind)) {
                notify.notify_one();
            }
        };
        Self { changed, watcher: notify::recommended_watcher(handler).ok(), folders: BTreeSet::new() }
    }

    /// Watches the folders of these files, and of those that they lead to, and no others.
    pub(super) fn follow<'a>(&mut self, files: impl Iterator<Item = &'a Path>) {
        let folders = files.flat_map(|file| [Some(file.to_owned()), file.canonicalize().ok()]).flatten();
        let folders: BTreeSet<PathBuf> = folders.filter_map(|file| Some(folder(&file)?.to_owned())).collect();
        let Some(watcher) = &mut self.watcher else { return };
        for gone in self.folders.difference(&folders) {
            // Fails where the folder is no more.
            let _ = watcher.unwatch(gone);
        }
        for folder in &folders {
            // Again even if it is watched: another folder may be in its place. Where it fails the looks remain.
            let _ = watcher.watch(folder, RecursiveMode::NonRecursive);
        }
        self.folders = folders;
    }

    /// Waits until something has changed, and until it has been quiet for a moment.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
        // Whoever gives up before it is quiet has not heard of it.
        self.changed.notify_one();
        tokio::time::sleep(QUIET).await;
        self.changed.notified().await;
    }
}

/// Opening and reading, which we do ourselves, change nothing.
fn is_change(kind: EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

fn folder(file: &Path) -> Option<&Path> {
    let folder = file.parent()?;
    Some(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
}

/// Files are often written one after the other.
const QUIET: Duration = Duration::from_millis(50);
