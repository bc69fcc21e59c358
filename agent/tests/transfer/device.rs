//! Block devices, on loop devices (root): handed over by a holder, copied from, to and into folders.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use somersault_agent::transfer::{Limits, PullRequest, SOCKET, hold};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::disk::may_skip;
use super::world::*;

const POD: &str = "0a1b2c3d-0000-4000-8000-0000000000b1";
const NEXT_POD: &str = "0a1b2c3d-0000-4000-8000-0000000000b2";

/// A loop device over a file.
struct Loop {
    dir: TempDir,
    path: PathBuf,
}

impl Loop {
    fn new(size_bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a folder");
        let backing = std::fs::File::create(dir.path().join("backing")).expect("made");
        backing.set_len(size_bytes).expect("set");
        let losetup = Command::new("losetup").args(["--show", "-f"]).arg(dir.path().join("backing")).output();
        let made = match losetup {
            Ok(output) if output.status.success() => {
                Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
            }
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(error.to_string()),
        };
        may_skip(made.map(|path| Self { dir, path }))
    }

    /// One with these bytes in a `disk.img` of their own first.
    fn with(size_bytes: u64, data: &[(u64, u64)], seed: u64) -> Option<Self> {
        let device = Self::new(size_bytes)?;
        make_volume(&device.dir.path().join("volume"), size_bytes, data, seed);
        let content = std::fs::read(device.dir.path().join("volume/disk.img")).expect("read");
        device.write(0, &content);
        Some(device)
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let file = std::fs::File::options().write(true).open(&self.path).expect("open");
        file.write_all_at(data, offset).and_then(|()| file.sync_all()).expect("written");
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(&self.path).expect("read")
    }

    fn allocated(&self) -> u64 {
        allocated(&self.dir.path().join("backing"))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.path).output();
    }
}

/// A pod that holds a device, on a node.
struct Holder {
    folder: PathBuf,
    stop: CancellationToken,
    runs: JoinHandle<std::io::Result<()>>,
}

impl Holder {
    fn start(node: &Node, pod: &str, device: &Path) -> Self {
        let folder = folder(node, pod);
        std::fs::create_dir_all(&folder).expect("made");
        let (stop, device, there) = (CancellationToken::new(), device.to_owned(), folder.clone());
        let stopped = stop.clone();
        let runs = tokio::spawn(async move { hold(&device, &there, stopped).await });
        Self { folder, stop, runs }
    }

    /// As the kubelet does it: with all that the pod had.
    async fn end(self) {
        self.stop.cancel();
        self.runs.await.expect("no panic").expect("held");
        std::fs::remove_dir_all(&self.folder).expect("removed");
    }
}

fn folder(node: &Node, pod: &str) -> PathBuf {
    node.pods.path().join(pod).join("volumes/kubernetes.io~empty-dir/somersault-device")
}

fn same(ours: &[u8], theirs: &[u8]) -> bool {
    ours == theirs
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_arrives_exactly_and_what_was_on_the_target_is_gone() {
    const SIZE: u64 = 24 * MIB + 4096;
    let data = [(0, 3 * MIB), (10 * MIB + 512, 2 * MIB), (SIZE - 512, 512)];
    let (Some(from), Some(to)) = (Loop::with(SIZE, &data, 1), Loop::new(SIZE + 2 * MIB)) else { return };
    to.write(0, &vec![0xa5; usize::try_from(SIZE + 2 * MIB).expect("small")]);
    let world = World::new();
    let (source, target) =
        (Holder::start(&world.source, POD, &from.path), Holder::start(&world.target, POD, &to.path));
    let order = world.order_between("t1", &source.folder, &target.folder);
    let done = world.pull(order.clone()).await.expect("copied");
    let (content, end) = (from.content(), usize::try_from(SIZE).expect("small"));
    assert!(same(&to.content()[..end], &content));
    assert!(to.content()[end..].iter().all(|byte| *byte == 0), "what lies behind is cleared");
    assert!(done.sent_bytes < 8 * MIB && done.total_bytes == SIZE, "{done:?}");
    assert!(to.allocated() < 8 * MIB, "zeroes are told to the device as such: {}", to.allocated());

    let again = world.pull(order.clone()).await.expect("done already");
    assert_eq!((again.root_hash, again.sent_bytes), (done.root_hash, 0));
    // As a folder with a disk image it is the same volume.
    let into_folder = world.order_between("t2", &source.folder, &world.target.path("pvc-1"));
    let image = world.pull(into_folder).await.expect("copied");
    assert_eq!(image.root_hash, done.root_hash);
    assert!(same(&std::fs::read(world.target.path("pvc-1/disk.img")).expect("read"), &content));

    let partial = |transfer: &str| target.folder.join(format!(".somersault-{transfer}.partial"));
    assert!(partial("t1").exists());
    world.target.transfers.cancel("t1", true, Some(&text(&target.folder))).await.expect("dropped");
    assert!(!partial("t1").exists() && same(&to.content()[..end], &content));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_image_goes_onto_a_device_and_other_things_do_not() {
    let (Some(to), Some(small)) = (Loop::new(8 * MIB), Loop::new(7 * MIB)) else { return };
    let world = World::new();
    let volume = world.source.path("pvc-1");
    make_volume(&volume, 8 * MIB, &[(MIB, 2 * MIB)], 3);
    let (target, other) =
        (Holder::start(&world.target, POD, &to.path), Holder::start(&world.target, NEXT_POD, &small.path));
    let order = |transfer: &str, to: &Holder| world.order_between(transfer, &volume, &to.folder);
    world.pull(order("t1", &target)).await.expect("copied");
    assert!(same(&to.content(), &std::fs::read(volume.join("disk.img")).expect("read")));
    let error = world.pull(order("t2", &other)).await.expect_err("too small");
    assert_eq!(error.reason(), "TargetFull", "{error}");
    std::fs::write(volume.join("notes"), "more").expect("written");
    let error = world.pull(order("t3", &target)).await.expect_err("not an image alone");
    assert_eq!(error.reason(), "SourceUnsupported", "{error}");
    assert!(error.message().contains("notes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_broke_off_goes_on_and_a_write_meanwhile_is_not_missed() {
    const SIZE: u64 = 64 * MIB;
    let (Some(from), Some(to)) = (Loop::with(SIZE, &[(0, SIZE)], 4), Loop::new(SIZE)) else { return };
    let world = World::new();
    let (source, target) =
        (Holder::start(&world.source, POD, &from.path), Holder::start(&world.target, POD, &to.path));
    let slow = |order: PullRequest| PullRequest { rate_limit_bytes_per_s: Some(32 * MIB), ..order };
    let order = world.order_between("t1", &source.folder, &target.folder);
    let done = world.pull_part(slow(order.clone()), 16 * MIB).await;
    // In what has arrived already, and by another holder, as whoever gives the volume back to its guest does it.
    from.write(0, b"changed");
    source.end().await;
    let source = Holder::start(&world.source, NEXT_POD, &from.path);
    let order = world.order_between("t1", &source.folder, &target.folder);
    let copied = world.pull(order.clone()).await.expect("copied");
    assert!(same(&to.content(), &from.content()));
    // But for what was not noted yet, and the chunk that has changed.
    assert!(copied.sent_bytes < SIZE - done + 16 * MIB, "{copied:?} after {done}");

    // Published, and written to at the source since: the same order, and the same holder.
    from.write(40 * MIB, b"and again");
    let copied = world.pull(order.clone()).await.expect("copied");
    assert!(same(&to.content(), &from.content()));
    assert!(copied.sent_bytes <= MIB, "{copied:?}");
    // And at the target.
    to.write(5 * MIB, b"somebody");
    world.pull(order).await.expect("copied");
    assert!(same(&to.content(), &from.content()), "it is read back, whatever the journal says");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_device_or_is_not_handed_over_is_refused() {
    let Some(to) = Loop::new(8 * MIB) else { return };
    let world = World::on(&std::env::temp_dir(), &Limits { retries_max: 0, ..quick() });
    let target = Holder::start(&world.target, POD, &to.path);
    let file = world.source.root.path().join("file");
    std::fs::write(&file, "no device").expect("written");
    let refused =
        Holder::start(&world.source, POD, &file).runs.await.expect("no panic").expect_err("refused");
    assert!(refused.to_string().contains("no block device"), "{refused}");

    let order = |pod: &str| world.order_between("t1", &folder(&world.source, pod), &target.folder);
    // A folder in which nobody listens.
    let error = world.pull(order(POD)).await.expect_err("nobody hands over");
    assert!(error.message().contains("not to be had"), "{error}");
    // No folder.
    let error = world.pull(order(NEXT_POD)).await.expect_err("no pod");
    assert_eq!(error.reason(), "SourceMissing", "{error}");
    // Somebody who hands over something else, or nothing: the content of pods is hostile.
    std::os::unix::fs::symlink("/run/elsewhere", folder(&world.source, POD).join(SOCKET)).expect("linked");
    let error = world.pull(order(POD)).await.expect_err("a link");
    assert!(error.message().contains("no socket"), "{error}");
    std::fs::remove_file(folder(&world.source, POD).join(SOCKET)).expect("removed");
    let listener =
        std::os::unix::net::UnixListener::bind(folder(&world.source, POD).join(SOCKET)).expect("bound");
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = std::io::Write::write_all(&mut stream, &[1]);
        }
    });
    let error = world.pull(order(POD)).await.expect_err("nothing");
    assert!(error.message().contains("handed over nothing"), "{error}");
}
