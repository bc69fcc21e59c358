//! A volume that is a block device. It is listed as what it is to a guest: the one disk image of a volume.
//!
//! ```text
//!   as a source   ""          the folder that a device has not
//!                 disk.img    all of it; the device tells no holes
//!   as a target   takes just such a list, if it is as large; what of it lies behind the image's end becomes zeroes
//! ```
//!
//! **One state from another.** A device has no times. Its kernel counts what was written to it and discarded, and that, its
//! size, the machine's boot and the holder's path tell one state from another. Some drivers count nothing. Then only the path
//! does, and that is enough: nobody but the holder can write to the volume while it lives, and whoever lets a guest have it
//! again makes another holder first.
//!
//! A copy into a device has its journal in the holder's folder. What the device holds is the journal's word, or not known: a
//! fresh device is not read for that. A chunk of which it is not known is written whatever comes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::SeekFrom;
use somersault_agent_core::transfer::{Entry, Held, Kind, Manifest, Metadata, Noted, chunk_count};

use super::TransferError;
use super::handing::{self, Handed};
use super::io::{ChunkReader, Pool, punch};
use super::root::Place;
use super::scan::{Scanned, shown};

/// The name that a guest's disk has in a folder.
const DISK_IMAGE: &[u8] = b"disk.img";

/// What a disk image gets: qemu's user and group in KubeVirt's launchers.
const OF_IMAGE: Metadata = Metadata { mode: 0o660, uid: 107, gid: 107, mtime_s: 0, mtime_ns: 0 };
const OF_FOLDER: Metadata = Metadata { mode: 0o755, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0 };

/// Where the kernel counts the writes to each device.
const COUNTERS: &str = "/sys/dev/block";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Of its fields the sectors written (zeroes among them) and those discarded, counted from 0 as in Documentation/block/stat.rst
/// of Linux. The number of writes counts flushes too.
const WRITES: [usize; 2] = [6, 13];

/// The device of a place, open.
#[derive(Debug)]
pub(super) struct Device {
    handed: Handed,
    size_bytes: u64,
    /// Where it was handed over.
    path: String,
}

impl Device {
    /// Gets it from its holder.
    pub(super) fn of(place: &Place) -> Result<Self, TransferError> {
        let path = place.display();
        let failed = |error: std::io::Error| {
            TransferError::OrderRefused(format!("the block device of {path} is not to be had: {error}"))
        };
        let handed = handing::take(place.root.as_fd()).map_err(failed)?;
        let size_bytes =
            rustix::fs::seek(&handed.cached, SeekFrom::End(0)).map_err(|error| failed(error.into()))?;
        Ok(Self { handed, size_bytes, path })
    }

    /// What is in it. Reads go around the cache, where that can be.
    pub(super) fn reader(&self, pool: Pool) -> Result<ChunkReader, TransferError> {
        let direct = self.handed.direct.as_ref();
        let file = dup(direct.unwrap_or(&self.handed.cached).as_fd(), &self.path)?;
        Ok(ChunkReader::new(file, pool, direct.is_some()))
    }

    /// For writing.
    pub(super) fn writer(&self) -> Result<OwnedFd, TransferError> {
        dup(self.handed.cached.as_fd(), &self.path)
    }

    /// Lists it. What was written is on the device first, and counted.
    pub(super) fn scan(&self) -> Result<Scanned, TransferError> {
        let data = std::iter::once(0..chunk_count(self.size_bytes)).filter(|all| !all.is_empty()).collect();
        let entries = vec![
            Entry {
                path: Vec::new(),
                kind: Kind::Folder,
                size_bytes: 0,
                metadata: OF_FOLDER,
                data: [].into(),
                extra: None,
            },
            Entry {
                path: DISK_IMAGE.to_vec(),
                kind: Kind::Regular,
                size_bytes: self.size_bytes,
                metadata: OF_IMAGE,
                data,
                extra: None,
            },
        ];
        let manifest = Manifest::new(self.state()?, entries)
            .map_err(|error| TransferError::SourceUnsupported(error.to_string()))?;
        Ok(Scanned { manifest, inodes: vec![0; 2] })
    }

    /// Differs when somebody has written to it, as far as its driver counts that.
    pub(super) fn state(&self) -> Result<[u8; 32], TransferError> {
        let failed = |what: &str, error: std::io::Error| {
            TransferError::SourceReadFailed(format!("{}: {what}: {error}", self.path))
        };
        rustix::fs::fsync(&self.handed.cached).map_err(|error| failed("cannot sync", error.into()))?;
        let stat =
            rustix::fs::fstat(&self.handed.cached).map_err(|error| failed("cannot look", error.into()))?;
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let read = |path: &str| std::fs::read_to_string(path).map_err(|error| failed(path, error));
        let counters = read(&format!("{COUNTERS}/{major}:{minor}/stat"))?;
        let counters: Vec<_> = counters.split_ascii_whitespace().collect();
        let writes: Vec<_> = WRITES.iter().filter_map(|field| counters.get(*field).copied()).collect();
        let words =
            [&self.path, read(BOOT_ID)?.trim(), &format!("{major}:{minor}"), &writes.join(" ")].join("\n");
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"somersault device 1").update(&self.size_bytes.to_le_bytes()).update(words.as_bytes());
        Ok(*hasher.finalize().as_bytes())
    }

    /// Makes it ready for a volume: it takes a single disk image. Returns what of each entry the device holds by the word of a
    /// journal.
    pub(super) fn ready(
        &self,
        manifest: &Manifest,
        noted: impl FnOnce(&[u8]) -> Option<Noted>,
    ) -> Result<Vec<Held>, TransferError> {
        let (Some(image), 2) = (manifest.entry(1), manifest.len()) else { return Err(no_image(manifest)) };
        if image.kind != Kind::Regular || image.path != DISK_IMAGE {
            return Err(no_image(manifest));
        }
        let rest = self.size_bytes.checked_sub(image.size_bytes).ok_or_else(|| {
            let (needed, there) = (image.size_bytes, self.size_bytes);
            TransferError::TargetFull(format!("{needed} bytes are needed, the block device has {there}"))
        })?;
        if rest > 0 {
            punch(&self.handed.cached, image.size_bytes, rest)
                .map_err(|error| TransferError::target("cannot clear the end of", &self.path, error))?;
        }
        let noted = noted(&image.path).map(|noted| noted.held);
        let noted = noted.filter(|held| held.size_bytes() == image.size_bytes);
        Ok(vec![Held::fresh(0), noted.unwrap_or_else(|| Held::unknown(image.size_bytes))])
    }

    /// Makes what was written durable.
    pub(super) fn sync(&self) -> Result<(), TransferError> {
        rustix::fs::fsync(&self.handed.cached)
            .map_err(|error| TransferError::target("cannot sync", &self.path, error))
    }
}

fn no_image(manifest: &Manifest) -> TransferError {
    let found = manifest.entries().skip(1).map(|entry| shown(&entry.path)).take(3).collect::<Vec<_>>();
    let why =
        format!("a block device takes a single disk.img and nothing else; there is {}", found.join(", "));
    TransferError::SourceUnsupported(why)
}

fn dup(file: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, TransferError> {
    file.try_clone_to_owned().map_err(|error| TransferError::target("cannot open", path, error))
}
