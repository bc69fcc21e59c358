//! How large the volumes are: each folder below a storage root (directly, or as deep as its class puts them), counted by a
//! thread for each root.
//!
//! ```text
//!   waiting --period--> sampling --done--> published, waiting --10 s--> room --> published, waiting
//!                          '--no step for 30 s--> stuck (a dead mount); the last sample stays, and ages
//! ```
//!
//! The thread is the only one that touches the root. When its mount is dead it hangs alone, and no second one is
//! started. Listing the root is cheap and done each period; walking the volumes takes 1 % of the time at most. Each
//! listing also looks for `disk.img` in every folder, the file in which KubeVirt keeps a disk: one look at one inode.

mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags, fstatvfs, open};
use somersault_proto::model::AbsolutePath;
use somersault_proto::model::limits::VOLUMES_MAX;
use tracing::warn;

use crate::clock::boottime;
pub use walk::Usage;
use walk::{Pace, walk_volume};

/// A thread that took no step for this long hangs in its mount: one directory entry takes milliseconds even on a
/// slow disk, and the NFS client's first complaint comes after 60 s.
const STUCK_AFTER: Duration = Duration::from_secs(30);
/// How often it is asked how much room there is, between two listings: one system call, and who has just made room for a copy
/// does not want to wait for a listing.
const ROOM_PERIOD: Duration = Duration::from_secs(10);
/// The walks of a root take at most one part in this many of the time.
const WALK_DUTY: u32 = 100;

/// A root as it was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RootSample {
    /// When.
    pub taken_at: Duration,
    /// The root with symbolic links resolved, for the search of its mount.
    pub real_path: PathBuf,
    /// Its filesystem.
    pub room: Room,
    /// When its folders were listed; `None` where some of them could not be told, so that the absence of a name from
    /// `volumes` says nothing.
    pub listed_at: Option<Duration>,
    /// Folders that are volumes, by their path below the root.
    pub volumes: BTreeMap<String, VolumeSample>,
}

/// How much a filesystem holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Its size.
    pub size_bytes: u64,
    /// What an unprivileged process could still write there.
    pub available_bytes: u64,
    /// It is mounted read-only.
    pub read_only: bool,
}

impl Room {
    fn of(folder: &OwnedFd) -> io::Result<Self> {
        let filesystem = fstatvfs(folder)?;
        let size_bytes = filesystem.f_blocks.saturating_mul(filesystem.f_frsize);
        Ok(Self {
            size_bytes,
            available_bytes: filesystem.f_bavail.saturating_mul(filesystem.f_frsize).min(size_bytes),
            read_only: filesystem.f_flag.contains(StatVfsMountFlags::RDONLY),
        })
    }
}

/// A volume as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeSample {
    /// When its walk ended.
    pub taken_at: Duration,
    /// What it takes.
    pub usage: Usage,
    /// The last listing found a regular file `disk.img` in it; `None` where it could not be looked for.
    pub disk_image: Option<bool>,
}

/// What is known of one root.
#[derive(Debug, Default)]
pub struct RootWatch {
    sample: Mutex<Option<Arc<RootSample>>>,
    sampling: AtomicBool,
    stepped_ms: AtomicU64,
}

impl RootWatch {
    /// The last sample.
    pub fn sample(&self) -> Option<Arc<RootSample>> {
        self.sample.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The thread hangs in its mount.
    pub fn stuck(&self) -> bool {
        let idle = boottime().saturating_sub(Duration::from_millis(self.stepped_ms.load(Ordering::Relaxed)));
        self.sampling.load(Ordering::Relaxed) && idle > STUCK_AFTER
    }

    /// One that has found this and looks no more.
    #[cfg(test)]
    pub(crate) fn holding(sample: Option<RootSample>) -> Self {
        Self { sample: Mutex::new(sample.map(Arc::new)), ..Self::default() }
    }

    fn publish(&self, sample: RootSample) {
        *self.sample.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(sample));
    }

    /// Work that may hang.
    fn stepping<T>(&self, work: impl FnOnce() -> T) -> T {
        self.step();
        self.sampling.store(true, Ordering::Relaxed);
        let done = work();
        self.sampling.store(false, Ordering::Relaxed);
        done
    }

    fn step(&self) {
        let now = u64::try_from(boottime().as_millis()).unwrap_or(u64::MAX);
        self.stepped_ms.store(now, Ordering::Relaxed);
    }
}

/// Starts the thread of a root whose volumes lie `depth` folders deep. It ends with the process: nobody waits for a thread
/// that may hang.
pub fn start(root: &Path, depth: u8, period: Duration) -> io::Result<Arc<RootWatch>> {
    let watch = Arc::new(RootWatch::default());
    let mut sampler = Sampler::new(root, depth, period);
    let mut last_error = String::new();
    thread::Builder::new().name("inventory".to_owned()).spawn({
        let watch = watch.clone();
        move || {
            loop {
                match watch.stepping(|| sampler.sample(&|| watch.step())) {
                    Ok(sample) => {
                        last_error.clear();
                        watch.publish(sample);
                    }
                    Err(error) if error.to_string() != last_error => {
                        last_error = error.to_string();
                        warn!(root = %sampler.root.display(), %error, "cannot look into the root");
                    }
                    Err(_) => {}
                }
                let mut rest = period;
                while rest > ROOM_PERIOD {
                    thread::sleep(ROOM_PERIOD);
                    rest -= ROOM_PERIOD;
                    if let Some(mut sample) = watch.sample().map(Arc::unwrap_or_clone)
                        && watch.stepping(|| sampler.look_again(&mut sample)).is_ok()
                    {
                        watch.publish(sample);
                    }
                }
                thread::sleep(rest);
            }
        }
    })?;
    Ok(watch)
}

/// Samples one root, and remembers what needs no second walk yet.
pub struct Sampler {
    root: PathBuf,
    depth: u8,
    period: Duration,
    volumes: BTreeMap<String, VolumeSample>,
    walks_due: Duration,
    unreportable: usize,
}

impl Sampler {
    /// For this root, whose volumes lie `depth` folders deep; they are walked again after `period` at the earliest.
    pub fn new(root: &Path, depth: u8, period: Duration) -> Self {
        Self {
            root: root.to_owned(),
            depth,
            period,
            volumes: BTreeMap::new(),
            walks_due: Duration::ZERO,
            unreportable: 0,
        }
    }

    /// Lists the root, walks the new volumes, and the known ones when they are due. `step` is called at every
    /// entry.
    pub fn sample(&mut self, step: &dyn Fn()) -> io::Result<RootSample> {
        let real_path = fs::canonicalize(&self.root)?;
        let root = self.open()?;
        let filesystem = Room::of(&root)?;
        step();
        let listed_at = boottime();
        let Listing { names, unreportable, complete } = Listing::of(&root, &self.root, self.depth, step)?;
        if unreportable != self.unreportable {
            let root = self.root.display();
            warn!(%root, folders = unreportable, "cannot report folders: odd names, or beyond {VOLUMES_MAX}");
            self.unreportable = unreportable;
        }
        self.volumes.retain(|name, _| names.contains(name));
        let mut images = BTreeMap::new();
        for name in &names {
            step();
            images.insert(name.clone(), walk::has_disk_image(root.as_fd(), name));
        }
        self.walk(&root, names, step);
        for (name, volume) in &mut self.volumes {
            volume.disk_image = images.get(name).copied().flatten();
        }
        Ok(RootSample {
            taken_at: boottime(),
            real_path,
            room: filesystem,
            listed_at: complete.then_some(listed_at),
            volumes: self.volumes.clone(),
        })
    }

    /// Asks how much room there is by now. Where the root leads elsewhere since, the next listing says so.
    pub fn look_again(&self, sample: &mut RootSample) -> io::Result<()> {
        sample.room = Room::of(&self.open()?)?;
        sample.taken_at = boottime();
        Ok(())
    }

    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(open(&self.root, flags, Mode::empty())?)
    }

    fn walk(&mut self, root: &OwnedFd, names: BTreeSet<String>, step: &dyn Fn()) {
        let started = boottime();
        let all_due = started >= self.walks_due;
        let mut pace = Pace::new(step);
        for name in names {
            if !all_due && self.volumes.contains_key(&name) {
                continue;
            }
            match walk_volume(root.as_fd(), &name, &mut pace) {
                Ok(usage) => {
                    let path = self.root.join(&name);
                    let sample = VolumeSample { taken_at: boottime(), usage, disk_image: None };
                    let before = self.volumes.insert(name, sample);
                    if usage.skipped != before.map_or(0, |before| before.usage.skipped) {
                        warn!(path = %path.display(), skipped = usage.skipped, "parts could not be counted");
                    }
                }
                // A volume that vanished since the listing is seen as gone by the next one.
                Err(error) => {
                    warn!(path = %self.root.join(&name).display(), %error, "cannot count the volume");
                    if error.kind() != io::ErrorKind::NotFound {
                        // It is there, and must not be taken for gone because nobody can look into it.
                        let usage = Usage { skipped: 1, ..Usage::default() };
                        let sample = VolumeSample { taken_at: boottime(), usage, disk_image: None };
                        self.volumes.entry(name).or_insert(sample);
                    }
                }
            }
        }
        if all_due {
            let rest = pace.busy().saturating_mul(WALK_DUTY).max(self.period);
            self.walks_due = started + rest;
        }
    }
}

/// The volumes of a root.
struct Listing {
    /// Paths below the root of the folders that are volumes: not hidden ones (partial copies), not what `fsck` leaves.
    names: BTreeSet<String>,
    /// How many have a name that no report can hold, or are too many.
    unreportable: usize,
    /// Every folder is in `names`. A symbolic link is not followed, so what it leads to may be a folder that is not.
    complete: bool,
}

impl Listing {
    fn of(root: &OwnedFd, path: &Path, depth: u8, step: &dyn Fn()) -> io::Result<Self> {
        let mut listing = Self { names: BTreeSet::new(), unreportable: 0, complete: true };
        listing.read(root, path, "", depth, step)?;
        Ok(listing)
    }

    /// Reads a folder that lies at `above` below the root. At depth 1 its folders are volumes; above, they hold them.
    fn read(
        &mut self,
        folder: &OwnedFd,
        root: &Path,
        above: &str,
        depth: u8,
        step: &dyn Fn(),
    ) -> io::Result<()> {
        for entry in Dir::read_from(folder)? {
            step();
            let entry = entry?;
            let raw = entry.file_name();
            if raw.to_bytes().starts_with(b".") || raw.to_bytes() == b"lost+found" {
                continue;
            }
            match walk::kind_of(folder.as_fd(), &entry) {
                Some(FileType::Directory) => {}
                Some(FileType::Symlink) | None => {
                    self.complete = false;
                    continue;
                }
                Some(_) => continue,
            }
            let below = raw.to_str().ok().map(|name| format!("{above}{name}"));
            let below = below.filter(|below| volume_path(root, below).is_some());
            let Some(below) = below.filter(|_| self.names.len() < VOLUMES_MAX) else {
                self.unreportable += 1;
                self.complete = false;
                continue;
            };
            if depth == 1 {
                self.names.insert(below);
                continue;
            }
            let opened = walk::open_folder(folder.as_fd(), raw, ResolveFlags::empty());
            match opened.and_then(|inner| self.read(&inner, root, &format!("{below}/"), depth - 1, step)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => self.complete = false,
                // One that is gone since it was seen holds nothing.
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// The path of a volume as reports show it; `None` where they cannot.
pub fn volume_path(root: &Path, name: &str) -> Option<AbsolutePath> {
    root.join(name).to_str()?.parse().ok()
}

#[cfg(test)]
mod tests;
