//! Lists a volume: what a manifest says, and what tells one state of it from another.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use somersault_agent_core::transfer::{Entry, Kind, MAX_DEPTH, MAX_ENTRIES, MAX_RANGES, Manifest, Metadata};

use super::TransferError;
use super::extents;
use super::root::open_beneath;

/// Extended attributes that belong to the host and not to the content: `SELinux` labels are set anew by the kubelet's
/// mount, and libvirt's notes on who owned a file before it was opened are void elsewhere.
const HOST_XATTRS: [&[u8]; 2] = [b"security.selinux", b"trusted.libvirt.security."];

/// A volume as it was found.
#[derive(Clone, Debug)]
pub(super) struct Scanned {
    /// What goes over the wire.
    pub(super) manifest: Manifest,
    /// Inode of each entry, to notice a file that was swapped.
    pub(super) inodes: Vec<u64>,
}

/// Lists the volume whose folder is open. Files are synced first, so that their holes can be told.
pub(super) fn scan(volume: BorrowedFd<'_>) -> Result<Scanned, TransferError> {
    let mut found = Walk { volume, entries: BTreeMap::new(), ranges: 0 };
    check_xattrs(volume, b"")?;
    let root = stat_of(volume, b"")?;
    found.entries.insert(Vec::new(), (Entry::folder(Vec::new(), &root), root));
    let mut folders = vec![Vec::new()];
    while let Some(path) = folders.pop() {
        found.folder(&path, &mut folders)?;
    }
    let identity = identity(found.entries.values());
    let inodes = found.entries.values().map(|(_, stat)| stat.st_ino).collect();
    let entries = found.entries.into_values().map(|(entry, _)| entry).collect();
    let manifest = Manifest::new(identity, entries)
        .map_err(|error| TransferError::SourceUnsupported(error.to_string()))?;
    Ok(Scanned { manifest, inodes })
}

/// Differs when a regular file was written to, added, removed or swapped. The folders' own times are left out: the
/// rename to the final name changes them.
pub(super) fn fingerprint(volume: BorrowedFd<'_>) -> Result<[u8; 32], TransferError> {
    let mut found = Walk { volume, entries: BTreeMap::new(), ranges: 0 };
    let mut folders = vec![Vec::new()];
    while let Some(path) = folders.pop() {
        found.folder(&path, &mut folders)?;
    }
    Ok(identity(found.entries.values().filter(|(entry, _)| entry.kind == Kind::Regular)))
}

struct Walk<'a> {
    volume: BorrowedFd<'a>,
    entries: BTreeMap<Vec<u8>, (Entry, Stat)>,
    ranges: usize,
}

impl Walk<'_> {
    fn folder(&mut self, path: &[u8], folders: &mut Vec<Vec<u8>>) -> Result<(), TransferError> {
        let folder = open(self.volume, path, OFlags::DIRECTORY)?;
        for item in Dir::read_from(&folder).map_err(|error| read_failed(path, error))? {
            let item = item.map_err(|error| read_failed(path, error))?;
            let name = item.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let path = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            if self.entries.len() >= MAX_ENTRIES {
                let why = format!("more than {MAX_ENTRIES} files and folders");
                return Err(TransferError::SourceUnsupported(why));
            }
            if path.split(|byte| *byte == b'/').count() > MAX_DEPTH {
                return Err(unsupported(&path, "folders are nested too deeply"));
            }
            let stat = rustix::fs::statat(&folder, item.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| read_failed(&path, error))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => self.file(path)?,
                FileType::Directory => {
                    let inner = open(self.volume, &path, OFlags::DIRECTORY)?;
                    check_xattrs(&inner, &path)?;
                    let stat = stat_of(inner.as_fd(), &path)?;
                    self.entries.insert(path.clone(), (Entry::folder(path.clone(), &stat), stat));
                    folders.push(path);
                }
                FileType::Symlink => return Err(unsupported(&path, "a symbolic link")),
                FileType::Fifo => return Err(unsupported(&path, "a named pipe")),
                FileType::Socket => return Err(unsupported(&path, "a socket")),
                FileType::CharacterDevice | FileType::BlockDevice => {
                    return Err(unsupported(&path, "a device node"));
                }
                FileType::Unknown => return Err(unsupported(&path, "a file of unknown type")),
            }
        }
        Ok(())
    }

    fn file(&mut self, path: Vec<u8>) -> Result<(), TransferError> {
        let file = open(self.volume, &path, OFlags::NONBLOCK)?;
        check_xattrs(&file, &path)?;
        if extents::holes_are_trusted(&file) {
            rustix::fs::fsync(&file).map_err(|error| read_failed(&path, error))?;
        }
        let stat = stat_of(file.as_fd(), &path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(TransferError::SourceChanged(format!("{} was replaced", shown(&path))));
        }
        if stat.st_nlink > 1 {
            return Err(unsupported(&path, "a file with several hard links"));
        }
        let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let limit = MAX_RANGES.saturating_sub(self.ranges) / 2;
        let data =
            extents::data_chunks(&file, size_bytes, limit).map_err(|error| read_failed(&path, error))?;
        self.ranges += data.len();
        let metadata = metadata(&stat);
        let entry = Entry { path: path.clone(), kind: Kind::Regular, size_bytes, metadata, data };
        self.entries.insert(path, (entry, stat));
        Ok(())
    }
}

/// Makes an entry of a folder.
trait FolderEntry {
    fn folder(path: Vec<u8>, stat: &Stat) -> Self;
}

impl FolderEntry for Entry {
    fn folder(path: Vec<u8>, stat: &Stat) -> Self {
        Self { path, kind: Kind::Folder, size_bytes: 0, metadata: metadata(stat), data: Vec::new() }
    }
}

/// Opens for reading without touching the access time, where we may.
pub(super) fn open(volume: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, TransferError> {
    let name: &[u8] = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | flags;
    let opened = match open_beneath(volume, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => open_beneath(volume, name, flags, Mode::empty()),
        result => result,
    };
    opened.map_err(|error| match error {
        Errno::XDEV => unsupported(path, "another filesystem is mounted there"),
        Errno::LOOP => unsupported(path, "a symbolic link"),
        Errno::NOENT | Errno::NOTDIR => TransferError::SourceChanged(format!("{} is gone", shown(path))),
        error => read_failed(path, error),
    })
}

pub(super) fn metadata(stat: &Stat) -> Metadata {
    Metadata {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_s: stat.st_mtime,
        mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}

pub(super) fn stat_of(file: BorrowedFd<'_>, path: &[u8]) -> Result<Stat, TransferError> {
    rustix::fs::fstat(file).map_err(|error| read_failed(path, error))
}

pub(super) fn read_failed(path: &[u8], error: impl Into<io::Error>) -> TransferError {
    TransferError::SourceReadFailed(format!("{}: {}", shown(path), error.into()))
}

/// For messages: hostile names are escaped.
pub(super) fn shown(path: &[u8]) -> String {
    if path.is_empty() { "the volume's folder".into() } else { path.escape_ascii().to_string() }
}

fn unsupported(path: &[u8], why: &str) -> TransferError {
    TransferError::SourceUnsupported(format!("{}: {why}", shown(path)))
}

fn check_xattrs(file: impl AsFd, path: &[u8]) -> Result<(), TransferError> {
    // A list longer than this is none that host tools write.
    let mut list = [0; 4096];
    let length = match rustix::fs::flistxattr(&file, list.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(Errno::RANGE) => return Err(unsupported(path, "has many extended attributes")),
        Err(error) => return Err(read_failed(path, error)),
    };
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let foreign = |name: &&[u8]| !HOST_XATTRS.iter().any(|host| name.starts_with(host));
    match names.into_iter().find(foreign) {
        None => Ok(()),
        Some(name) => Err(unsupported(path, &format!("has the extended attribute {}", name.escape_ascii()))),
    }
}

fn identity<'a>(entries: impl Iterator<Item = &'a (Entry, Stat)>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for (entry, stat) in entries {
        hasher.update(&(entry.path.len() as u64).to_le_bytes());
        hasher.update(&entry.path);
        hasher.update(&stat.st_mode.to_le_bytes());
        hasher.update(&stat.st_uid.to_le_bytes());
        hasher.update(&stat.st_gid.to_le_bytes());
        hasher.update(&stat.st_ino.to_le_bytes());
        hasher.update(&stat.st_size.to_le_bytes());
        for (seconds, nanoseconds) in
            [(stat.st_mtime, stat.st_mtime_nsec), (stat.st_ctime, stat.st_ctime_nsec)]
        {
            hasher.update(&seconds.to_le_bytes());
            hasher.update(&nanoseconds.to_le_bytes());
        }
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::super::root::open_root;
    use super::*;

    fn list(path: &Path) -> Result<Scanned, TransferError> {
        scan(open_root(path).expect("open").as_fd())
    }

    #[test]
    fn files_and_folders_are_listed_in_order() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("sub")).expect("made");
        std::fs::write(dir.path().join("sub/b"), "bb").expect("written");
        std::fs::write(dir.path().join("disk.img"), "d").expect("written");
        std::fs::set_permissions(dir.path().join("disk.img"), PermissionsExt::from_mode(0o640)).expect("set");
        let scanned = list(dir.path()).expect("listed");
        let entries = scanned.manifest.entries();
        let paths: Vec<_> = entries.iter().map(Entry::display).collect();
        assert_eq!(paths, ["", "disk.img", "sub", "sub/b"]);
        assert_eq!((entries[1].metadata.mode, entries[1].size_bytes, entries[3].size_bytes), (0o640, 1, 2));
        assert_eq!(list(dir.path()).expect("listed").manifest.identity(), scanned.manifest.identity());
    }

    #[test]
    fn every_change_is_another_identity() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("f");
        std::fs::write(&file, "one").expect("written");
        let mut seen = vec![list(dir.path()).expect("listed").manifest.identity()];
        let mut differs = |what: &str| {
            let identity = list(dir.path()).expect("listed").manifest.identity();
            assert!(!seen.contains(&identity), "{what}");
            seen.push(identity);
        };
        std::fs::write(&file, "four").expect("written");
        differs("size");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("set");
        differs("mode");
        std::fs::write(dir.path().join("g"), "").expect("written");
        differs("a new file");
        std::fs::rename(dir.path().join("g"), dir.path().join("h")).expect("renamed");
        differs("a name");
    }

    #[test]
    fn what_cannot_be_copied_is_named() {
        let refused = |make: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().expect("a folder");
            std::fs::create_dir(dir.path().join("sub")).expect("made");
            make(&dir.path().join("sub/odd"));
            let error = list(dir.path()).expect_err("refused");
            assert_eq!(error.reason(), "SourceUnsupported");
            assert!(error.message().contains("sub/odd"), "{}", error.message());
        };
        refused(&|path| symlink("/etc/passwd", path).expect("linked"));
        refused(&|path| {
            rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::RUSR, 0).expect("a pipe");
        });
        refused(&|path| drop(std::os::unix::net::UnixListener::bind(path).expect("bound")));
        refused(&|path| {
            std::fs::write(path, "x").expect("written");
            std::fs::hard_link(path, path.with_extension("again")).expect("linked");
        });
    }

    #[test]
    fn a_file_with_an_attribute_of_its_own_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("f");
        std::fs::write(&path, "x").expect("written");
        let flags = rustix::fs::XattrFlags::empty();
        match rustix::fs::setxattr(&path, "user.note", b"1", flags) {
            Err(Errno::OPNOTSUPP) => return,
            result => result.expect("set"),
        }
        let message = list(dir.path()).expect_err("refused").message();
        assert!(message.contains("user.note"), "{message}");
    }
}
