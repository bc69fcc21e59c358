//! Removes a volume for good: a folder below a storage root that nobody uses any more.
//!
//! ```text
//!   ROOT/<name> ──in use? a mount point?──► refused, nothing touched
//!        │ renamed
//!        ▼
//!   ROOT/.somersault-<name>.removed ──► emptied, then gone
//! ```
//!
//! From the rename on it is no volume any more, whatever happens: an agent that is killed halfway finishes with the next
//! order. No link is followed and no other filesystem is entered: what is mounted inside keeps its content, and the order
//! fails there.

use std::os::fd::AsFd;

use rustix::fs::{Dir, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::TransferError;
use super::partial::{remove_tree, rename_folder};
use super::root::{PARTIAL_PREFIX, Place, Seat, open_beneath};

const SUFFIX: &str = ".removed";
/// Files whose locks are looked at: a volume that is used has one image, or a few.
const FILES_LOOKED_AT_MAX: usize = 1_000;
/// Longest name of a volume: what is put around it must fit into the 255 bytes of a name.
const NAME_BYTES_MAX: usize = 200;

/// Removes it; one that is not there is removed already.
pub(super) fn volume(place: &Place) -> Result<(), TransferError> {
    let Seat::Named(name) = &place.seat else {
        // It goes with its claim, by whoever has made it.
        return Err(TransferError::PathNotAllowed { path: place.display() });
    };
    let text = name.to_str().filter(|name| name.len() <= NAME_BYTES_MAX);
    let text =
        text.ok_or_else(|| TransferError::OrderRefused(format!("{} cannot be set aside", place.display())))?;
    let aside = format!("{PARTIAL_PREFIX}{text}{SUFFIX}");
    // What an earlier order has set aside goes first: whatever has its name now is another one.
    let begun = empty(place, &aside)?;
    let folder = match place.open() {
        Ok(folder) => folder,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(TransferError::target("cannot open", place.display(), error)),
    };
    if begun {
        let why = "it came after the volume that was removed";
        return Err(TransferError::TargetExists { path: place.display(), why });
    }
    refuse_in_use(place, &folder)?;
    rename_folder(&place.root, name, &place.root, &aside).map_err(|error| match error {
        Errno::BUSY => in_use(place, "something is mounted there"),
        error => TransferError::target("cannot set aside", place.display(), error),
    })?;
    sync(place)?;
    empty(place, &aside).map(drop)
}

/// Removes what was set aside; whether anything was.
fn empty(place: &Place, aside: &str) -> Result<bool, TransferError> {
    match remove_tree(&place.root, aside.as_bytes(), 0) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(TransferError::target("cannot remove", place.display(), error)),
    }
    sync(place)?;
    Ok(true)
}

fn sync(place: &Place) -> Result<(), TransferError> {
    rustix::fs::fsync(&place.root)
        .map_err(|error| TransferError::target("cannot sync the folder of", place.display(), error))
}

/// A VM that runs holds locks on its image (QEMU does, where the filesystem has them), and so do most databases.
fn refuse_in_use(place: &Place, folder: impl AsFd) -> Result<(), TransferError> {
    let failed = |error: Errno| TransferError::target("cannot look into", place.display(), error);
    let mut looked_at = 0;
    for item in Dir::read_from(&folder).map_err(failed)? {
        let item = item.map_err(failed)?;
        let maybe_file = matches!(item.file_type(), FileType::RegularFile | FileType::Unknown);
        if !maybe_file || looked_at == FILES_LOOKED_AT_MAX {
            continue;
        }
        looked_at += 1;
        // Non-blocking: what claims to be a file may be a pipe where the type is not told.
        let file =
            match open_beneath(&folder, item.file_name(), OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()) {
                Ok(file) => file,
                Err(Errno::NOENT | Errno::ISDIR | Errno::LOOP | Errno::NXIO) => continue,
                Err(error) => return Err(failed(error)),
            };
        if is_locked(&file).map_err(failed)? {
            let name = item.file_name().to_string_lossy().into_owned();
            return Err(in_use(place, &format!("{name} is locked")));
        }
    }
    Ok(())
}

/// Whether somebody has a lock on any part of the file, of a process or of an open file: ours, for a moment, conflicts with
/// each.
fn is_locked(file: impl AsFd) -> rustix::io::Result<bool> {
    match rustix::fs::fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(true),
        Err(error) => Err(error),
    }
}

fn in_use(place: &Place, why: &str) -> TransferError {
    TransferError::VolumeInUse { path: place.display(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;
    use crate::transfer::root::Roots;

    fn place(root: &Path, name: &str) -> Place {
        let roots = Roots::new(vec![(root.to_owned(), 1)], None);
        roots.place(&root.join(name).display().to_string()).expect("below the root")
    }

    fn with_volume() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        let volume = root.path().join("pvc-1");
        fs::create_dir_all(volume.join("deep/er")).expect("made");
        fs::write(volume.join("disk.img"), "content").expect("written");
        fs::write(volume.join("deep/er/file"), "content").expect("written");
        fs::create_dir(root.path().join("pvc-2")).expect("made");
        root
    }

    fn names(root: &Path) -> Vec<String> {
        let items = fs::read_dir(root).expect("read").map(|item| item.expect("read").file_name());
        let mut names: Vec<_> = items.map(|name| name.into_string().expect("plain")).collect();
        names.sort();
        names
    }

    #[test]
    fn a_volume_goes_with_all_that_is_in_it_and_no_other_one() {
        let root = with_volume();
        volume(&place(root.path(), "pvc-1")).expect("removed");
        assert_eq!(names(root.path()), ["pvc-2"]);
        volume(&place(root.path(), "pvc-1")).expect("gone already");
    }

    #[test]
    fn links_are_removed_and_never_followed() {
        let (root, outside) = (with_volume(), tempfile::tempdir().expect("a folder"));
        fs::write(outside.path().join("kept"), "").expect("written");
        let inside = root.path().join("pvc-1/way");
        std::os::unix::fs::symlink(outside.path(), inside).expect("linked");
        std::os::unix::fs::symlink(outside.path(), root.path().join("pvc-3")).expect("linked");
        volume(&place(root.path(), "pvc-1")).expect("removed");
        assert!(volume(&place(root.path(), "pvc-3")).is_err(), "a link is no volume");
        assert_eq!(names(outside.path()), ["kept"]);
    }

    #[test]
    fn one_that_is_locked_is_left_alone() {
        let root = with_volume();
        let image = fs::File::options()
            .read(true)
            .write(true)
            .open(root.path().join("pvc-1/disk.img"))
            .expect("open");
        // As QEMU does: one byte, by the open file.
        let lock = shared_byte();
        fcntl(&image, FcntlArg::F_OFD_SETLK(&lock)).expect("locked");
        let error = volume(&place(root.path(), "pvc-1")).expect_err("in use");
        assert_eq!(error.reason(), "VolumeInUse");
        assert!(error.to_string().contains("disk.img is locked"), "{error}");
        assert!(root.path().join("pvc-1/deep/er/file").exists());
        drop(image);
        volume(&place(root.path(), "pvc-1")).expect("removed");
    }

    fn shared_byte() -> nix::libc::flock {
        nix::libc::flock {
            l_type: nix::libc::F_RDLCK.try_into().expect("small"),
            l_whence: nix::libc::SEEK_SET.try_into().expect("small"),
            l_start: 100,
            l_len: 1,
            l_pid: 0,
        }
    }

    #[test]
    fn what_was_begun_is_finished_and_what_came_later_is_kept() {
        let root = with_volume();
        fs::rename(root.path().join("pvc-1"), root.path().join(".somersault-pvc-1.removed"))
            .expect("set aside");
        fs::create_dir(root.path().join("pvc-1")).expect("made anew");
        let error = volume(&place(root.path(), "pvc-1")).expect_err("something new has the name");
        assert_eq!(error.reason(), "TargetExists");
        assert_eq!(names(root.path()), ["pvc-1", "pvc-2"]);
    }
}
