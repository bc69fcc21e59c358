//! On a small filesystem of our own, where we may make one (root, mkfs.ext4, loop devices): full disks.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use somersault_agent::transfer::PullProgress;
use tempfile::TempDir;
use tokio::sync::watch;

use super::world::*;

/// An ext4 of so many MiB in a file.
pub struct Image {
    dir: TempDir,
}

impl Image {
    /// `None`, with a sentence, where this is not allowed, as in most containers. In CI that is a failure: there,
    /// nobody reads the sentence.
    pub fn new(size_mib: u64) -> Option<Self> {
        let image = Self { dir: tempfile::tempdir().expect("a folder") };
        std::fs::File::create(image.path()).and_then(|file| file.set_len(size_mib * MIB)).expect("made");
        let made = run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image.path()));
        may_skip(made.map(|()| image))
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Mounts it at a folder, which is made.
    pub fn mount(&self, at: &Path, options: &str) -> Option<Mount> {
        Mount::new(Command::new("mount").args(["-o", options]).arg(self.path()), at)
    }
}

/// Something that is mounted until it is dropped.
pub struct Mount {
    at: PathBuf,
}

impl Mount {
    pub fn new(mount: &mut Command, at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).expect("made");
        may_skip(run(mount.arg(at)).map(|()| Self { at: at.to_owned() }))
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Unmounts it as the kubelet does: not before everybody has let go of it.
    pub fn unmount(self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = run(Command::new("umount").arg(&self.at)) {
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).output();
    }
}

pub fn may_skip<T>(made: Result<T, String>) -> Option<T> {
    let error = match made {
        Ok(made) => return Some(made),
        Err(error) => error,
    };
    let why = format!("this test needs root, mkfs.ext4 and loop devices; {error}");
    assert!(std::env::var_os("CI").is_none(), "nothing may be skipped in CI: {why}");
    eprintln!("SKIPPED, nothing was tested: {why}");
    None
}

/// A mounted ext4.
struct Disk {
    mount: Mount,
    _image: Image,
}

impl Disk {
    fn new(size_mib: u64) -> Option<Self> {
        let image = Image::new(size_mib)?;
        let mount = image.mount(&image.dir.path().join("mounted"), "loop")?;
        Some(Self { mount, _image: image })
    }

    fn path(&self) -> PathBuf {
        self.mount.path().to_owned()
    }
}

/// Runs it, or says what it said.
fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_clearly_and_can_be_helped() {
    let Some(disk) = Disk::new(160) else { return };
    let world = World::on(&disk.path(), &quick());
    let volume = world.source.path("pvc-1");
    // Source and target share the small disk; the volume alone does not fit twice.
    make_volume(&volume, 64 * MIB, &[(0, 56 * MIB)], 1);
    let mut order = world.order("t1", "pvc-1");
    order.rate_limit_bytes_per_s = Some(16 * MIB);
    let (told, mut progress) = watch::channel(PullProgress::default());
    let copy = tokio::spawn(world.target.transfers.pull(order.clone(), told));
    progress.wait_for(|seen| seen.done_bytes >= 4 * MIB).await.expect("goes on");
    let filler = disk.path().join("filler");
    let blocker = std::fs::File::create(&filler).expect("made");
    let mut end = 0;
    for step in [16 * MIB, MIB] {
        let flags = rustix::fs::FallocateFlags::empty();
        while rustix::fs::fallocate(&blocker, flags, end, step).is_ok() {
            end += step;
        }
    }
    let error = copy.await.expect("ended").expect_err("full");
    assert_eq!(error.reason(), "TargetFull", "{}", error.message());
    assert!(!world.target.path("pvc-1").exists());

    let error = world.pull(order.clone()).await.expect_err("full before it begins");
    assert_eq!(error.reason(), "TargetFull", "{}", error.message());
    assert!(error.message().contains("are needed"), "{}", error.message());

    drop(blocker);
    std::fs::remove_file(&filler).expect("removed");
    order.rate_limit_bytes_per_s = None;
    let done = world.pull(order).await.expect("copied");
    assert!(done.sent_bytes <= 53 * MIB, "{done:?}");
    assert_same(&volume, &world.target.path("pvc-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sparse_image_stays_as_small_on_ext4() {
    let Some(disk) = Disk::new(64) else { return };
    let world = World::on(&disk.path(), &quick());
    let volume = world.source.path("pvc-1");
    // Far larger than the disk; a few blocks everywhere.
    let data: Vec<_> = (0..8).map(|part| (part * 12_000 * MIB + 4096 * part, 4096)).collect();
    make_volume(&volume, 100_000 * MIB, &data, 2);
    world.pull(world.order("t1", "pvc-1")).await.expect("copied");
    let (there, here) = (volume.join("disk.img"), world.target.path("pvc-1").join("disk.img"));
    assert!(allocated(&here) <= allocated(&there) + 8 * MIB);
    assert_eq!(std::fs::metadata(&here).expect("there").len(), 100_000 * MIB);
}
