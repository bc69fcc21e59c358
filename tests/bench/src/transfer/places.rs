//! Where volumes lie: a tmpfs for sources, and a filesystem of each kind for targets, mounted when it is first asked for.
//!
//! The ext4 target is the disk of this machine itself, as on a node; where that is no ext4, one on a loop device. XFS is
//! always on a loop device. Mounts live in this process's mount namespace, and loop devices detach with their mount;
//! what can stay are files, and loop devices of a run that was killed within its set-up: [`clean_up`] removes both.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use somersault_test_support::world::command::run;

const MIB: u64 = 1 << 20;
/// Room on a loop device beside two copies of the largest volume: the filesystem's own, and what XFS needs at least.
const LOOP_BESIDE: u64 = 1024 * MIB;
/// Sources and the target of one work; the most is a dense volume on both.
const TMPFS_SIZE: &str = "size=3g";
/// From `linux/magic.h`.
const EXT4_MAGIC: u64 = 0xEF53;

/// Of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filesystem {
    Ext4,
    Xfs,
    Tmpfs,
}

impl Filesystem {
    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Tmpfs => "tmpfs",
        }
    }

    /// How it is made on a loop device: at once and whole, for ext4 would go on in the background, and without discard,
    /// which would take the image's blocks away again.
    fn mkfs(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Ext4 => {
                ("mkfs.ext4", &["-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"])
            }
            Self::Xfs | Self::Tmpfs => ("mkfs.xfs", &["-q", "-K"]),
        }
    }
}

/// The folders of this run.
pub struct Places {
    work: PathBuf,
    /// Storage root of the source.
    pub source: PathBuf,
    /// Certificates, configurations and logs.
    pub home: PathBuf,
    /// Of a loop device.
    loop_bytes: u64,
    made: RefCell<BTreeSet<Filesystem>>,
}

impl Places {
    /// Makes those that every work needs, for volumes of this size.
    pub fn make(work: &Path, volume_bytes: u64) -> Result<Self> {
        let (source, home) = (work.join("source"), work.join("home"));
        for folder in [&source, &home] {
            std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        mount_tmpfs(&source)?;
        let loop_bytes = 2 * volume_bytes + LOOP_BESIDE;
        Ok(Self { work: work.to_owned(), source, home, loop_bytes, made: RefCell::default() })
    }

    /// A storage root of sources on this machine's disk.
    pub fn on_disk(&self) -> Result<PathBuf> {
        let root = self.work.join("on-disk");
        std::fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        Ok(root)
    }

    /// Storage root of a target.
    pub fn target(&self, filesystem: Filesystem) -> Result<PathBuf> {
        let place = self.work.join(filesystem.name());
        let root = place.join("volumes");
        if self.made.borrow_mut().insert(filesystem) {
            std::fs::create_dir_all(&place).with_context(|| format!("creating {}", place.display()))?;
            match filesystem {
                Filesystem::Tmpfs => mount_tmpfs(&place)?,
                Filesystem::Ext4 if is_ext4(&place)? => {}
                Filesystem::Ext4 | Filesystem::Xfs => self.mount_loop(filesystem, &place)?,
            }
            std::fs::create_dir(&root).with_context(|| format!("creating {}", root.display()))?;
        }
        Ok(root)
    }

    fn mount_loop(&self, filesystem: Filesystem, place: &Path) -> Result<()> {
        let image = self.work.join(format!("{}.img", filesystem.name()));
        fill(&image, self.loop_bytes).with_context(|| format!("writing {}", image.display()))?;
        let (mkfs, arguments) = filesystem.mkfs();
        run(mkfs, arguments.iter().map(AsRef::as_ref).chain([image.as_os_str()]))?;
        // Direct: else everything would be cached twice, and a sync would end before the disk has it.
        let attach = ["-f", "--show", "--direct-io=on"].map(AsRef::as_ref);
        let device = run("losetup", attach.into_iter().chain([image.as_os_str()]))?;
        let device = device.trim();
        let mounted = run("mount", [device.as_ref(), place.as_os_str()]);
        // A device that is mounted detaches when it is not any more.
        run("losetup", ["-d", device])?;
        mounted.map(drop)
    }
}

/// Written in full, so that no run pays for the image's blocks.
fn fill(image: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create(image)?;
    let zeros = vec![0; usize::try_from(MIB)?];
    for _ in 0..bytes / MIB {
        file.write_all(&zeros)?;
    }
    Ok(file.sync_all()?)
}

fn mount_tmpfs(place: &Path) -> Result<()> {
    let arguments = ["-t", "tmpfs", "-o", TMPFS_SIZE, "tmpfs"].map(AsRef::as_ref);
    run("mount", arguments.into_iter().chain([place.as_os_str()])).map(drop)
}

fn is_ext4(place: &Path) -> Result<bool> {
    let found = rustix::fs::statfs(place).with_context(|| format!("looking at {}", place.display()))?;
    Ok(u64::try_from(found.f_type)? == EXT4_MAGIC)
}

/// An empty root again.
pub fn empty(root: &Path) -> Result<()> {
    for entry in std::fs::read_dir(root).with_context(|| format!("reading {}", root.display()))? {
        let path = entry?.path();
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

/// Removes what a run has left on this machine.
pub fn clean_up(work: &Path) -> Result<()> {
    for filesystem in [Filesystem::Ext4, Filesystem::Xfs] {
        let image = work.join(format!("{}.img", filesystem.name()));
        if !image.exists() {
            continue;
        }
        for line in run("losetup", ["-j".as_ref(), image.as_os_str()])?.lines() {
            let (device, _) = line.split_once(':').context("losetup lists something else")?;
            run("losetup", ["-d", device])?;
        }
    }
    let removed = std::fs::remove_dir_all(work);
    ensure!(
        removed.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::NotFound),
        "removing {}: {removed:?}",
        work.display()
    );
    Ok(())
}
