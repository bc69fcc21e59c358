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
    Attributes, CHUNK_BYTES, Entry, Extra, Kind, Lister, MAX_DEPTH, MAX_ENTRIES, MAX_RANGES, Manifest,
    Metadata, is_kept,
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
    let (mut lister, mut identity, mut inodes) = (Lister::default(), Identity::default(), Vec::new());
    let mut take = |entry: &Entry, stat: &Stat| {
        identity.add(&entry.path, stat, true);
        inodes.push(stat.st_ino);
        lister.push(entry).map_err(|error| TransferError::SourceUnsupported(error.to_string()))
    };
    let (attributes, stat) = (attributes_of(volume, b"")?, stat_of(volume, b"")?);
    take(
        &Entry { extra: Extra::of(Vec::new(), attributes), ..named(Vec::new(), Kind::Folder, &stat) },
        &stat,
    )?;
    let mut walk =
        Walk { top, opens: true, each: &mut take, count: 1, ranges: 0, first_names: HashMap::new() };
    walk.folder(&[volume], b"")?;
    walk.end()?;
    let manifest =
        lister.end(identity.end()).map_err(|error| TransferError::SourceUnsupported(error.to_string()))?;
    inodes.shrink_to_fit();
    Ok(Scanned { manifest, inodes })
}

/// Differs when anything but a folder was written to, added, removed or swapped. The folders' own times are left out: the
/// rename to the final name changes them.
pub(super) fn fingerprint(volume: BorrowedFd<'_>) -> Result<[u8; 32], TransferError> {
    look(&[volume], Top::Volume, |_, _| true)
}

/// The same for a mounted volume, which may lie in two folders while it moves from one to the other. Each move changes
/// the status time (ctime) of a file at the top, by whichever of its names, so those times are left out too; whoever writes
/// changes the modification time as well.
pub(super) fn fingerprint_of_mounted(parts: &[BorrowedFd<'_>]) -> Result<[u8; 32], TransferError> {
    look(parts, Top::Mount, |path, stat| path.contains(&b'/') && stat.st_nlink == 1)
}

/// Tells one state of all but folders from another, by what their names tell: nothing is opened. `with_status_time` says whose
/// counts.
fn look(
    parts: &[BorrowedFd<'_>],
    top: Top,
    with_status_time: impl Fn(&[u8], &Stat) -> bool,
) -> Result<[u8; 32], TransferError> {
    let mut identity = Identity::default();
    let mut take = |entry: &Entry, stat: &Stat| {
        if entry.kind != Kind::Folder {
            identity.add(&entry.path, stat, with_status_time(&entry.path, stat));
        }
        Ok(())
    };
    let mut walk =
        Walk { top, opens: false, each: &mut take, count: 1, ranges: 0, first_names: HashMap::new() };
    walk.folder(parts, b"")?;
    Ok(identity.end())
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

/// Walks a volume in byte order of the paths, so that nothing needs to be kept but the names of the folders on the way.
struct Walk<'a> {
    top: Top,
    /// Whether everything is opened, for what only that tells.
    opens: bool,
    each: &'a mut dyn FnMut(&Entry, &Stat) -> Result<(), TransferError>,
    count: usize,
    ranges: usize,
    /// Of files with several names, by inode.
    first_names: HashMap<u64, FirstName>,
}

/// The first name of a file that has several.
struct FirstName {
    path: Vec<u8>,
    /// How many it has, and how many of them were seen.
    names: u64,
    seen: u64,
}

/// A name in a folder, which of the folder's parts it lies in, and what it was when the folder was read.
type Name = (Box<[u8]>, usize, FileType);

impl Walk<'_> {
    /// What is in a folder, which may lie in several parts.
    fn folder(&mut self, parts: &[BorrowedFd<'_>], path: &[u8]) -> Result<(), TransferError> {
        // Folders whose content comes next: `a/x` is behind `a-b`, since `/` is behind `-`.
        let mut inner: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for (name, part, kind) in self.names(parts, path)? {
            while let Some(folder) = inner.first_entry().filter(|folder| folder.key().as_slice() < &*name) {
                let (folder, part) = folder.remove_entry();
                self.inside(parts[part], path, &folder)?;
            }
            let inner_path = if path.is_empty() { name.to_vec() } else { [path, b"/", &name].concat() };
            if inner_path.split(|byte| *byte == b'/').count() > MAX_DEPTH {
                return Err(unsupported(&inner_path, "folders are nested too deeply"));
            }
            if self.name(parts[part], &name, kind, inner_path)? == Kind::Folder {
                inner.insert([&name, b"/".as_slice()].concat(), part);
            }
        }
        while let Some((folder, part)) = inner.pop_first() {
            self.inside(parts[part], path, &folder)?;
        }
        Ok(())
    }

    /// A folder in a folder, whose name comes with a slash behind it.
    fn inside(&mut self, around: BorrowedFd<'_>, path: &[u8], name: &[u8]) -> Result<(), TransferError> {
        let name = &name[..name.len() - 1];
        let path = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
        let folder = open_in(around, name, &path, OFlags::DIRECTORY)?;
        self.folder(&[folder.as_fd()], &path)
    }

    /// The names in a folder, in order.
    fn names(&self, parts: &[BorrowedFd<'_>], path: &[u8]) -> Result<Vec<Name>, TransferError> {
        let mut names: Vec<Name> = Vec::new();
        for (part, folder) in parts.iter().enumerate() {
            for item in Dir::read_from(folder).map_err(|error| read_failed(path, error))? {
                let item = item.map_err(|error| read_failed(path, error))?;
                let name = item.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                let kind = match item.file_type() {
                    FileType::Unknown => {
                        let stat = rustix::fs::statat(folder, item.file_name(), AtFlags::SYMLINK_NOFOLLOW);
                        FileType::from_raw_mode(stat.map_err(|error| read_failed(name, error))?.st_mode)
                    }
                    kind => kind,
                };
                if path.is_empty() && self.top == Top::Mount && is_beside(name, kind) {
                    continue;
                }
                if self.count + names.len() >= MAX_ENTRIES {
                    let why = format!("more than {MAX_ENTRIES} files and folders");
                    return Err(TransferError::SourceUnsupported(why));
                }
                names.push((name.into(), part, kind));
            }
        }
        names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        match names.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some([twice, _]) => {
                let why = format!("{} is there twice", shown(&twice.0));
                Err(TransferError::SourceChanged(why))
            }
            _ => Ok(names),
        }
    }

    /// Tells of one name.
    fn name(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        kind: FileType,
        path: Vec<u8>,
    ) -> Result<Kind, TransferError> {
        let stat = || {
            rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| read_failed(&path, error))
        };
        let (entry, stat) = match kind {
            FileType::RegularFile if self.opens => self.file(folder, name, path)?,
            FileType::RegularFile => {
                let stat = stat()?;
                (named(path, Kind::Regular, &stat), stat)
            }
            FileType::Directory if self.opens => {
                let inner = open_in(folder, name, &path, OFlags::DIRECTORY)?;
                let extra = Extra::of(Vec::new(), attributes_of(&inner, &path)?);
                let stat = stat_of(inner.as_fd(), &path)?;
                (Entry { extra, ..named(path, Kind::Folder, &stat) }, stat)
            }
            FileType::Directory => {
                let stat = stat()?;
                (named(path, Kind::Folder, &stat), stat)
            }
            FileType::Symlink => {
                let stat = stat()?;
                let target = rustix::fs::readlinkat(folder, name, Vec::new())
                    .map_err(|error| read_failed(&path, error))?;
                let extra = Extra::of(target.into_bytes(), Attributes::new());
                (Entry { extra, ..named(path, Kind::Symlink, &stat) }, stat)
            }
            FileType::Fifo => {
                let stat = stat()?;
                (named(path, Kind::Pipe, &stat), stat)
            }
            FileType::Socket => return Err(unsupported(&path, "a socket")),
            FileType::CharacterDevice | FileType::BlockDevice => {
                return Err(unsupported(&path, "a device node"));
            }
            FileType::Unknown => return Err(unsupported(&path, "a file of unknown type")),
        };
        if FileType::from_raw_mode(stat.st_mode) != kind {
            return Err(TransferError::SourceChanged(format!("{} was replaced", shown(&entry.path))));
        }
        self.count += 1;
        (self.each)(&entry, &stat)?;
        Ok(entry.kind)
    }

    fn file(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        path: Vec<u8>,
    ) -> Result<(Entry, Stat), TransferError> {
        let file = open_in(folder, name, &path, OFlags::NONBLOCK)?;
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
        if stat.st_nlink > 1
            && let Some(link) = self.further_name(&path, &stat)
        {
            return Ok((link, stat));
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
        Ok((Entry { size_bytes, data: data.into(), extra, ..named(path, Kind::Regular, &stat) }, stat))
    }

    /// A name of a file of which another one came before.
    fn further_name(&mut self, path: &[u8], stat: &Stat) -> Option<Entry> {
        match self.first_names.get_mut(&stat.st_ino) {
            None => {
                let names = stat.st_nlink;
                self.first_names.insert(stat.st_ino, FirstName { path: path.to_vec(), names, seen: 1 });
                None
            }
            Some(first) => {
                first.seen += 1;
                let extra = Extra::of(first.path.clone(), Attributes::new());
                Some(Entry { extra, ..named(path.to_vec(), Kind::Link, stat) })
            }
        }
    }

    /// All names were told of.
    fn end(self) -> Result<(), TransferError> {
        match self.first_names.values().find(|first| first.seen != first.names) {
            Some(first) => Err(unsupported(&first.path, "a file with another name outside of the volume")),
            None => Ok(()),
        }
    }
}

/// An entry without content.
fn named(path: Vec<u8>, kind: Kind, stat: &Stat) -> Entry {
    let mut metadata = metadata(stat);
    if kind == Kind::Symlink {
        // Linux has none for it.
        metadata.mode = 0o777;
    }
    Entry { path, kind, size_bytes: 0, metadata, data: [].into(), extra: None }
}

/// Opens for reading without touching the access time, where we may.
pub(super) fn open(volume: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, TransferError> {
    open_in(volume, path, path, flags)
}

/// The same in a folder of the volume; `path` is for messages.
fn open_in(
    folder: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    flags: OFlags,
) -> Result<OwnedFd, TransferError> {
    let flags = OFlags::RDONLY | flags;
    let opened = match open_beneath(folder, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => open_beneath(folder, name, flags, Mode::empty()),
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

/// What tells one state from another, name by name in order.
#[derive(Default)]
struct Identity(blake3::Hasher);

impl Identity {
    fn add(&mut self, path: &[u8], stat: &Stat, with_status_time: bool) {
        let hasher = &mut self.0;
        hasher.update(&(path.len() as u64).to_le_bytes());
        hasher.update(path);
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

    fn end(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
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
        let entries: Vec<_> = scanned.manifest.entries().collect();
        let paths: Vec<_> = entries.iter().map(Entry::display).collect();
        assert_eq!(paths, ["", "disk.img", "sub", "sub/b"]);
        assert_eq!((entries[1].metadata.mode, entries[1].size_bytes, entries[3].size_bytes), (0o640, 1, 2));
        assert_eq!(list(dir.path()).expect("listed").manifest.identity(), scanned.manifest.identity());
    }

    #[test]
    fn the_order_is_that_of_whole_paths() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut expected = vec![String::new()];
        for folder in ["a", "a-b", "a-b/a", "a0", "a/a", "a/a!", "b"] {
            std::fs::create_dir_all(dir.path().join(folder)).expect("made");
            expected.push(folder.into());
            for file in ["!", "a.c", "z"] {
                let path = format!("{folder}/{file}");
                std::fs::write(dir.path().join(&path), "x").expect("written");
                expected.push(path);
            }
        }
        for file in ["a!", "a-c", "a.", "aa"] {
            std::fs::write(dir.path().join(file), "x").expect("written");
            expected.push(file.into());
        }
        expected.sort();
        let scanned = list(dir.path()).expect("listed");
        assert_eq!(scanned.manifest.entries().map(|entry| entry.display()).collect::<Vec<_>>(), expected);
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
            scanned.manifest.entries().map(|entry| entry.display()).collect()
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
        let found: Vec<_> = scanned.manifest.entries().skip(1).collect();
        let found = found.iter().map(|entry| (entry.kind, entry.target(), entry.size_bytes));
        let found: Vec<_> = found.collect();
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
        let file = scanned.manifest.entry(1).expect("there");
        let found = file.attributes();
        assert_eq!(found.get(b"user.note".as_slice()).map(Vec::as_slice), Some(&b"1"[..]));
        if set("trusted.note").is_ok() {
            let message = list(dir.path()).expect_err("refused").message();
            assert!(message.contains("trusted.note"), "{message}");
        }
    }
}
