//! A copy into a mounted volume, whose folder is the root of a mount: nothing can be renamed onto it, so what is in the
//! copy moves, one entry after another.
//!
//! ```text
//!   MOUNT/                                 the volume
//!        lost+found/                       the filesystem's own
//!        .somersault-<transfer>.partial/   0700, locked while somebody works in it
//!             journal
//!             data/                        the volume to be  --publish, each entry-->  MOUNT/
//!                                                            <-withdraw, each entry--
//! ```
//!
//! Nothing is ever replaced. Before the first move the journal says `Publishing`, durably, with the fingerprint of the
//! whole, which no move changes; after the last one the volume's folder gets its owner, mode and time, and then `data`
//! goes. A crash leaves one of these, which the next order finds:
//!
//! ```text
//!   data    MOUNT     then                                            the next order
//!   all     nothing   before the first move, or all taken back        goes on with the copy, of which nothing is missing
//!   some    the rest  between two moves, of either direction          both together have the fingerprint: moves the rest
//!   empty   all       before `data` went                              the same, with no rest
//!   gone    all       it is published                                 is done
//!   any     others    somebody put something there meanwhile          is refused, and moves nothing
//! ```
//!
//! Where the rest is to be moved and the source has changed meanwhile, all is taken back, and the copy goes on.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Dir, FileType, RenameFlags};
use rustix::io::Errno;

use super::scan::{is_beside, is_reserved};

/// The names at the top of a mounted volume, or of a copy that becomes one.
pub(super) fn names(folder: impl AsFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for item in Dir::read_from(&folder)? {
        let name = item?.file_name().to_bytes().to_vec();
        if name == b"." || name == b".." {
            continue;
        }
        if !is_reserved(&name) || !is_beside(&name, kind(&folder, &name)?) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Moves everything from one to the other. Fails with `EXIST` at a name that is taken.
pub(super) fn move_all(from: impl AsFd, to: impl AsFd) -> rustix::io::Result<()> {
    for name in names(&from)? {
        match rustix::fs::renameat_with(&from, name.as_slice(), &to, name.as_slice(), RenameFlags::NOREPLACE)
        {
            Err(Errno::INVAL | Errno::NOSYS) => move_plainly(&from, &name, &to)?,
            result => result?,
        }
    }
    Ok(())
}

/// Moves an entry on a filesystem without `RENAME_NOREPLACE` (that of NFS). A folder can replace nothing but an empty
/// folder (rename(2)); a file gets its new name as a second one, for which the name must be free.
fn move_plainly(from: impl AsFd, name: &[u8], to: impl AsFd) -> rustix::io::Result<()> {
    if kind(&from, name)? == FileType::Directory {
        return rustix::fs::renameat(&from, name, &to, name);
    }
    rustix::fs::linkat(&from, name, &to, name, AtFlags::empty())?;
    rustix::fs::unlinkat(&from, name, AtFlags::empty())
}

/// Ends moves that a crash has left between the two names of a file.
pub(super) fn end_moves(from: impl AsFd, to: impl AsFd) -> rustix::io::Result<()> {
    for name in names(&from)? {
        let ours = rustix::fs::statat(&from, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
        let same = match rustix::fs::statat(&to, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(theirs) => (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino),
            Err(Errno::NOENT) => false,
            Err(error) => return Err(error),
        };
        if same && FileType::from_raw_mode(ours.st_mode) == FileType::RegularFile {
            rustix::fs::unlinkat(&from, name.as_slice(), AtFlags::empty())?;
        }
    }
    Ok(())
}

fn kind(folder: impl AsFd, name: &[u8]) -> rustix::io::Result<FileType> {
    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::OwnedFd;

    use tempfile::TempDir;

    use super::super::root::open_root;
    use super::*;

    fn folders() -> (TempDir, TempDir, OwnedFd, OwnedFd) {
        let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        fs::create_dir(from.path().join("sub")).expect("made");
        for file in ["sub/f", "a"] {
            fs::write(from.path().join(file), file).expect("written");
        }
        let opened = (open_root(from.path()).expect("open"), open_root(to.path()).expect("open"));
        (from, to, opened.0, opened.1)
    }

    #[test]
    fn all_moves_but_what_lies_beside() {
        let (from, to, source, target) = folders();
        for folder in ["lost+found", ".somersault-t1.partial"] {
            fs::create_dir(from.path().join(folder)).expect("made");
        }
        move_all(&source, &target).expect("moved");
        assert_eq!(fs::read_to_string(to.path().join("sub/f")).expect("moved"), "sub/f");
        assert!(names(&source).expect("listed").is_empty() && names(&target).expect("listed").len() == 2);
        assert!(
            from.path().join("lost+found").exists() && from.path().join(".somersault-t1.partial").exists()
        );
    }

    #[test]
    fn no_way_to_move_replaces_anything() {
        let (from, to, source, target) = folders();
        fs::write(to.path().join("a"), "theirs").expect("written");
        fs::create_dir(to.path().join("sub")).expect("made");
        fs::write(to.path().join("sub/g"), "theirs").expect("written");
        assert!(move_all(&source, &target).is_err());
        assert!(move_plainly(&source, b"a", &target).is_err());
        assert!(move_plainly(&source, b"sub", &target).is_err());
        assert_eq!(fs::read_to_string(to.path().join("a")).expect("kept"), "theirs");
        assert_eq!(fs::read_to_string(from.path().join("a")).expect("kept"), "a");
        assert!(to.path().join("sub/g").exists() && from.path().join("sub/f").exists());
    }

    #[test]
    fn without_a_rename_that_replaces_nothing_files_move_by_a_second_name() {
        let (from, to, source, target) = folders();
        for name in ["a", "sub"] {
            move_plainly(&source, name.as_bytes(), &target).expect("moved");
        }
        assert_eq!(fs::read_to_string(to.path().join("sub/f")).expect("moved"), "sub/f");
        assert_eq!(fs::read_to_string(to.path().join("a")).expect("moved"), "a");
        // Killed between the two names; and a file of that name that is another one.
        fs::hard_link(to.path().join("a"), from.path().join("a")).expect("linked");
        fs::write(from.path().join("b"), "ours").expect("written");
        fs::write(to.path().join("b"), "theirs").expect("written");
        end_moves(&source, &target).expect("ended");
        assert_eq!(names(&source).expect("listed"), [b"b"]);
        assert_eq!(fs::read_to_string(to.path().join("a")).expect("kept"), "a");
    }
}
