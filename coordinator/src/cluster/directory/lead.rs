//! Who leads: an exclusive lock on `.leader`, held for the life of the process, and a counter of epochs in `.epoch`.
//!
//! ```text
//!   wait for the lock ──► epoch = counter + 1, stored and flushed ──► lead ──► lost when the lock file or the
//!                                                                               counter is not ours any more
//! ```
//!
//! The kernel gives the lock back when the process dies, however it dies. The counter outlives everybody: each
//! leader's epoch is larger than every one before.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use super::store::{Transaction, io_error};
use super::{files, write};
use crate::cluster::error::refused;
use crate::cluster::{ClusterError, Lasts, Leadership};

/// The lock's file.
const LEADER_FILE: &str = ".leader";
/// The counter's file.
const EPOCH_FILE: &str = ".epoch";
/// How long a dead leader's place stays empty at most; a try costs one system call.
pub(super) const LOCK_RETRY: Duration = Duration::from_millis(100);

/// Our leadership.
#[derive(Debug)]
pub(super) struct Lead {
    lock: File,
    epoch: u64,
    lost: watch::Sender<bool>,
}

/// Takes the lock if nobody has it.
pub(super) fn try_lock(root: &Path) -> Result<Option<File>, ClusterError> {
    let path = root.join(LEADER_FILE);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|e| io_error(&path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(e)) => Err(io_error(&path, e)),
    }
}

/// Whether some process leads in this folder now. Nobody who only asks takes the lock for longer than the question.
pub fn is_led(root: &Path) -> bool {
    let Ok(file) = File::open(root.join(LEADER_FILE)) else { return false };
    matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock))
}

impl Lead {
    /// Begins an epoch under the lock. `seen` is the newest epoch of any stored record: should somebody have removed
    /// the counter, epochs still only grow.
    pub(super) fn begin(
        tx: &Transaction<'_>,
        mut lock: File,
        identity: &str,
        seen: u64,
    ) -> Result<(Self, Leadership), ClusterError> {
        let root = tx.root();
        let epoch = read_epoch(root)?.max(seen).saturating_add(1);
        let path = root.join(EPOCH_FILE);
        write::replace_file(&path, format!("{epoch}\n").as_bytes()).map_err(|e| io_error(&path, e))?;
        // For people only: who holds the lock is what counts.
        let note = format!("{identity} (process {}, epoch {epoch})\n", std::process::id());
        let path = root.join(LEADER_FILE);
        lock.set_len(0).and_then(|()| lock.write_all(note.as_bytes())).map_err(|e| io_error(&path, e))?;
        let (lost, receiver) = watch::channel(false);
        Ok((Self { lock, epoch, lost }, Leadership { epoch, lost: receiver, lasts: Lasts::until_told() }))
    }

    /// Our epoch.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether we still lead. Once lost, it stays lost.
    pub(super) fn holds(&self, root: &Path) -> bool {
        if *self.lost.borrow() {
            return false;
        }
        let same_file = |here: &Path| -> io::Result<bool> {
            let (held, named) = (self.lock.metadata()?, here.symlink_metadata()?);
            Ok((held.dev(), held.ino()) == (named.dev(), named.ino()))
        };
        let holds = same_file(&root.join(LEADER_FILE)).unwrap_or(false)
            && read_epoch(root).is_ok_and(|epoch| epoch == self.epoch);
        if !holds {
            self.lost.send_replace(true);
        }
        holds
    }
}

/// Whether a change of this file may change who leads.
pub(super) fn is_file_of_leader(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == LEADER_FILE || name == EPOCH_FILE)
}

/// The newest epoch ever announced; 0 before the first.
fn read_epoch(root: &Path) -> Result<u64, ClusterError> {
    let path = root.join(EPOCH_FILE);
    match files::read_file(&path) {
        Ok((text, _)) => text.trim().parse().map_err(|_| {
            let why =
                "it must hold one number, the newest leader's epoch; remove it to count on from the records";
            refused(&path.display().to_string(), why)
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(io_error(&path, e)),
    }
}
