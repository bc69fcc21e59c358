//! Lists a volume: what a manifest says, and what tells one state of it from another.
//!
//! Of a file with several names the first one, in byte order, has it; the others are further names. A name outside of the volume
//! could not be kept: such a file is refused, and so is whatever else no copy keeps (sockets, device nodes, attributes of the
//! host's).
//!
//! At the top of a mounted volume lie things that are no part of it, and are not listed: the filesystem's own
//! `lost+found`, and the folders of copies into it. So it lists as a plain folder with the same content does.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use somersault_agent_core::transfer::{
    Attributes, CHUNK_BYTES, Entry, Extra, Kind, MAX_DEPTH, MAX_ENTRIES, MAX_RANGES, Manifest, Metadata,
    is_kept,
};

use super::TransferError;
use super::extents;
use super::root::{PARTIAL_PREFIX, PARTIAL_SUFFIX, open_beneath};

/// Where e2fsck puts what it finds; mkfs makes it at the top of each ext4.
pub(super) const LOST_AND_FOUND: &[u8] = b"lost+found";

/// Extended attributes that belong to the host and not to the content: `SELinux` labels are set anew by the kubelet's
/// mount, and libvirt's notes on who owned a file before it was opened are void elsewhere.
const HOST_ATTRIBUTES: [&[u8]; 2] = [b"security.selinux", b"trusted.libvirt.security."];
/// Longest list of names, and longest value, that Linux knows (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const ATTRIBUTE_MAX: usize = 65_536;
/// Room for the names of a few.
const ATTRIBUTES_USUAL: usize = 256;

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
    let attributes = attributes_of(volume, b"")?;
    let root = stat_of(volume, b"")?;
    let root_entry =
        Entry { extra: Extra::of(Vec::new(), attributes), ..named(Vec::new(), Kind::Folder, &root) };
    found.entries.insert(Vec::new(), (root_entry, root));
    found.folders()?;
    found.name_further_names()?;
    let identity = identity(found.entries.values().map(|(entry, stat)| (entry, stat, true)));
    let inodes = found.entries.values().map(|(_, stat)| stat.st_ino).collect();
    let entries = found.entries.into_values().map(|(entry, _)| entry).collect();
    let manifest = Manifest::new(identity, entries)
        .map_err(|error| TransferError::SourceUnsupported(error.to_string()))?;
    Ok(Scanned { manifest, inodes })
}

/// Differs when anything but a folder was written to, added, removed or swapped. The folders' own times are left out: the
/// rename to the final name changes them.
pub(super) fn fingerprint(volume: BorrowedFd<'_>) -> Result<[u8; 32], TransferError> {
    let found = Walk::of(volume, Top::Volume)?;
    Ok(identity(found.but_folders().map(|(entry, stat)| (entry, stat, true))))
}

/// The same for a mounted volume, which may lie in two folders while it moves from one to the other. Each move changes
/// the status time (ctime) of a file at the top, by whichever of its names, so those times are left out too; whoever writes
/// changes the modification time as well.
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
    let files = whole.values().filter(|(entry, _)| entry.kind != Kind::Folder);
    let stays = |entry: &Entry, stat: &Stat| entry.path.contains(&b'/') && stat.st_nlink == 1;
    Ok(identity(files.map(|(entry, stat)| (entry, stat, stays(entry, stat)))))
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

    fn but_folders(&self) -> impl Iterator<Item = &(Entry, Stat)> {
        self.entries.values().filter(|(entry, _)| entry.kind != Kind::Folder)
    }

    /// Once all are known: the first name of a file has it.
    fn name_further_names(&mut self) -> Result<(), TransferError> {
        let mut first: HashMap<u64, (Vec<u8>, u64)> = HashMap::new();
        for (path, (entry, stat)) in &mut self.entries {
            if entry.kind != Kind::Regular || stat.st_nlink < 2 {
                continue;
            }
            match first.get_mut(&stat.st_ino) {
                None => _ = first.insert(stat.st_ino, (path.clone(), 1)),
                Some((of, names)) => {
                    *names += 1;
                    let extra = Extra::of(of.clone(), Attributes::new());
                    *entry = Entry { extra, ..named(path.clone(), Kind::Link, stat) };
                }
            }
        }
        for (path, names) in first.values() {
            let (_, stat) = &self.entries[path];
            if stat.st_nlink != *names {
                return Err(unsupported(path, "a file with another name outside of the volume"));
            }
        }
        Ok(())
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
                    let extra = Extra::of(Vec::new(), attributes_of(&inner, &path)?);
                    let stat = stat_of(inner.as_fd(), &path)?;
                    let entry = Entry { extra, ..named(path.clone(), Kind::Folder, &stat) };
                    self.entries.insert(path.clone(), (entry, stat));
                    folders.push(path);
                }
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(&folder, item.file_name(), Vec::new())
                        .map_err(|error| read_failed(&path, error))?;
                    let extra = Extra::of(target.into_bytes(), Attributes::new());
                    let entry = Entry { extra, ..named(path.clone(), Kind::Symlink, &stat) };
                    self.entries.insert(path, (entry, stat));
                }
                FileType::Fifo => {
                    self.entries.insert(path.clone(), (named(path, Kind::Pipe, &stat), stat));
                }
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
        let attributes = attributes_of(&file, &path)?;
        let stat = stat_of(file.as_fd(), &path)?;
        // Of one chunk there is nothing to be left out; a hole in it is found by its zeroes.
        let is_small = u64::try_from(stat.st_size).is_ok_and(|size| size <= CHUNK_BYTES);
        let stat = if !is_small && extents::holes_are_trusted(&file) {
            rustix::fs::fsync(&file).map_err(|error| read_failed(&path, error))?;
            stat_of(file.as_fd(), &path)?
        } else {
            stat
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(TransferError::SourceChanged(format!("{} was replaced", shown(&path))));
        }
        let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let limit = MAX_RANGES.saturating_sub(self.ranges) / 2;
        let data = if size_bytes <= CHUNK_BYTES {
            (size_bytes > 0).then_some(0..1).into_iter().collect()
        } else {
            extents::data_chunks(&file, size_bytes, limit).map_err(|error| read_failed(&path, error))?
        };
        self.ranges += data.len();
        let extra = Extra::of(Vec::new(), attributes);
        let entry = Entry { size_bytes, data, extra, ..named(path.clone(), Kind::Regular, &stat) };
        self.entries.insert(path, (entry, stat));
        Ok(())
    }
}

/// An entry without content.
fn named(path: Vec<u8>, kind: Kind, stat: &Stat) -> Entry {
    let mut metadata = metadata(stat);
    if kind == Kind::Symlink {
        // Linux has none for it.
        metadata.mode = 0o777;
    }
    Entry { path, kind, size_bytes: 0, metadata, data: Vec::new(), extra: None }
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

/// Extended attributes that are content; one that no copy keeps is refused.
pub(super) fn attributes_of(file: impl AsFd, path: &[u8]) -> Result<Attributes, TransferError> {
    // Most have none, or a label.
    let mut list = vec![0; ATTRIBUTES_USUAL];
    let length = match rustix::fs::flistxattr(&file, list.as_mut_slice()) {
        Err(Errno::RANGE) => {
            list = vec![0; ATTRIBUTE_MAX];
            rustix::fs::flistxattr(&file, list.as_mut_slice())
        }
        Err(Errno::OPNOTSUPP) => Ok(0),
        result => result,
    };
    let length = length.map_err(|error| read_failed(path, error))?;
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let of_content = names.filter(|name| !HOST_ATTRIBUTES.iter().any(|host| name.starts_with(host)));
    let mut found = Attributes::new();
    for name in of_content {
        if !is_kept(name) {
            return Err(unsupported(path, &format!("has the extended attribute {}", name.escape_ascii())));
        }
        let mut value = vec![0; ATTRIBUTE_MAX];
        let length = rustix::fs::fgetxattr(&file, name, value.as_mut_slice())
            .map_err(|error| read_failed(path, error))?;
        value.truncate(length);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
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
        refused(&|path| drop(std::os::unix::net::UnixListener::bind(path).expect("bound")));
        let outside = tempfile::tempdir().expect("a folder");
        refused(&|path| {
            std::fs::write(path, "x").expect("written");
            std::fs::hard_link(path, outside.path().join("again")).expect("linked");
        });
    }

    #[test]
    fn links_pipes_and_further_names_are_listed() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("b"), "bb").expect("written");
        std::fs::hard_link(at("b"), at("a")).expect("linked");
        std::fs::hard_link(at("b"), at("c")).expect("linked");
        symlink("/etc/passwd", at("d")).expect("linked");
        rustix::fs::mknodat(rustix::fs::CWD, at("e"), FileType::Fifo, Mode::RUSR, 0).expect("a pipe");
        let scanned = list(dir.path()).expect("listed");
        let found = scanned.manifest.entries().iter().skip(1);
        let found: Vec<_> = found.map(|entry| (entry.kind, entry.target(), entry.size_bytes)).collect();
        let expected = [
            (Kind::Regular, &b""[..], 2),
            (Kind::Link, b"a", 0),
            (Kind::Link, b"a", 0),
            (Kind::Symlink, b"/etc/passwd", 0),
            (Kind::Pipe, b"", 0),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn attributes_are_listed_and_those_that_no_copy_keeps_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("f");
        std::fs::write(&path, "x").expect("written");
        let set = |name: &str| rustix::fs::setxattr(&path, name, b"1", rustix::fs::XattrFlags::empty());
        match set("user.note") {
            Err(Errno::OPNOTSUPP) => return,
            result => result.expect("set"),
        }
        let scanned = list(dir.path()).expect("listed");
        let found = scanned.manifest.entries()[1].attributes();
        assert_eq!(found.get(b"user.note".as_slice()).map(Vec::as_slice), Some(&b"1"[..]));
        if set("trusted.note").is_ok() {
            let message = list(dir.path()).expect_err("refused").message();
            assert!(message.contains("trusted.note"), "{message}");
        }
    }
}
