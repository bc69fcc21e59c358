//! Lists a volume: what a manifest says, and what tells one state of it from another.
//!
//! At the top of a mounted volume lie things that are no part of it, and are not listed: the filesystem's own
//! `lost+found`, and the folders of copies into it. So it lists as a plain folder with the same content does.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use somersault_agent_core::transfer::{Entry, Kind, MAX_DEPTH, MAX_ENTRIES, MAX_RANGES, Manifest, Metadata};

use super::TransferError;
use super::extents;
use super::root::{PARTIAL_PREFIX, PARTIAL_SUFFIX, open_beneath};

/// Where e2fsck puts what it finds; mkfs makes it at the top of each ext4.
pub(super) const LOST_AND_FOUND: &[u8] = b"lost+found";

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
pub(super) fn scan(volume: BorrowedFd<'_>, top: Top) -> Result<Scanned, TransferError> {
    let mut found = Walk { volume, top, entries: BTreeMap::new(), ranges: 0 };
    check_xattrs(volume, b"")?;
    let root = stat_of(volume, b"")?;
    found.entries.insert(Vec::new(), (Entry::folder(Vec::new(), &root), root));
    found.folders()?;
    let identity = identity(found.entries.values().map(|(entry, stat)| (entry, stat, true)));
    let inodes = found.entries.values().map(|(_, stat)| stat.st_ino).collect();
    let entries = found.entries.into_values().map(|(entry, _)| entry).collect();
    let manifest = Manifest::new(identity, entries)
        .map_err(|error| TransferError::SourceUnsupported(error.to_string()))?;
    Ok(Scanned { manifest, inodes })
}

/// Differs when a regular file was written to, added, removed or swapped. The folders' own times are left out: the
/// rename to the final name changes them.
pub(super) fn fingerprint(volume: BorrowedFd<'_>) -> Result<[u8; 32], TransferError> {
    let found = Walk::of(volume, Top::Volume)?;
    Ok(identity(found.files().map(|(entry, stat)| (entry, stat, true))))
}

/// The same for a mounted volume, which may lie in two folders while it moves from one to the other. Each move changes
/// the status time (ctime) of a file at the top, so those times are left out too; whoever writes changes the
/// modification time as well.
pub(super) fn fingerprint_of_mounted(parts: &[BorrowedFd<'_>]) -> Result<[u8; 32], TransferError> {
    let mut whole = BTreeMap::new();
    for part in parts {
        for (path, found) in Walk::of(*part, Top::Mount)?.entries {
            let what = shown(&path);
            if whole.insert(path, found).is_some() {
                return Err(TransferError::SourceChanged(format!("{what} is there twice")));
            }
        }
    }
    let files = whole.values().filter(|(entry, _)| entry.kind == Kind::Regular);
    Ok(identity(files.map(|(entry, stat)| (entry, stat, entry.path.contains(&b'/')))))
}

/// What lies at the top of a folder that is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Top {
    /// Nothing but the volume.
    Volume,
    /// What [`is_beside`] tells of, too: the folder is the root of a mount.
    Mount,
}

/// Whether something at the top of a mounted volume is no part of it. A file of such a name is one, and is kept.
pub(super) fn is_beside(name: &[u8], kind: FileType) -> bool {
    kind == FileType::Directory && is_reserved(name)
}

/// Whether a folder of this name at the top of a mounted volume is no part of it.
pub(super) fn is_reserved(name: &[u8]) -> bool {
    let ours = |rest: &[u8]| rest.ends_with(PARTIAL_SUFFIX.as_bytes()) && !rest.contains(&b'/');
    name == LOST_AND_FOUND || name.strip_prefix(PARTIAL_PREFIX.as_bytes()).is_some_and(ours)
}

struct Walk<'a> {
    volume: BorrowedFd<'a>,
    top: Top,
    entries: BTreeMap<Vec<u8>, (Entry, Stat)>,
    ranges: usize,
}

impl<'a> Walk<'a> {
    /// What lies in the folder, without the folder itself.
    fn of(volume: BorrowedFd<'a>, top: Top) -> Result<Self, TransferError> {
        let mut found = Self { volume, top, entries: BTreeMap::new(), ranges: 0 };
        found.folders()?;
        Ok(found)
    }

    fn files(&self) -> impl Iterator<Item = &(Entry, Stat)> {
        self.entries.values().filter(|(entry, _)| entry.kind == Kind::Regular)
    }

    fn folders(&mut self) -> Result<(), TransferError> {
        let mut folders = vec![Vec::new()];
        while let Some(path) = folders.pop() {
            self.folder(&path, &mut folders)?;
        }
        Ok(())
    }

    fn folder(&mut self, path: &[u8], folders: &mut Vec<Vec<u8>>) -> Result<(), TransferError> {
        let folder = open(self.volume, path, OFlags::DIRECTORY)?;
        for item in Dir::read_from(&folder).map_err(|error| read_failed(path, error))? {
            let item = item.map_err(|error| read_failed(path, error))?;
            let name = item.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let is_top = path.is_empty();
            let path = if is_top { name.to_vec() } else { [path, b"/", name].concat() };
            if self.entries.len() >= MAX_ENTRIES {
                let why = format!("more than {MAX_ENTRIES} files and folders");
                return Err(TransferError::SourceUnsupported(why));
            }
            if path.split(|byte| *byte == b'/').count() > MAX_DEPTH {
                return Err(unsupported(&path, "folders are nested too deeply"));
            }
            let stat = rustix::fs::statat(&folder, item.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| read_failed(&path, error))?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if is_top && self.top == Top::Mount && is_beside(name, kind) {
                continue;
            }
            match kind {
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

/// Each entry comes with the word whether its status time counts.
fn identity<'a>(entries: impl Iterator<Item = (&'a Entry, &'a Stat, bool)>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for (entry, stat, with_status_time) in entries {
        hasher.update(&(entry.path.len() as u64).to_le_bytes());
        hasher.update(&entry.path);
        hasher.update(&stat.st_mode.to_le_bytes());
        hasher.update(&stat.st_uid.to_le_bytes());
        hasher.update(&stat.st_gid.to_le_bytes());
        hasher.update(&stat.st_ino.to_le_bytes());
        hasher.update(&stat.st_size.to_le_bytes());
        let status = with_status_time.then_some((stat.st_ctime, stat.st_ctime_nsec));
        for (seconds, nanoseconds) in std::iter::once((stat.st_mtime, stat.st_mtime_nsec)).chain(status) {
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
        scan(open_root(path).expect("open").as_fd(), Top::Volume)
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
    fn what_lies_beside_a_mounted_volume_is_no_part_of_it() {
        let dir = tempfile::tempdir().expect("a folder");
        for folder in ["lost+found", ".somersault-t1.partial", "sub/lost+found", ".somersault-x"] {
            std::fs::create_dir_all(dir.path().join(folder)).expect("made");
            std::fs::write(dir.path().join(folder).join("f"), "x").expect("written");
        }
        std::fs::write(dir.path().join(".somersault-t2.partial"), "a file").expect("written");
        let paths = |top| -> Vec<_> {
            let scanned = scan(open_root(dir.path()).expect("open").as_fd(), top).expect("listed");
            scanned.manifest.entries().iter().map(Entry::display).collect()
        };
        let all = paths(Top::Volume);
        assert!(
            all.contains(&"lost+found/f".to_owned()) && all.contains(&".somersault-t1.partial".to_owned())
        );
        let kept = [
            "",
            ".somersault-t2.partial",
            ".somersault-x",
            ".somersault-x/f",
            "sub",
            "sub/lost+found",
            "sub/lost+found/f",
        ];
        assert_eq!(paths(Top::Mount), kept);
    }

    #[test]
    fn a_move_leaves_the_fingerprint_and_a_write_does_not() {
        let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        std::fs::create_dir(from.path().join("sub")).expect("made");
        for file in ["a", "b", "sub/c"] {
            std::fs::write(from.path().join(file), file).expect("written");
        }
        let both = || {
            let parts = [from.path(), to.path()].map(|path| open_root(path).expect("open"));
            fingerprint_of_mounted(&[parts[0].as_fd(), parts[1].as_fd()])
        };
        let before = both().expect("taken");
        for name in ["b", "sub"] {
            std::fs::rename(from.path().join(name), to.path().join(name)).expect("moved");
            assert_eq!(both().expect("taken"), before, "{name}");
        }
        std::fs::write(to.path().join("b"), "B").expect("written");
        assert_ne!(both().expect("taken"), before);
        std::fs::write(to.path().join("a"), "another").expect("written");
        assert!(both().is_err(), "a name that is in both is nobody's move");
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
