//! A source whose disk cannot be read everywhere, by a filesystem of our own: what can be had arrives, what is missing is named
//! by file and range, and nothing is made up for it.

use std::ffi::OsStr;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, FileAttr, FileType, Filesystem, MountOption, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEntry, ReplyOpen, Request,
};
use somersault_agent::transfer::{Limits, PullRequest};

use super::world::*;

const ROOT: u64 = 1;
const VOLUME: u64 = 2;
const IMAGE: u64 = 3;
const SIZE: u64 = 24 * MIB;
const SECTOR: u64 = 4096;

/// What is wrong with the disk now.
#[derive(Default)]
struct Faults {
    /// Reads of these bytes fail.
    bad: Vec<Range<u64>>,
    /// Reads of these never come back.
    hanging: Vec<Range<u64>>,
    /// So often a read of a bad range has failed.
    failed: usize,
    /// Reads that wait for ever.
    held: Vec<ReplyData>,
}

/// A volume with one image in it.
struct Disk(Arc<Mutex<Faults>>);

fn content(offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len)
        .map(|at| u8::try_from((at / 512 * 7 + at % 251) % 255 + 1).expect("a byte"))
        .collect()
}

fn attributes(ino: u64) -> FileAttr {
    let (kind, size) = if ino == IMAGE { (FileType::RegularFile, SIZE) } else { (FileType::Directory, 4096) };
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino,
        size,
        blocks: size / 512,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm: if ino == IMAGE { 0o644 } else { 0o755 },
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

const TTL: Duration = Duration::from_secs(1);

impl Filesystem for Disk {
    fn lookup(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEntry) {
        match (parent, name.to_str()) {
            (ROOT, Some("pvc-1")) => reply.entry(&TTL, &attributes(VOLUME), 0),
            (VOLUME, Some("disk.img")) => reply.entry(&TTL, &attributes(IMAGE), 0),
            _ => reply.error(nix::errno::Errno::ENOENT as i32),
        }
    }

    fn getattr(&mut self, _: &Request<'_>, ino: u64, _: Option<u64>, reply: ReplyAttr) {
        reply.attr(&TTL, &attributes(ino));
    }

    fn open(&mut self, _: &Request<'_>, _: u64, _: i32, reply: ReplyOpen) {
        // Each read asks us: no cache between.
        reply.opened(0, fuser::consts::FOPEN_DIRECT_IO);
    }

    fn readdir(&mut self, _: &Request<'_>, ino: u64, _: u64, offset: i64, mut reply: ReplyDirectory) {
        let item = match ino {
            ROOT => (VOLUME, FileType::Directory, "pvc-1"),
            _ => (IMAGE, FileType::RegularFile, "disk.img"),
        };
        if offset == 0 {
            let _full = reply.add(item.0, 1, item.1, item.2);
        }
        reply.ok();
    }

    fn read(
        &mut self,
        _: &Request<'_>,
        _: u64,
        _: u64,
        offset: i64,
        size: u32,
        _: i32,
        _: Option<u64>,
        reply: ReplyData,
    ) {
        let offset = u64::try_from(offset).expect("not negative");
        let end = SIZE.min(offset + u64::from(size));
        let touches =
            |ranges: &[Range<u64>]| ranges.iter().any(|range| range.start < end && offset < range.end);
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if touches(&faults.hanging) {
            faults.held.push(reply);
        } else if touches(&faults.bad) {
            faults.failed += 1;
            reply.error(nix::errno::Errno::EIO as i32);
        } else {
            reply.data(&content(offset, end.saturating_sub(offset)));
        }
    }
}

/// Two nodes, the source's disk being this one.
struct Dying {
    world: World,
    faults: Arc<Mutex<Faults>>,
    _mounted: BackgroundSession,
}

impl Dying {
    /// `None` where nothing can be mounted.
    fn with(faults: Faults) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("SKIPPED: a filesystem of our own needs root and /dev/fuse");
            return None;
        }
        let limits = Limits {
            read_patience: Duration::from_millis(300),
            reread_patience: Duration::from_millis(600),
            ..quick()
        };
        let world = World::on(&std::env::temp_dir(), &limits);
        let faults = Arc::new(Mutex::new(faults));
        let options = [MountOption::FSName("dying".into()), MountOption::RO];
        let mounted = fuser::spawn_mount2(Disk(faults.clone()), world.source.root.path(), &options);
        Some(Self { world, faults, _mounted: mounted.expect("mounted") })
    }

    fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// How the copy fails; nothing is published.
    async fn fails(&self) -> String {
        let error = self.world.pull(self.world.order("t1", "pvc-1")).await.expect_err("not all can be read");
        assert_eq!(error.reason(), "SourceReadFailed", "{error}");
        assert!(!self.world.target.path("pvc-1").exists());
        error.message()
    }

    /// The copy with zeroes for what cannot be read; returns what is said of that.
    async fn salvaged(&self, final_copy: bool) -> Option<String> {
        let order = PullRequest { accept_unreadable: true, final_copy, ..self.world.order("t1", "pvc-1") };
        self.world.pull(order).await.expect("copied").unreadable
    }

    /// What the published image holds.
    fn image(&self) -> Vec<u8> {
        std::fs::read(self.world.target.path("pvc-1").join("disk.img")).expect("there")
    }

    /// The copy goes on, and sends no more than this.
    async fn ends(&self, sent_bytes_max: u64) {
        let done = self.world.pull(self.world.order("t1", "pvc-1")).await.expect("copied");
        assert!(done.sent_bytes <= sent_bytes_max, "{done:?}");
        assert!(self.image() == content(0, SIZE));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_read_arrives_and_what_cannot_is_named() {
    let bad = vec![5 * MIB + 2 * SECTOR..5 * MIB + 3 * SECTOR, 9 * MIB..11 * MIB];
    let Some(dying) = Dying::with(Faults { bad, ..Faults::default() }) else { return };
    let said = dying.fails().await;
    let first = format!("disk.img bytes {}..{}", 5 * MIB + 2 * SECTOR, 5 * MIB + 3 * SECTOR);
    let second = format!("disk.img bytes {}..{}", 9 * MIB, 11 * MIB);
    assert!(said.contains(&first) && said.contains(&second), "{said}");
    assert!(said.contains(&format!("{} bytes cannot be read", 2 * MIB + SECTOR)), "{said}");

    // A disk that has come to itself, or a copy of it: only what is missing is asked for.
    dying.set(|faults| faults.bad.clear());
    dying.ends(3 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sector_that_is_read_at_the_second_try_is_no_loss() {
    let Some(dying) =
        Dying::with(Faults { bad: std::iter::once(7 * MIB..7 * MIB + 1).collect(), ..Faults::default() })
    else {
        return;
    };
    // Once the first try has failed, the sector is as good as any.
    let faults = dying.faults.clone();
    let healed = std::thread::spawn(move || {
        loop {
            let mut now = faults.lock().unwrap_or_else(PoisonError::into_inner);
            if now.failed > 0 {
                now.bad.clear();
                return;
            }
            drop(now);
            std::thread::yield_now();
        }
    });
    dying.ends(SIZE).await;
    healed.join().expect("healed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_hangs_holds_up_nothing_else() {
    let hanging = std::iter::once(3 * MIB..3 * MIB + SECTOR).collect();
    let Some(dying) = Dying::with(Faults { hanging, ..Faults::default() }) else { return };
    let said = dying.fails().await;
    assert!(said.contains(&format!("disk.img bytes {}..{}", 3 * MIB, 4 * MIB)), "{said}");
    assert!(said.contains("has not come back"), "{said}");

    dying.set(|faults| faults.hanging.clear());
    dying.ends(MIB).await;
    // Those that wait are let go, so that the threads of this process end.
    dying.set(|faults| faults.held.clear());
}

/// The image with zeroes for these bytes.
fn without(ranges: &[Range<u64>]) -> Vec<u8> {
    let mut image = content(0, SIZE);
    for range in ranges {
        let at = |byte: u64| usize::try_from(byte).expect("small");
        image[at(range.start)..at(range.end)].fill(0);
    }
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn zeroes_stand_for_what_cannot_be_read_where_somebody_says_so() {
    let sector = 5 * MIB + 2 * SECTOR..5 * MIB + 3 * SECTOR;
    let (bad, hanging) = (vec![sector.clone()], std::iter::once(9 * MIB..9 * MIB + SECTOR).collect());
    let faults = Faults { bad, hanging, ..Faults::default() };
    let Some(dying) = Dying::with(faults) else { return };
    // Nobody has said so: nothing is there.
    dying.fails().await;
    let said = dying.salvaged(true).await.expect("not all was read");
    let hung = 9 * MIB..10 * MIB;
    for range in [&sector, &hung] {
        assert!(said.contains(&format!("disk.img bytes {}..{}", range.start, range.end)), "{said}");
    }
    assert!(said.contains(&format!("{} bytes cannot be read", SECTOR + MIB)), "{said}");
    assert!(dying.image() == without(&[sector, hung]));

    // Whoever asks again for what is published is told so, too.
    assert_eq!(dying.salvaged(true).await, Some(said));
    dying.set(|faults| faults.hanging.clear());
    dying.set(|faults| faults.held.clear());
}

#[tokio::test(flavor = "multi_thread")]
async fn zeroes_of_a_first_copy_are_no_word_about_the_source() {
    let bad = vec![5 * MIB..5 * MIB + SECTOR, 9 * MIB..9 * MIB + SECTOR];
    let Some(dying) = Dying::with(Faults { bad: bad.clone(), ..Faults::default() }) else { return };
    assert!(dying.salvaged(false).await.is_some());
    assert!(dying.salvaged(false).await.is_some(), "asked again, and read as little");
    // One of them can be read by the time of the last copy.
    dying.set(|faults| faults.bad.truncate(1));
    let said = dying.salvaged(true).await.expect("not all was read");
    assert!(said.starts_with(&format!("{SECTOR} bytes cannot be read")), "{said}");
    assert!(dying.image() == without(&bad[..1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_has_come_to_itself_loses_nothing() {
    let bad = std::iter::once(5 * MIB..5 * MIB + SECTOR).collect();
    let Some(dying) = Dying::with(Faults { bad, ..Faults::default() }) else { return };
    assert!(dying.salvaged(false).await.is_some());
    dying.set(|faults| faults.bad.clear());
    assert_eq!(dying.salvaged(true).await, None);
    assert!(dying.image() == content(0, SIZE));
}
