//! One pass in the target's partial folder: its files made ready, chunks written, synced and noted, metadata set.
//!
//! Everything here blocks, and is called on the blocking pool.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use somersault_agent_core::transfer::{
    CHUNK_BYTES, Entry, Head, Held, Kind, Leaf, Manifest, Noted, Published, Record, Session, Stamp,
    chunk_count, span_bytes,
};
use somersault_proto::model::Pull;

use super::TransferError;
use super::blocks::BlockHashes;
use super::device::Device;
use super::extents::{data_chunks, holes_are_trusted};
use super::io::{ChunkReader, Pool, drop_cache, punch};
use super::journal::Journal;
use super::partial::{Partial, remove_tree};
use super::received::Settled;
use super::root::open_beneath;
use super::scan::{self, shown};
use super::{lanes, metadata};

/// Leaves of one journal record.
const RECORD_LEAVES: usize = 8192;

/// Up to so many files are synced one by one. Each sync of one waits for the disk; one of the whole filesystem waits once, but for
/// everything that anybody has written to it.
const SYNCED_EACH_MAX: usize = 64;

/// Fewer entries are not worth a thread.
const PART_MIN: usize = 1024;

/// A pass under way.
#[derive(Debug)]
pub(super) struct Copying {
    pub(super) partial: Partial,
    pub(super) files: Arc<Files>,
    /// What is being copied.
    manifest: Manifest,
    journal: Mutex<Journal>,
    final_copy: bool,
}

/// The files of a volume on this node.
#[derive(Debug)]
pub(super) struct Files {
    medium: Medium,
    pool: Pool,
}

/// What they lie on.
#[derive(Debug)]
enum Medium {
    Folder(OwnedFd),
    /// The one file is a device.
    Device(Device),
}

impl Files {
    pub(super) fn new(folder: OwnedFd, pool: Pool) -> Self {
        Self { medium: Medium::Folder(folder), pool }
    }

    /// Opens a file so that reading it asks the device, not the cache.
    pub(super) fn reader(&self, entry: &Entry) -> Result<ChunkReader, TransferError> {
        let folder = match &self.medium {
            Medium::Folder(folder) => folder,
            Medium::Device(device) => return device.reader(self.pool.clone()),
        };
        let failed = |error: Errno| TransferError::target("cannot read back", shown(&entry.path), error);
        let open = |flags| {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | flags;
            open_beneath(folder, entry.path.as_slice(), flags, Mode::empty())
        };
        match open(OFlags::DIRECT) {
            Ok(file) => Ok(ChunkReader::new(file, self.pool.clone(), true)),
            Err(Errno::INVAL) => {
                let file = open(OFlags::empty()).map_err(failed)?;
                drop_cache(&file, 0, entry.size_bytes);
                Ok(ChunkReader::new(file, self.pool.clone(), false))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Opens a file for writing.
    fn writer(&self, entry: &Entry) -> Result<OwnedFd, TransferError> {
        let folder = match &self.medium {
            Medium::Folder(folder) => folder,
            Medium::Device(device) => return device.writer(),
        };
        open_beneath(folder, entry.path.as_slice(), OFlags::RDWR | OFlags::NONBLOCK, Mode::empty())
            .map_err(|error| TransferError::target("cannot open", shown(&entry.path), error))
    }

    /// Whether reading them before a copy tells what need not be sent. A device that no journal knows is fresh.
    pub(super) fn are_worth_reading(&self) -> bool {
        matches!(self.medium, Medium::Folder(_))
    }
}

/// A chunk that is there, but perhaps not synced.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) file: usize,
    pub(super) chunk: u64,
    pub(super) settled: Settled,
    /// It is what the source has. Where zeroes stand for what that could not read, each try asks for it again.
    pub(super) whole: bool,
    /// Its file; none of a small file among many.
    pub(super) handle: Option<Arc<OwnedFd>>,
}

impl Copying {
    /// Makes the files ready for a manifest, finds out what they hold, and begins the journal of the pass. `source_path`
    /// is what of the order's path stays as long as the source does.
    pub(super) fn begin(
        partial: Partial,
        manifest: Manifest,
        pull: &Pull,
        source_path: &str,
        pool: Pool,
    ) -> Result<(Self, Session), TransferError> {
        let mut replay = partial.replay()?.filter(|replay| {
            replay.head.transfer == pull.transfer
                && replay.head.source_node == pull.source_node.as_str()
                && replay.head.source_path == source_path
        });
        let same_pass = replay.as_ref().is_some_and(|replay| {
            replay.head.identity == manifest.identity() && replay.head.final_copy == pull.final_copy
        });
        let noted = |path: &[u8]| replay.as_mut()?.take(path);
        let (medium, held) = if partial.place.is_device() {
            let device = Device::of(&partial.place)?;
            let held = device.ready(&manifest, noted)?;
            (Medium::Device(device), held)
        } else {
            let data = partial.data()?;
            let held = make_files(&data, &manifest, noted)?;
            (Medium::Folder(data), held)
        };
        drop(replay);
        let begins = Head {
            transfer: pull.transfer.clone(),
            source_node: pull.source_node.to_string(),
            source_path: source_path.to_owned(),
            identity: manifest.identity(),
            final_copy: pull.final_copy,
            files: manifest.entries().map(|entry| (entry.path, entry.size_bytes)).collect(),
        };
        let other_size = other_size(&manifest, &held);
        let session = Session::begin(manifest, held, same_pass);
        if let Medium::Folder(data) = &medium {
            resize(data, session.manifest(), &other_size)?;
        }
        let journal = Journal::create(&partial.folder, begins, session.records())
            .map_err(|error| partial.failed("cannot write the journal in", error))?;
        let files = Arc::new(Files { medium, pool });
        let (manifest, journal) = (session.manifest().clone(), Mutex::new(journal));
        Ok((Self { partial, files, manifest, journal, final_copy: pull.final_copy }, session))
    }

    /// Opens a file of the copy for writing.
    pub(super) fn open(&self, entry: &Entry) -> Result<OwnedFd, TransferError> {
        self.files.writer(entry)
    }

    /// Whether a file stays open until it is synced. Small ones of many do not: they are synced all at once.
    pub(super) fn is_kept_open(&self, entry: &Entry) -> bool {
        entry.chunks() != 1 || self.manifest.len() <= SYNCED_EACH_MAX
    }

    /// What is kept of the blocks of a file of the copy.
    pub(super) fn block_hashes(&self, entry: &Entry) -> BlockHashes {
        BlockHashes::open(&self.partial.folder, &entry.path, entry.size_bytes, !self.final_copy)
    }

    /// Makes chunks holes, and notes it: where a filesystem's holes are not trusted, nothing else tells that what was there
    /// is gone.
    pub(super) fn punch(
        &self,
        index: usize,
        entry: &Entry,
        chunks: &[Range<u64>],
    ) -> Result<(), TransferError> {
        let file = self.open(entry)?;
        let clear =
            |range: &Range<u64>| punch(&file, range.start * CHUNK_BYTES, span_bytes(entry.size_bytes, range));
        chunks
            .iter()
            .try_for_each(clear)
            .and_then(|()| Ok(rustix::fs::fdatasync(&file)?))
            .map_err(|error| TransferError::target("cannot clear", shown(&entry.path), error))?;
        self.note(chunks.iter().flat_map(|range| zeroes(index, range)))
    }

    /// Makes chunks durable, then notes them.
    pub(super) fn checkpoint(&self, mut written: Vec<Written>) -> Result<(), TransferError> {
        written.sort_by_key(|written| (written.file, written.chunk));
        let is_new = |written: &Written| matches!(written.settled, Settled::Written(_));
        let files = || written.chunk_by(|a, b| a.file == b.file).filter(|group| group.iter().any(is_new));
        let failed = |error| self.partial.failed("cannot sync a file in", error);
        let at_once =
            files().nth(SYNCED_EACH_MAX).is_some() || files().any(|group| group[0].handle.is_none());
        if at_once {
            rustix::fs::syncfs(&self.partial.folder).map_err(failed)?;
        }
        for group in files() {
            let (first, last) = (group[0].chunk, group[group.len() - 1].chunk + 1);
            let (offset, len) = (first * CHUNK_BYTES, (last - first) * CHUNK_BYTES);
            let Some(file) = &group[0].handle else {
                // All that was not done already is to drop it, and without that nothing is lost.
                if let Some(Ok(file)) = self.manifest.entry(group[0].file).map(|entry| self.open(&entry)) {
                    drop_cache(&file, offset, len);
                }
                continue;
            };
            if !at_once {
                // One descriptor is enough: fdatasync writes out the file, whoever wrote to it.
                rustix::fs::fdatasync(file).map_err(failed)?;
            }
            drop_cache(file, offset, len);
        }
        let joined = |a: &Written, b: &Written| (a.file, a.chunk + 1, a.whole) == (b.file, b.chunk, b.whole);
        self.note(written.chunk_by(joined).flat_map(records))
    }

    /// Appends to the journal.
    pub(super) fn note(&self, records: impl IntoIterator<Item = Record>) -> Result<(), TransferError> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.append(records).map_err(|error| self.partial.failed("cannot append to the journal in", error))
    }

    /// Notes that all which the files hold was read back from the device, of those that are still as they were before.
    pub(super) fn note_read_back(
        &self,
        manifest: &Manifest,
        before: &BTreeMap<u32, Stamp>,
    ) -> Result<(), TransferError> {
        let same = self.stamps(manifest)?.into_iter().filter(|(file, stamp)| before.get(file) == Some(stamp));
        self.note(same.map(|(file, stamp)| Record::ReadBack { file, stamp }))
    }

    /// How each file is, once it is on the disk.
    pub(super) fn stamps(&self, manifest: &Manifest) -> Result<BTreeMap<u32, Stamp>, TransferError> {
        let mut stamps = BTreeMap::new();
        if let Medium::Device(device) = &self.files.medium {
            // It has no times that would tell.
            return device.sync().map(|()| stamps);
        }
        let at_once = self.sync_many(manifest)?;
        for (file, entry) in manifest.entries().enumerate() {
            if entry.kind != Kind::Regular {
                continue;
            }
            let opened = self.open(&entry)?;
            let synced = if at_once { Ok(()) } else { rustix::fs::fsync(&opened) };
            let stamp = synced.and_then(|()| rustix::fs::fstat(&opened)).map(|stat| stamp(&stat));
            let stamp =
                stamp.map_err(|error| TransferError::target("cannot sync", shown(&entry.path), error))?;
            stamps.insert(u32::try_from(file).unwrap_or(u32::MAX), stamp);
        }
        Ok(stamps)
    }

    /// Syncs everything at once, where that costs less than one by one; false where it does not, and nothing was synced.
    fn sync_many(&self, manifest: &Manifest) -> Result<bool, TransferError> {
        let many = manifest.len() > SYNCED_EACH_MAX;
        if many {
            rustix::fs::syncfs(&self.partial.folder)
                .map_err(|error| self.partial.failed("cannot sync the filesystem of", error))?;
        }
        Ok(many)
    }

    /// Sets owner, permissions and times, and syncs everything: files first, each folder after what is in it.
    pub(super) fn seal(&self, manifest: &Manifest) -> Result<(), TransferError> {
        let folder = match &self.files.medium {
            Medium::Folder(folder) => folder,
            Medium::Device(device) => return device.sync(),
        };
        let one_by_one = manifest.len() <= SYNCED_EACH_MAX;
        side_by_side(manifest, |entry| match entry.kind {
            Kind::Regular => seal_opened(folder, entry, one_by_one),
            Kind::Symlink | Kind::Pipe => {
                let (parent, name) = parent_of(folder, &entry.path)?;
                metadata::set_unopened(&parent, name, entry)
            }
            // A link is the file that it names.
            Kind::Folder | Kind::Link => Ok(()),
        })?;
        for entry in manifest.entries().rev().filter(|entry| entry.kind == Kind::Folder) {
            seal_opened(folder, &entry, one_by_one)?;
        }
        self.sync_many(manifest).map(drop)
    }

    /// Gives the verified copy its final name. `folder` is what the volume's own folder has at the source; `unreadable` what
    /// the copy has zeroes for, which whoever asks for the published copy again is to be told, too.
    pub(super) fn publish(
        &self,
        root: [u8; 32],
        folder: &Entry,
        unreadable: Option<String>,
    ) -> Result<(), TransferError> {
        let place = &self.partial.place;
        let (volume, fingerprint) = match &self.files.medium {
            Medium::Device(device) => (&place.root, device.state()?),
            Medium::Folder(data) if place.is_mounted() => {
                (&place.root, scan::fingerprint_of_mounted(&[data.as_fd()])?)
            }
            Medium::Folder(data) => (data, scan::fingerprint(data.as_fd())?),
        };
        let inode =
            rustix::fs::fstat(volume).map_err(|error| self.partial.failed("cannot look into", error))?.st_ino;
        let publishing = Record::Publishing(Published { inode, fingerprint, root });
        self.note(unreadable.map(Record::Unreadable).into_iter().chain([publishing]))?;
        self.partial.publish(folder)
    }
}

fn seal_opened(folder: &OwnedFd, entry: &Entry, sync: bool) -> Result<(), TransferError> {
    let failed = |error: Errno| TransferError::target("cannot open", shown(&entry.path), error);
    let (name, flags): (&[u8], _) = match (entry.kind, entry.path.as_slice()) {
        (Kind::Folder, b"") => (b".", OFlags::DIRECTORY),
        (Kind::Folder, path) => (path, OFlags::DIRECTORY),
        (_, path) => (path, OFlags::NONBLOCK),
    };
    let file = open_beneath(folder, name, OFlags::RDONLY | flags, Mode::empty()).map_err(failed)?;
    let now = metadata::set(&file, entry.metadata, entry.attributes(), &entry.path)?;
    if sync {
        rustix::fs::fsync(&file)
            .map_err(|error| TransferError::target("cannot sync", shown(&entry.path), error))?;
    }
    if entry.kind == Kind::Regular {
        // What was still on its way to the disk when its part of the cache was dropped.
        drop_cache(&file, 0, entry.size_bytes);
        if u64::try_from(now.st_size).unwrap_or(0) != entry.size_bytes {
            return Err(metadata::lost(&entry.path));
        }
    }
    Ok(())
}

/// The folder in which a name lies, and the name there.
fn parent_of<'a>(data: &OwnedFd, path: &'a [u8]) -> Result<(OwnedFd, &'a [u8]), TransferError> {
    let slash = path.iter().rposition(|byte| *byte == b'/');
    let (parent, name) = slash.map_or((&b"."[..], path), |slash| (&path[..slash], &path[slash + 1..]));
    let parent = open_beneath(data, parent, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
        .map_err(|error| TransferError::target("cannot open the folder of", shown(path), error))?;
    Ok((parent, name))
}

/// Makes a link or a pipe. None of it was there before: [`clean`] keeps only files and folders.
fn make_name(data: &OwnedFd, entry: &Entry) -> Result<(), TransferError> {
    let (parent, name) = parent_of(data, &entry.path)?;
    let made = match entry.kind {
        Kind::Symlink => rustix::fs::symlinkat(entry.target(), &parent, name),
        Kind::Pipe => rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0),
        // The file lies there already: its name comes before this one.
        Kind::Link => {
            let (of, first) = parent_of(data, entry.target())?;
            rustix::fs::linkat(&of, first, &parent, name, AtFlags::empty())
        }
        Kind::Regular | Kind::Folder => return Ok(()),
    };
    made.map_err(|error| TransferError::target("cannot make", shown(&entry.path), error))
}

/// Does something with each entry, in parts side by side where there are many: one core makes some 30,000 files a second, and a
/// disk takes more.
fn side_by_side<T: Send>(
    manifest: &Manifest,
    work: impl Fn(&Entry) -> Result<T, TransferError> + Sync,
) -> Result<Vec<T>, TransferError> {
    let part = |entries: Range<usize>| -> Result<Vec<T>, TransferError> {
        entries.filter_map(|index| manifest.entry(index)).map(|entry| work(&entry)).collect()
    };
    let length = manifest.len().div_ceil(lanes::count()).max(PART_MIN);
    let starts: Vec<usize> = (0..manifest.len()).step_by(length).collect();
    std::thread::scope(|scope| {
        let part = &part;
        let start = |start: &usize| {
            let entries = *start..manifest.len().min(*start + length);
            scope.spawn(move || part(entries))
        };
        let parts: Vec<_> = starts.iter().map(start).collect();
        let ended = parts.into_iter().map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic)));
        ended.collect::<Result<Vec<_>, _>>().map(|parts| parts.into_iter().flatten().collect())
    })
}

/// Makes a folder's files ready for a manifest. Returns what they hold, entry by entry.
fn make_files(
    data: &OwnedFd,
    manifest: &Manifest,
    noted: impl FnMut(&[u8]) -> Option<Noted> + Send,
) -> Result<Vec<Held>, TransferError> {
    clean(data, manifest)?;
    check_room(data, manifest)?;
    // The volume's own folder is there.
    for entry in manifest.entries().skip(1).filter(|entry| entry.kind == Kind::Folder) {
        make_folder(data, &entry.path)?;
    }
    let noted = Mutex::new(noted);
    let held = side_by_side(manifest, |entry| match entry.kind {
        Kind::Regular => {
            let noted = noted.lock().unwrap_or_else(PoisonError::into_inner)(&entry.path);
            make_file(data, entry, noted)
        }
        _ => Ok(Held::fresh(0)),
    })?;
    for entry in manifest.entries() {
        make_name(data, &entry)?;
    }
    Ok(held)
}

/// Entries whose files are of another size than they are to have.
fn other_size(manifest: &Manifest, held: &[Held]) -> Vec<usize> {
    let differs = |(entry, held): (Entry, &Held)| held.size_bytes() != entry.size_bytes;
    let differs = manifest.entries().zip(held).map(differs);
    differs.enumerate().filter_map(|(file, differs)| differs.then_some(file)).collect()
}

/// Gives each of these files the size that it is to have, once what it holds is known.
fn resize(data: &OwnedFd, manifest: &Manifest, files: &[usize]) -> Result<(), TransferError> {
    for entry in files.iter().filter_map(|file| manifest.entry(*file)) {
        open_beneath(data, entry.path.as_slice(), OFlags::RDWR | OFlags::NONBLOCK, Mode::empty())
            .and_then(|file| rustix::fs::ftruncate(&file, entry.size_bytes))
            .map_err(|error| TransferError::target("cannot resize", shown(&entry.path), error))?;
    }
    Ok(())
}

/// Chunks that are holes now, as records.
fn zeroes(file: usize, chunks: &Range<u64>) -> impl Iterator<Item = Record> + use<> {
    let (start, end) = (chunks.start, chunks.end);
    let file = u32::try_from(file).unwrap_or(u32::MAX);
    (start..end).step_by(RECORD_LEAVES).map(move |first| Record::Leaves {
        file,
        first,
        settled: false,
        leaves: (first..end).take(RECORD_LEAVES).map(|_| Leaf::ZERO).collect(),
    })
}

/// One run of chunks as records.
fn records(run: &[Written]) -> impl Iterator<Item = Record> + '_ {
    run.chunks(RECORD_LEAVES).map(|part| Record::Leaves {
        file: u32::try_from(part[0].file).unwrap_or(u32::MAX),
        first: part[0].chunk,
        settled: part[0].whole,
        leaves: part.iter().map(|written| written.settled.leaf()).collect(),
    })
}

fn stamp(stat: &Stat) -> Stamp {
    Stamp {
        inode: stat.st_ino,
        modified: (stat.st_mtime, stat.st_mtime_nsec),
        changed: (stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// Removes what is not in the manifest, or not of its kind there; and all links and pipes, which are made anew. Then every file
/// has one name, or somebody else has it too, and it goes.
fn clean(data: &OwnedFd, manifest: &Manifest) -> Result<(), TransferError> {
    remove_where(data, |path, stat| {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::Regular,
            FileType::Directory => Kind::Folder,
            _ => return true,
        };
        manifest.kind_of(path) != Some(kind)
    })?;
    remove_where(data, |_, stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink > 1
    })
}

/// Removes what is so, with all that is below it.
fn remove_where(data: &OwnedFd, is_so: impl Fn(&[u8], &Stat) -> bool) -> Result<(), TransferError> {
    let mut folders = vec![Vec::new()];
    while let Some(path) = folders.pop() {
        let failed = |error: io::Error| TransferError::target("cannot clean", shown(&path), error);
        let name: &[u8] = if path.is_empty() { b"." } else { &path };
        let folder = open_beneath(data, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
            .map_err(|error| failed(error.into()))?;
        let items: Vec<_> = Dir::read_from(&folder)
            .and_then(Iterator::collect::<Result<_, _>>)
            .map_err(|error| failed(error.into()))?;
        for item in items {
            let name = item.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let inner = if path.is_empty() { name.to_vec() } else { [&path, b"/".as_slice(), name].concat() };
            let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| failed(error.into()))?;
            if is_so(&inner, &stat) {
                remove_tree(&folder, name, 0).map_err(failed)?;
            } else if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                folders.push(inner);
            }
        }
    }
    Ok(())
}

/// Refuses before anything is written what cannot fit. What the partial copy holds already counts as room.
fn check_room(data: &OwnedFd, manifest: &Manifest) -> Result<(), TransferError> {
    let failed =
        |error: Errno| TransferError::target("cannot ask for the free space of", "the target", error);
    let mut held = 0;
    let is_fresh = Dir::read_from(data)
        .map_err(failed)?
        .all(|item| item.is_ok_and(|item| matches!(item.file_name().to_bytes(), b"." | b"..")));
    for entry in manifest.entries().filter(|entry| !is_fresh && entry.kind == Kind::Regular) {
        match rustix::fs::statat(data, entry.path.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => held += u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let stat = rustix::fs::fstatvfs(data).map_err(failed)?;
    let available = stat.f_bavail.saturating_mul(stat.f_frsize);
    let needed = manifest.data_bytes().saturating_sub(held);
    if needed > available {
        return Err(TransferError::TargetFull(format!("{needed} bytes are needed, {available} are free")));
    }
    Ok(())
}

fn make_folder(data: &OwnedFd, path: &[u8]) -> Result<(), TransferError> {
    let failed = |error| TransferError::target("cannot make the folder", shown(path), error);
    let (parent, name) = parent_of(data, path)?;
    match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Opens or makes a file with its owner, and finds out what it holds. The journal's word counts only for a file of the size that
/// the journal knows, and never for a hole. A file with nothing in it gets its size at once.
fn make_file(data: &OwnedFd, entry: &Entry, noted: Option<Noted>) -> Result<Held, TransferError> {
    let failed = |error: Errno| TransferError::target("cannot make", shown(&entry.path), error);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK;
    let file = open_beneath(data, entry.path.as_slice(), flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    metadata::own(&file, entry.metadata, &entry.path)?;
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
    if size_bytes == 0 {
        rustix::fs::ftruncate(&file, entry.size_bytes)
            .map_err(|error| TransferError::target("cannot resize", shown(&entry.path), error))?;
        return Ok(Held::fresh(entry.size_bytes));
    }
    let noted = noted.filter(|noted| noted.held.size_bytes() == size_bytes);
    let mut held = noted.map_or_else(|| Held::unknown(size_bytes), |noted| noted.found(stamp(&stat)));
    if holes_are_trusted(&file) {
        rustix::fs::fsync(&file).map_err(failed)?;
        let ranges = data_chunks(&file, size_bytes, usize::MAX)
            .map_err(|error| TransferError::target("cannot find the holes of", shown(&entry.path), error))?;
        let mut at = 0;
        for range in ranges {
            held.holes(at..range.start);
            at = range.end;
        }
        held.holes(at..chunk_count(size_bytes));
    }
    Ok(held)
}
