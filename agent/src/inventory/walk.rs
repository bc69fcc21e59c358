//! Counts one volume. Its content is hostile: no symbolic link is followed, no mount entered, nothing opened but
//! folders, and everything has a limit.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, Dir, DirEntry, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statx,
};
use rustix::path::Arg;

/// Entries of one volume. A walk of so many takes a minute from the cache and an hour from a disk; a volume that
/// has more is counted in part.
const ENTRIES_MAX: u64 = 20_000_000;
/// Folders found and not yet read, by path: 65,536 long paths take 100 MB at the very worst.
const PENDING_MAX: usize = 65_536;
/// Files with several names that are remembered, 8 bytes each and then some.
const LINKED_MAX: usize = 1_000_000;
/// A walk works this long, then leaves the disk alone.
const SLICE: Duration = Duration::from_millis(20);
/// For this long.
const PAUSE: Duration = Duration::from_millis(80);
/// The file in which KubeVirt keeps a disk on a volume of mode Filesystem.
const DISK_IMAGE: &CStr = c"disk.img";

/// Size of a volume, itself included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Blocks really taken, of files and folders; a file with several names counts once.
    pub allocated_bytes: u64,
    /// Sum of the lengths of regular files; a file with several names counts once.
    pub apparent_bytes: u64,
    /// Files, folders and others.
    pub inodes: u64,
    /// Folders and files that could not be looked at, or lay beyond a limit: the other figures lack them.
    pub skipped: u64,
}

/// How a walk is slowed down, and how long it has worked.
pub(super) struct Pace<'a> {
    step: &'a dyn Fn(),
    slice_began: Instant,
    busy: Duration,
}

impl<'a> Pace<'a> {
    pub(super) fn new(step: &'a dyn Fn()) -> Self {
        Self { step, slice_began: Instant::now(), busy: Duration::ZERO }
    }

    /// Working time so far.
    pub(super) fn busy(&self) -> Duration {
        self.busy + self.slice_began.elapsed()
    }

    fn step(&mut self) {
        (self.step)();
        let worked = self.slice_began.elapsed();
        if worked >= SLICE {
            self.busy += worked;
            thread::sleep(PAUSE);
            self.slice_began = Instant::now();
        }
    }
}

/// Counts the folder `name` below `root`. It may be a mount of its own; mounts inside it are left out.
pub(super) fn walk_volume(root: BorrowedFd<'_>, name: &str, pace: &mut Pace<'_>) -> io::Result<Usage> {
    let volume = open_folder(root, name, ResolveFlags::empty())?;
    let itself = look(volume.as_fd(), c"")?;
    let mut walk = Walk { device: device(&itself), usage: Usage::default(), linked: HashSet::new() };
    walk.count(&itself);
    let mut pending = vec![CString::from(c".")];
    while let Some(folder) = pending.pop() {
        let opened = open_folder(volume.as_fd(), folder.as_c_str(), ResolveFlags::NO_XDEV);
        match opened.and_then(|opened| Ok(Dir::read_from(&opened)?).map(|entries| (opened, entries))) {
            Ok((opened, entries)) => walk.read(&opened, entries, &folder, &mut pending, pace),
            // Gone since it was seen, or unreadable.
            Err(_) => walk.usage.skipped += 1,
        }
    }
    Ok(walk.usage)
}

/// What an entry of a root is; asks the inode where the filesystem does not say. `None` where nobody can tell.
pub(super) fn kind_of(parent: BorrowedFd<'_>, entry: &DirEntry) -> Option<FileType> {
    match entry.file_type() {
        FileType::Unknown => {
            let found = look(parent, entry.file_name()).ok()?;
            Some(FileType::from_raw_mode(found.stx_mode.into()))
        }
        known => Some(known),
    }
}

/// Whether the folder `name` below `root` has a regular file `disk.img` directly in it: a symbolic link of that name,
/// or a folder, is none. `None` where it could not be looked for.
pub(super) fn has_disk_image(root: BorrowedFd<'_>, name: &str) -> Option<bool> {
    let volume = open_folder(root, name, ResolveFlags::empty()).ok()?;
    match look(volume.as_fd(), DISK_IMAGE) {
        Ok(found) => Some(is(&found, FileType::RegularFile)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(false),
        Err(_) => None,
    }
}

struct Walk {
    device: (u32, u32),
    usage: Usage,
    linked: HashSet<u64>,
}

impl Walk {
    fn read(
        &mut self,
        folder: &OwnedFd,
        entries: Dir,
        path: &CStr,
        pending: &mut Vec<CString>,
        pace: &mut Pace<'_>,
    ) {
        for entry in entries {
            pace.step();
            let Ok(entry) = entry else {
                self.usage.skipped += 1;
                return;
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if self.usage.inodes >= ENTRIES_MAX {
                self.usage.skipped += 1;
                return;
            }
            match look(folder.as_fd(), name) {
                Ok(found) if device(&found) != self.device => {}
                Ok(found) => {
                    self.count(&found);
                    if is(&found, FileType::Directory) {
                        self.push(pending, path, name);
                    }
                }
                Err(_) => self.usage.skipped += 1,
            }
        }
    }

    fn count(&mut self, found: &Statx) {
        let folder = is(found, FileType::Directory);
        if !folder && found.stx_nlink > 1 {
            if self.linked.len() >= LINKED_MAX {
                self.usage.skipped += 1;
                return;
            }
            if !self.linked.insert(found.stx_ino) {
                return;
            }
        }
        self.usage.inodes += 1;
        // The unit of stx_blocks is 512 bytes whatever the filesystem's block size, statx(2).
        self.usage.allocated_bytes =
            self.usage.allocated_bytes.saturating_add(found.stx_blocks.saturating_mul(512));
        if is(found, FileType::RegularFile) {
            self.usage.apparent_bytes = self.usage.apparent_bytes.saturating_add(found.stx_size);
        }
    }

    fn push(&mut self, pending: &mut Vec<CString>, path: &CStr, name: &CStr) {
        let joined = [path.to_bytes(), b"/", name.to_bytes()].concat();
        match CString::new(joined) {
            Ok(joined) if pending.len() < PENDING_MAX => pending.push(joined),
            _ => self.usage.skipped += 1,
        }
    }
}

pub(super) fn open_folder(parent: BorrowedFd<'_>, path: impl Arg, more: ResolveFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | more;
    Ok(openat2(parent, path, flags, Mode::empty(), resolve)?)
}

/// The inode of an entry; the folder itself for an empty name.
fn look(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let flags = if name.is_empty() { flags | AtFlags::EMPTY_PATH } else { flags };
    let wanted =
        StatxFlags::TYPE | StatxFlags::NLINK | StatxFlags::INO | StatxFlags::SIZE | StatxFlags::BLOCKS;
    Ok(statx(parent, name, flags, wanted)?)
}

fn device(found: &Statx) -> (u32, u32) {
    (found.stx_dev_major, found.stx_dev_minor)
}

fn is(found: &Statx, file_type: FileType) -> bool {
    FileType::from_raw_mode(found.stx_mode.into()) == file_type
}
