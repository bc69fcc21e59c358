//! Tells when a folder's manifests change: the kernel's notification, gathered for a moment, with a slow look as
//! the safety net for what a notification missed (a folder made and filled before it was watched, a full queue, a
//! network filesystem).

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::{files, lead};

/// Writers change several files in a row: long enough to see them as one change, short against a beat.
const GATHER: Duration = Duration::from_millis(5);
/// How late a change may be seen when no notification came.
pub const SLOW_LOOK: Duration = Duration::from_secs(5);

/// A watched folder.
#[derive(Debug)]
pub struct FolderWatch {
    changes: Receiver<()>,
    poke: SyncSender<()>,
    // Notifications end with it.
    _watcher: Option<RecommendedWatcher>,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// Something changed.
    Changed,
    /// Time passed.
    TimedOut,
}

impl FolderWatch {
    /// Watches a folder and what is below it. Where the kernel refuses (out of inotify watches), only the slow look
    /// is left, and the log says so.
    pub fn new(root: &Path) -> Self {
        // One waiting signal says all that many would.
        let (poke, changes) = sync_channel(1);
        let sender = poke.clone();
        let place = root.to_owned();
        let handler = move |event: notify::Result<notify::Event>| {
            if event.as_ref().map_or(true, |event| is_change(&place, event)) {
                signal(&sender);
            }
        };
        let watcher = notify::recommended_watcher(handler).and_then(|mut watcher| {
            watcher.watch(root, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        let watcher = watcher
            .inspect_err(|e| {
                let seconds = SLOW_LOOK.as_secs();
                tracing::warn!(folder = %root.display(), error = %e,
                    "cannot watch the folder; it is read every {seconds} s instead");
            })
            .ok();
        Self { changes, poke, _watcher: watcher }
    }

    /// Waits for a change, at most `timeout`. Whoever waits looks after [`SLOW_LOOK`] at the latest, told or not.
    pub fn wait(&self, timeout: Duration) -> Waited {
        match self.changes.recv_timeout(timeout) {
            Ok(()) => {
                std::thread::sleep(GATHER);
                // What came meanwhile is part of the same change.
                while self.changes.try_recv().is_ok() {}
                Waited::Changed
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Waited::TimedOut,
        }
    }

    /// Ends the running wait, or the next one, as a change would.
    pub fn poker(&self) -> impl Fn() + Send + Sync + use<> {
        let poke = self.poke.clone();
        move || signal(&poke)
    }
}

fn signal(sender: &SyncSender<()>) {
    match sender.try_send(()) {
        // Full: one is waiting already. Disconnected: nobody listens any more.
        Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
    }
}

/// Reading is no change, and neither are unfinished writes. Who leads is, and so is the folder's own end.
fn is_change(root: &Path, event: &notify::Event) -> bool {
    if matches!(event.kind, EventKind::Access(_)) {
        return false;
    }
    let folder = |path: &Path| path.extension().is_none();
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let counts = |path: &Path| {
        path == root
            || lead::is_file_of_leader(path)
            || files::is_manifest(path)
            || (folder(path) && !hidden(path))
    };
    event.need_rescan() || event.paths.is_empty() || event.paths.iter().any(|path| counts(path))
}
