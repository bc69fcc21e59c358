//! The folder of an unfinished copy, and how it becomes the volume.
//!
//! ```text
//!   ROOT/.somersault-<transfer>.partial/   0700, locked while somebody works in it
//!        journal                           what is on the disk
//!        blocks-<hash>                     after a first copy, see blocks.rs
//!        data/                             the volume to be  --publish-->  ROOT/<name>
//!                                                            <-withdraw--  (untouched since, source is newer)
//! ```
//!
//! The folder with its journal stays after the publishing, and is how a repeated order finds out that it is done.
//! Removing it never touches the published volume. Where the volume is the root of a mount, the folder lies in it, and
//! all of this goes in the steps that mounted.rs tells of. Where it is a block device, the folder lies where the device is
//! handed over, has no `data`, and publishing is a word in the journal.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use somersault_agent_core::transfer::{Entry, MAX_DEPTH, Published, Replay};

use super::device::Device;
use super::root::{PARTIAL_PREFIX, PARTIAL_SUFFIX, Place, Seat, open_beneath};
use super::{TransferError, blocks, journal, metadata, mounted, scan};

const DATA: &str = "data";

/// The locked folder of a transfer.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) place: Arc<Place>,
    name: String,
    pub(super) folder: OwnedFd,
}

/// How an attempt to lock the folder went.
#[derive(Debug)]
pub(super) enum Opened {
    /// It is ours.
    Locked(Partial),
    /// Somebody else works in it.
    Busy,
    /// It does not exist.
    Missing,
}

/// What the target has under the volume's final name.
#[derive(Debug)]
pub(super) enum Standing {
    /// Nothing, or an empty folder that a provisioner made.
    Free,
    /// What this transfer has published, and nobody has written to since.
    Ours(Box<Replay>, Published),
    /// What this transfer has published, and somebody has written to since.
    OursChanged,
    /// In a mounted volume: what this transfer was moving there or back when it broke off. Nobody has written to it since.
    Halfway(Box<Replay>, Published),
    /// Something else.
    Foreign,
}

/// The folder's name.
pub(super) fn folder_name(transfer: &str) -> Result<String, TransferError> {
    // NAME_MAX of Linux is 255.
    let plain = (1..=200).contains(&transfer.len()) && !transfer.contains(['/', '\0']);
    if !plain {
        return Err(TransferError::OrderRefused(format!("{transfer:?} cannot name a transfer")));
    }
    Ok(format!("{PARTIAL_PREFIX}{transfer}{PARTIAL_SUFFIX}"))
}

impl Partial {
    /// Opens and locks the folder; makes it where it is missing and `create` says so.
    pub(super) fn open(place: Arc<Place>, transfer: &str, create: bool) -> Result<Opened, TransferError> {
        let name = folder_name(transfer)?;
        let failed = |action, error: Errno| TransferError::target(action, &name, error);
        if create {
            let make = || match rustix::fs::mkdirat(&place.root, &name, Mode::RWXU) {
                Ok(()) => {
                    rustix::fs::fsync(&place.root).map_err(|error| failed("cannot sync the root of", error))
                }
                Err(Errno::EXIST) => Ok(()),
                Err(error) => Err(failed("cannot make", error)),
            };
            keeping_time(&place, make)?;
        }
        let folder = match open_beneath(&place.root, &name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
        {
            Ok(folder) => folder,
            Err(Errno::NOENT) if !create => return Ok(Opened::Missing),
            Err(error) => return Err(failed("cannot open", error)),
        };
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Opened::Locked(Self { place, name, folder })),
            Err(Errno::WOULDBLOCK) => Ok(Opened::Busy),
            Err(error) => Err(failed("cannot lock", error)),
        }
    }

    /// What the journal proves.
    pub(super) fn replay(&self) -> Result<Option<Replay>, TransferError> {
        journal::read(&self.folder).map_err(|error| self.failed("cannot read the journal in", error))
    }

    /// What is under the final name.
    pub(super) fn standing(&self) -> Result<Standing, TransferError> {
        match self.place.seat {
            Seat::Mounted => return self.standing_of_mounted(),
            Seat::Device => return self.standing_of_device(),
            Seat::Named(_) => {}
        }
        let failed = |error: Errno| TransferError::target("cannot open", self.place.display(), error);
        let volume = match self.place.open() {
            Ok(volume) => volume,
            Err(Errno::NOENT) => return Ok(Standing::Free),
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Standing::Foreign),
            Err(error) => return Err(failed(error)),
        };
        let inode = rustix::fs::fstat(&volume).map_err(failed)?.st_ino;
        if let Some(replay) = self.replay()?
            && let Some(published) = replay.published.clone()
            && published.inode == inode
            && !self.has_data()?
        {
            let untouched = scan::fingerprint(volume.as_fd()).is_ok_and(|now| now == published.fingerprint);
            return Ok(if untouched {
                Standing::Ours(Box::new(replay), published)
            } else {
                Standing::OursChanged
            });
        }
        let mut items = Dir::read_from(&volume).map_err(failed)?;
        let empty =
            items.all(|item| item.is_ok_and(|item| matches!(item.file_name().to_bytes(), b"." | b"..")));
        Ok(if empty { Standing::Free } else { Standing::Foreign })
    }

    /// The same for a mounted volume: free is one with nothing in it that belongs to a volume.
    fn standing_of_mounted(&self) -> Result<Standing, TransferError> {
        let failed = |error: Errno| TransferError::target("cannot look into", self.place.display(), error);
        let volume = self.place.root.as_fd();
        let inode = rustix::fs::fstat(volume).map_err(failed)?.st_ino;
        let data = if self.has_data()? { Some(self.data()?) } else { None };
        let replay = self.replay()?;
        let published = replay.as_ref().and_then(|replay| replay.published.clone());
        let published = published.filter(|published| published.inode == inode);
        if let (Some(data), Some(_)) = (&data, &published) {
            mounted::end_moves(data, volume).map_err(failed)?;
        }
        let free = mounted::names(volume).map_err(failed)?.is_empty();
        let (Some(replay), Some(published)) = (replay, published) else {
            return Ok(if free { Standing::Free } else { Standing::Foreign });
        };
        let parts: Vec<_> = std::iter::once(volume).chain(data.as_ref().map(AsFd::as_fd)).collect();
        let untouched = || scan::fingerprint_of_mounted(&parts).is_ok_and(|now| now == published.fingerprint);
        Ok(match data {
            None if untouched() => Standing::Ours(Box::new(replay), published),
            _ if free => Standing::Free,
            None => Standing::OursChanged,
            Some(_) if untouched() => Standing::Halfway(Box::new(replay), published),
            Some(_) => Standing::Foreign,
        })
    }

    /// The same for a block device: whatever is on it when no copy of ours has ended there, its pod is ours, and so it is free.
    fn standing_of_device(&self) -> Result<Standing, TransferError> {
        let Some(replay) = self.replay()? else { return Ok(Standing::Free) };
        let Some(published) = replay.published.clone() else { return Ok(Standing::Free) };
        let untouched = Device::of(&self.place)?.state()? == published.fingerprint;
        Ok(if untouched { Standing::Ours(Box::new(replay), published) } else { Standing::Free })
    }

    /// The folder of the volume to be, made where it is missing.
    pub(super) fn data(&self) -> Result<OwnedFd, TransferError> {
        match rustix::fs::mkdirat(&self.folder, DATA, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(self.failed("cannot make the data folder of", error)),
        }
        open_beneath(&self.folder, DATA, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
            .map_err(|error| self.failed("cannot open the data folder of", error))
    }

    /// Gives the finished copy its final name. Nothing is ever replaced; an empty folder makes room. `folder` is what the
    /// volume's own folder is to have, which it has already where it is renamed.
    pub(super) fn publish(&self, folder: &Entry) -> Result<(), TransferError> {
        let Place { root, .. } = &*self.place;
        let name = match &self.place.seat {
            Seat::Named(name) => name,
            Seat::Mounted => {
                let there = mounted::names(root).map_err(|error| self.failed("cannot look around", error))?;
                return if there.is_empty() { self.finish(folder) } else { Err(self.taken()) };
            }
            // It has no other name, and the journal says so already.
            Seat::Device => {
                blocks::remove(&self.folder);
                return Ok(());
            }
        };
        match rustix::fs::unlinkat(root, name.as_os_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            Err(error) => {
                return Err(TransferError::target(
                    "cannot replace the empty folder",
                    self.place.display(),
                    error,
                ));
            }
        }
        match rename_folder(&self.folder, DATA, root, name) {
            Ok(()) => {}
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => return Err(self.taken()),
            Err(error) => return Err(TransferError::target("cannot publish", self.place.display(), error)),
        }
        for folder in [root.as_fd(), self.folder.as_fd()] {
            rustix::fs::fsync(folder).map_err(|error| {
                TransferError::target("cannot sync the folder of", self.place.display(), error)
            })?;
        }
        blocks::remove(&self.folder);
        Ok(())
    }

    /// Moves into a mounted volume what is not there yet, and makes it complete.
    pub(super) fn finish(&self, folder: &Entry) -> Result<(), TransferError> {
        let root = &self.place.root;
        let failed = |error: Errno| match error {
            Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR | Errno::ISDIR => self.taken(),
            error => TransferError::target("cannot publish", self.place.display(), error),
        };
        let data = self.data()?;
        mounted::move_all(&data, root).and_then(|()| rustix::fs::fsync(&data)).map_err(failed)?;
        metadata::set(root, folder.metadata, folder.attributes(), b"")?;
        rustix::fs::fsync(root).map_err(|error| self.failed("cannot sync the volume's folder at", error))?;
        match rustix::fs::unlinkat(&data, scan::LOST_AND_FOUND, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(self.failed("cannot leave out lost+found of", error)),
        }
        // From here on it counts as published: all that was moved is on the disk.
        rustix::fs::unlinkat(&self.folder, DATA, AtFlags::REMOVEDIR)
            .and_then(|()| rustix::fs::fsync(&self.folder))
            .map_err(|error| self.failed("cannot remove the empty data folder of", error))?;
        blocks::remove(&self.folder);
        Ok(())
    }

    /// Takes a published volume back, so that nobody ever sees a half-updated one under its final name.
    pub(super) fn withdraw(&self) -> Result<(), TransferError> {
        let Place { root, .. } = &*self.place;
        let moved = match &self.place.seat {
            Seat::Named(name) => rename_folder(root, name, &self.folder, DATA),
            Seat::Mounted => {
                let data = self.data()?;
                mounted::move_all(root, &data).and_then(|()| rustix::fs::fsync(&data))
            }
            // The next pass begins with a journal that does not say so.
            Seat::Device => Ok(()),
        };
        moved
            .and_then(|()| rustix::fs::fsync(&self.folder))
            .and_then(|()| rustix::fs::fsync(root))
            .map_err(|error| TransferError::target("cannot withdraw", self.place.display(), error))
    }

    /// Removes the folder and what has arrived in it. What of it has got into a mounted volume already stays there: from
    /// here nobody can tell half a volume that is given up from a whole one whose last step a crash has cut off.
    pub(super) fn remove(self) -> Result<(), TransferError> {
        let gone = || {
            remove_tree(&self.place.root, self.name.as_bytes(), 0)
                .and_then(|()| Ok(rustix::fs::fsync(&self.place.root)?))
                .map_err(|error| self.failed("cannot remove", error))
        };
        keeping_time(&self.place, gone)
    }

    fn taken(&self) -> TransferError {
        let why = match self.place.seat {
            Seat::Named(_) => "something else has taken the name while the copy ran",
            Seat::Mounted | Seat::Device => "something else has been put there while the copy ran",
        };
        TransferError::TargetExists { path: self.place.display(), why }
    }

    fn has_data(&self) -> Result<bool, TransferError> {
        match rustix::fs::statat(&self.folder, DATA, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(self.failed("cannot look into", error)),
        }
    }

    pub(super) fn failed(&self, action: &'static str, error: impl Into<io::Error>) -> TransferError {
        let path = self.place.root_path.join(&self.name).display().to_string();
        TransferError::target(action, path, error)
    }
}

/// Adds or removes a folder of ours. Where that is done in the volume's own folder, the folder's time stays: nothing
/// has changed in the volume, and an equal copy is to be known as one.
fn keeping_time(
    place: &Place,
    work: impl FnOnce() -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    if !place.is_mounted() {
        return work();
    }
    let failed = |error: Errno| TransferError::target("cannot keep the time of", place.display(), error);
    let before = rustix::fs::fstat(&place.root).map_err(failed)?;
    work()?;
    let now = rustix::fs::fstat(&place.root).map_err(failed)?;
    if (now.st_mtime, now.st_mtime_nsec) == (before.st_mtime, before.st_mtime_nsec) {
        return Ok(());
    }
    metadata::set_time(&place.root, before.st_mtime, before.st_mtime_nsec.cast_signed()).map_err(failed)
}

/// Renames a folder and replaces nothing. Filesystems without `RENAME_NOREPLACE` (NFS) say EINVAL; there the plain
/// rename is as safe, since a folder can replace nothing but an empty folder (rename(2)).
pub(super) fn rename_folder(
    from: impl AsFd,
    old: impl AsRef<OsStr>,
    to: impl AsFd,
    new: impl AsRef<OsStr>,
) -> rustix::io::Result<()> {
    let (old, new) = (old.as_ref(), new.as_ref());
    match rustix::fs::renameat_with(&from, old, &to, new, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(&from, old, &to, new),
        result => result,
    }
}

/// Removes a file or a folder with its content, following no link.
pub(super) fn remove_tree(parent: impl AsFd, name: &[u8], depth: usize) -> io::Result<()> {
    // Two more than a volume may have: our own folder and `data`.
    if depth > MAX_DEPTH + 2 {
        return Err(io::Error::other("folders are nested deeper than any copy of ours"));
    }
    let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(rustix::fs::unlinkat(&parent, name, AtFlags::empty())?);
    }
    let folder = open_beneath(&parent, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let mut names = Vec::new();
    for item in Dir::read_from(&folder)? {
        let name = item?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    for name in names {
        remove_tree(&folder, &name, depth + 1)?;
    }
    Ok(rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
}
