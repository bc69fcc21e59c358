//! Volumes that are mounted for a pod, on real mounts (root, mkfs.ext4, loop devices): copied from and to, in every
//! state that a crash leaves.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use somersault_agent::transfer::{PullProgress, PullRequest};
use tokio::sync::watch;

use super::disk::{Image, Mount};
use super::world::*;

const POD: &str = "0a1b2c3d-0000-4000-8000-00000000000f";
const NEXT_POD: &str = "0a1b2c3d-0000-4000-8000-000000000010";

/// A target whose volume is a fresh ext4 that is mounted for a pod.
struct Mounted {
    world: World,
    mount: Mount,
    image: Image,
}

impl Mounted {
    fn target(size_mib: u64) -> Option<Self> {
        let (world, image) = (World::new(), Image::new(size_mib)?);
        let mount = image.mount(&world.target.mount_path(POD, "pvc-1"), "loop")?;
        assert!(mount.path().join("lost+found").is_dir());
        Some(Self { world, mount, image })
    }

    /// The volume at the source, a plain folder.
    fn source(&self) -> PathBuf {
        self.world.source.path("pvc-1")
    }

    fn order(&self, transfer: &str) -> PullRequest {
        self.world.order_between(transfer, &self.source(), self.mount.path())
    }

    fn partial(&self, transfer: &str) -> PathBuf {
        self.mount.path().join(format!(".somersault-{transfer}.partial"))
    }

    async fn drop_partial(&self, transfer: &str) {
        let path = text(self.mount.path());
        self.world.target.transfers.cancel(transfer, true, Some(&path)).await.expect("removed");
    }

    /// Names at the top of the mount.
    fn names(&self) -> Vec<String> {
        names(self.mount.path())
    }
}

fn names(folder: &Path) -> Vec<String> {
    let items = std::fs::read_dir(folder).expect("listed").map(|item| item.expect("listed").file_name());
    let mut names: Vec<_> = items.map(|name| name.into_string().expect("plain")).collect();
    names.sort();
    names
}

/// A volume with several entries at its top, and an owner, a mode and a time of its own.
fn make_rich_volume(path: &Path, seed: u64) {
    make_volume(path, 20 * MIB + 321, &[(0, 9 * MIB), (15 * MIB, MIB)], seed);
    std::fs::create_dir_all(path.join("sub/lost+found")).expect("made");
    std::fs::create_dir_all(path.join("empty")).expect("made");
    std::fs::write(path.join("sub/notes"), "kept").expect("written");
    std::fs::write(path.join("zero"), "").expect("written");
    chown(path, Some(107), Some(108)).expect("changed");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o2750)).expect("set");
    let times =
        std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(99));
    std::fs::File::open(path).expect("open").set_times(times).expect("set");
}

fn slow(order: PullRequest) -> PullRequest {
    PullRequest { rate_limit_bytes_per_s: Some(8 * MIB), ..order }
}

fn pre_copy(order: PullRequest) -> PullRequest {
    PullRequest { final_copy: false, ..order }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_arrives_in_a_mount_exactly_and_leaves_little_there() {
    let Some(mounted) = Mounted::target(96) else { return };
    make_rich_volume(&mounted.source(), 1);
    let first = mounted.world.pull(pre_copy(mounted.order("t1"))).await.expect("copied");
    assert_eq!(mounted.names(), [".somersault-t1.partial", "lost+found"]);
    let done = mounted.world.pull(mounted.order("t1")).await.expect("copied");
    assert_eq!((done.sent_bytes, done.total_bytes), (0, first.total_bytes));
    assert_same_mounted(&mounted.source(), mounted.mount.path());
    let plain = mounted.world.pull(mounted.world.order("t2", "pvc-1")).await.expect("copied");
    assert_eq!(done.root_hash, plain.root_hash, "a mounted volume hashes as a plain one does");

    let partial = mounted.partial("t1");
    assert_eq!(names(&partial), ["journal"]);
    assert_eq!(std::fs::metadata(&partial).expect("there").mode() & 0o777, 0o700);
    let again = mounted.world.pull(mounted.order("t1")).await.expect("done");
    assert_eq!((again.root_hash, again.sent_bytes), (done.root_hash, 0));
    // Another transfer, or a lost journal: the content itself is compared.
    let other = mounted.world.pull(mounted.order("t3")).await.expect("done");
    assert_eq!((other.root_hash, other.sent_bytes), (done.root_hash, 0));

    let error = mounted.world.pull(pre_copy(mounted.order("t1"))).await.expect_err("is there already");
    assert_eq!(error.reason(), "TargetExists", "{error}");

    for transfer in ["t1", "t3"] {
        mounted.drop_partial(transfer).await;
    }
    assert_eq!(mounted.names(), ["disk.img", "empty", "lost+found", "sub", "zero"]);
    assert_same_mounted(&mounted.source(), mounted.mount.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_volume_is_published_too() {
    let Some(mounted) = Mounted::target(32) else { return };
    std::fs::create_dir(mounted.source()).expect("made");
    let done = mounted.world.pull(mounted.order("t1")).await.expect("copied");
    assert_same_mounted(&mounted.source(), mounted.mount.path());
    assert_eq!(mounted.world.pull(mounted.order("t1")).await.expect("done").root_hash, done.root_hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_is_copied_into_a_folder_and_into_another_mount() {
    let Some(mounted) = Mounted::target(96) else { return };
    let Some(image) = Image::new(96) else { return };
    let world = &mounted.world;
    let Some(mount) = image.mount(&world.source.mount_path(POD, "pvc-1"), "loop") else { return };
    make_rich_volume(mount.path(), 2);
    std::fs::write(mount.path().join("lost+found/#12"), "rescued").expect("written");
    let order = world.order_between("t1", mount.path(), &world.target.path("pvc-1"));
    let done = world.pull(order).await.expect("copied");
    assert_same_mounted(mount.path(), &world.target.path("pvc-1"));
    assert!(!world.target.path("pvc-1/lost+found").exists());
    let order = world.order_between("t2", mount.path(), mounted.mount.path());
    let other = world.pull(order).await.expect("copied");
    assert_same_mounted(mount.path(), mounted.mount.path());
    assert_eq!(done.root_hash, other.root_hash);
    // What lies beside the volume stays there.
    std::fs::create_dir_all(mount.path().join(".somersault-old.partial/data")).expect("made");
    mount.unmount();
    let Some(mount) = image.mount(&world.source.mount_path(POD, "pvc-1"), "loop,ro") else { return };
    let order = world.order_between("t4", mount.path(), &world.target.path("pvc-2"));
    world.pull(order).await.expect("copied from what is read-only");
    assert!(!world.target.path("pvc-2/.somersault-old.partial").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_copy_goes_on_in_the_next_pods() {
    let Some(mounted) = Mounted::target(160) else { return };
    let Some(image) = Image::new(160) else { return };
    let Mounted { world, mount: target, image: target_image } = mounted;
    let Some(source) = image.mount(&world.source.mount_path(POD, "pvc-1"), "loop") else { return };
    make_volume(source.path(), 64 * MIB, &[(0, 64 * MIB)], 3);
    let order = world.order_between("t1", source.path(), target.path());
    let done =
        world.pull_part(PullRequest { rate_limit_bytes_per_s: Some(32 * MIB), ..order }, 24 * MIB).await;

    // Both pods end, and with them the mounts.
    let (from, to) = (source.path().to_owned(), target.path().to_owned());
    tokio::task::block_in_place(|| {
        source.unmount();
        target.unmount();
    });
    let error = world.pull(world.order_between("t1", &from, &to)).await.expect_err("no target");
    assert_eq!(error.reason(), "OrderRefused", "{error}");
    assert!(error.message().contains("nothing is mounted"), "{error}");
    let Some(target) = target_image.mount(&world.target.mount_path(NEXT_POD, "pvc-1"), "loop") else {
        return;
    };
    let error = world.pull(world.order_between("t1", &from, target.path())).await.expect_err("no source");
    assert_eq!(error.reason(), "SourceMissing", "{error}");
    assert!(!to.join("disk.img").exists() && names(&to).is_empty(), "nothing was put on the node's own disk");

    let Some(source) = image.mount(&world.source.mount_path(NEXT_POD, "pvc-1"), "loop") else { return };
    let last = world.pull(world.order_between("t1", source.path(), target.path())).await.expect("copied");
    assert!(last.sent_bytes <= 64 * MIB - done + 2 * MIB, "{last:?}, {done} were done");
    assert_same_mounted(source.path(), target.path());
    world.target.transfers.cancel("t1", true, Some(&text(target.path()))).await.expect("removed");
    assert_eq!(names(target.path()), ["disk.img", "lost+found"]);
}

/// The pre-copy reads where a VM's own pod has the volume mounted, the last copy by another of its objects, read-only.
#[tokio::test(flavor = "multi_thread")]
async fn a_last_copy_from_another_pod_and_by_another_name_sends_what_differs() {
    let world = World::new();
    let Some(image) = Image::new(160) else { return };
    let Some(source) = image.mount(&world.source.mount_path(POD, "pvc-1"), "loop") else { return };
    make_volume(source.path(), 64 * MIB, &[(0, 64 * MIB)], 3);
    let target = world.target.path("smst-1");
    world.pull(pre_copy(world.order_between("smst-1", source.path(), &target))).await.expect("copied");
    scribble(&source.path().join("disk.img"), 2, 5);
    tokio::task::block_in_place(|| source.unmount());

    let mounted = image.mount(&world.source.mount_path(NEXT_POD, "smst-1-source"), "loop,ro");
    let Some(source) = mounted else { return };
    let last = world.pull(world.order_between("smst-1", source.path(), &target)).await.expect("copied");
    assert!(last.sent_bytes <= 3 * MIB, "{last:?}");
    assert_same_mounted(source.path(), &target);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_followed_before_and_after_publishing() {
    let Some(mounted) = Mounted::target(96) else { return };
    make_rich_volume(&mounted.source(), 4);
    mounted.world.pull(pre_copy(mounted.order("t1"))).await.expect("copied");
    scribble(&mounted.source().join("disk.img"), 2, 5);
    std::fs::remove_dir(mounted.source().join("empty")).expect("removed");
    std::fs::write(mounted.source().join("new"), "new").expect("written");
    let done = mounted.world.pull(mounted.order("t1")).await.expect("copied");
    assert!(done.sent_bytes <= 3 * MIB, "{done:?}");
    assert_same_mounted(&mounted.source(), mounted.mount.path());

    scribble(&mounted.source().join("disk.img"), 1, 6);
    std::fs::remove_file(mounted.source().join("new")).expect("removed");
    let error = mounted.world.pull(pre_copy(mounted.order("t1"))).await.expect_err("published already");
    assert_eq!(error.reason(), "TargetExists", "{error}");
    let done = mounted.world.pull(mounted.order("t1")).await.expect("copied");
    assert!(done.sent_bytes <= 2 * MIB, "{done:?}");
    assert_same_mounted(&mounted.source(), mounted.mount.path());
    assert_eq!(names(&mounted.partial("t1")), ["journal"]);
}

/// As a crash between two moves leaves it: these entries of the published volume are not there yet, or not any more.
fn move_back(mounted: &Mounted, names: &[&str]) {
    let data = mounted.partial("t1").join("data");
    std::fs::create_dir(&data).expect("made");
    for name in names {
        std::fs::rename(mounted.mount.path().join(name), data.join(name)).expect("moved");
    }
    // The folder's own owner and mode come last.
    chown(mounted.mount.path(), Some(0), Some(0)).expect("changed");
    std::fs::set_permissions(mounted.mount.path(), PermissionsExt::from_mode(0o755)).expect("set");
}

/// Every prefix of the moves, and one that is none: a filesystem may order them as it likes.
const CRASHES: [&[&str]; 6] = [
    &[],
    &["zero"],
    &["disk.img"],
    &["sub", "zero"],
    &["disk.img", "empty", "sub"],
    &["disk.img", "empty", "sub", "zero"],
];

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_publishing_is_finished_by_the_next_order() {
    for missing in CRASHES {
        let Some(mounted) = Mounted::target(96) else { return };
        make_rich_volume(&mounted.source(), 7);
        let done = mounted.world.pull(mounted.order("t1")).await.expect("copied");
        move_back(&mounted, missing);
        let again = mounted.world.pull(mounted.order("t1")).await.expect("finished");
        assert_eq!((again.root_hash, again.sent_bytes), (done.root_hash, 0), "{missing:?}");
        assert_same_mounted(&mounted.source(), mounted.mount.path());
        assert_eq!(names(&mounted.partial("t1")), ["journal"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_taking_back_is_finished_by_the_next_order() {
    for (missing, final_copy) in CRASHES.into_iter().zip([true, false].into_iter().cycle()) {
        let Some(mounted) = Mounted::target(96) else { return };
        make_rich_volume(&mounted.source(), 8);
        mounted.world.pull(mounted.order("t1")).await.expect("copied");
        scribble(&mounted.source().join("disk.img"), 1, 9);
        move_back(&mounted, missing);
        if !final_copy {
            mounted.world.pull(pre_copy(mounted.order("t1"))).await.expect("copied");
            assert_eq!(mounted.names(), [".somersault-t1.partial", "lost+found"], "{missing:?}");
        }
        let again = mounted.world.pull(mounted.order("t1")).await.expect("copied");
        assert!(again.sent_bytes <= 2 * MIB, "{missing:?}: {again:?}");
        assert_same_mounted(&mounted.source(), mounted.mount.path());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_the_two_names_of_a_file_is_finished_too() {
    let Some(mounted) = Mounted::target(96) else { return };
    make_rich_volume(&mounted.source(), 10);
    mounted.world.pull(mounted.order("t1")).await.expect("copied");
    move_back(&mounted, &["zero"]);
    let data = mounted.partial("t1").join("data");
    std::fs::hard_link(mounted.mount.path().join("disk.img"), data.join("disk.img")).expect("linked");
    let again = mounted.world.pull(mounted.order("t1")).await.expect("finished");
    assert_eq!(again.sent_bytes, 0);
    assert_same_mounted(&mounted.source(), mounted.mount.path());
}

/// The order to drop comes when the coordinator knows that the copy is whole, too: it takes nothing out of the volume.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_got_into_the_volume_stays_when_its_partial_folder_goes() {
    for missing in CRASHES {
        let Some(mounted) = Mounted::target(96) else { return };
        make_rich_volume(&mounted.source(), 11);
        mounted.world.pull(mounted.order("t1")).await.expect("copied");
        move_back(&mounted, missing);
        let before: Vec<_> = mounted.names().into_iter().filter(|name| !name.contains("partial")).collect();
        mounted.drop_partial("t1").await;
        assert_eq!(mounted.names(), before, "{missing:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_with_somebody_elses_file_among_it_moves_nothing() {
    let Some(mounted) = Mounted::target(96) else { return };
    make_rich_volume(&mounted.source(), 12);
    mounted.world.pull(mounted.order("t1")).await.expect("copied");
    for foreign in ["zero", "theirs"] {
        move_back(&mounted, &["zero", "sub"]);
        let path = mounted.mount.path().join(foreign);
        std::fs::write(&path, "theirs").expect("written");
        let before = (mounted.names(), names(&mounted.partial("t1").join("data")));
        let error = mounted.world.pull(mounted.order("t1")).await.expect_err("refused");
        assert_eq!(error.reason(), "TargetExists", "{foreign}: {error}");
        assert_eq!((mounted.names(), names(&mounted.partial("t1").join("data"))), before);
        assert_eq!(std::fs::read_to_string(&path).expect("kept"), "theirs");
        std::fs::remove_file(&path).expect("removed");
        mounted.world.pull(mounted.order("t1")).await.expect("finished");
        assert_same_mounted(&mounted.source(), mounted.mount.path());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_a_mount_is_ever_overwritten() {
    let Some(mounted) = Mounted::target(96) else { return };
    make_volume(&mounted.source(), 24 * MIB, &[(0, 24 * MIB)], 13);
    for foreign in ["disk.img", "other"] {
        let path = mounted.mount.path().join(foreign);
        std::fs::write(&path, "theirs").expect("written");
        let error = mounted.world.pull(mounted.order("t1")).await.expect_err("refused");
        assert_eq!(error.reason(), "TargetExists", "{error}");
        assert_eq!(std::fs::read_to_string(&path).expect("kept"), "theirs");
        std::fs::remove_file(&path).expect("removed");
    }

    // It comes while the copy runs.
    let (told, mut progress) = watch::channel(PullProgress::default());
    let copy = tokio::spawn(mounted.world.target.transfers.pull(slow(mounted.order("t1")), told));
    progress.wait_for(|seen| seen.done_bytes >= 2 * MIB).await.expect("goes on");
    let path = mounted.mount.path().join("other");
    std::fs::write(&path, "theirs").expect("written");
    let error = copy.await.expect("ended").expect_err("refused");
    assert_eq!(error.reason(), "TargetExists", "{error}");
    assert_eq!(mounted.names(), [".somersault-t1.partial", "lost+found", "other"]);
    std::fs::remove_file(&path).expect("removed");
    let done = mounted.world.pull(mounted.order("t1")).await.expect("copied");
    assert_eq!(done.sent_bytes, 0, "what had arrived is not sent again");
    assert_same_mounted(&mounted.source(), mounted.mount.path());

    // Written to by whoever got it.
    let image = mounted.mount.path().join("disk.img");
    scribble(&image, 1, 14);
    scribble(&mounted.source().join("disk.img"), 1, 15);
    let before = std::fs::read(&image).expect("read");
    for transfer in ["t1", "t2"] {
        let error = mounted.world.pull(mounted.order(transfer)).await.expect_err("refused");
        assert_eq!(error.reason(), "TargetExists", "{error}");
        mounted.drop_partial(transfer).await;
    }
    assert!(std::fs::read(&image).expect("read") == before);
    assert_eq!(mounted.names(), ["disk.img", "lost+found"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_was_emptied_is_free_again() {
    let Some(mounted) = Mounted::target(96) else { return };
    make_volume(&mounted.source(), 4 * MIB, &[(0, 4 * MIB)], 16);
    mounted.world.pull(mounted.order("t1")).await.expect("copied");
    std::fs::remove_file(mounted.mount.path().join("disk.img")).expect("removed");
    mounted.world.pull(mounted.order("t1")).await.expect("copied");
    assert_same_mounted(&mounted.source(), mounted.mount.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_mounted_or_lies_elsewhere_is_refused() {
    let world = World::new();
    make_volume(&world.source.path("pvc-1"), MIB, &[(0, MIB)], 17);
    let (plain, folder) = (world.target.mount_path(POD, "pvc-1"), world.source.path("pvc-1"));
    std::fs::create_dir_all(&plain).expect("made");
    let outside = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(outside.path().join("mount")).expect("made");
    symlink(outside.path(), world.target.mount_path(POD, "way").parent().expect("above")).expect("linked");
    let below_pod = |path: &str| world.target.pods.path().join(POD).join(path);
    for (path, reason) in [
        (plain.clone(), "OrderRefused"),
        (world.target.mount_path(POD, "gone"), "OrderRefused"),
        (world.target.mount_path(NEXT_POD, "pvc-1"), "OrderRefused"),
        (world.target.mount_path(POD, "way"), "OrderRefused"),
        (plain.join("deeper"), "PathNotAllowed"),
        (plain.parent().expect("above").to_owned(), "PathNotAllowed"),
        (below_pod("volume-subpaths/kubernetes.io~csi/pvc-1/mount"), "PathNotAllowed"),
        (below_pod("volumes/kubernetes.io~secret/token"), "PathNotAllowed"),
        (below_pod("volumes/kubernetes.io~csi/.somersault-t.partial/mount"), "PathNotAllowed"),
        (below_pod("etc-hosts"), "PathNotAllowed"),
    ] {
        let error = world.pull(world.order_between("t1", &folder, &path)).await.expect_err("refused");
        assert_eq!(error.reason(), reason, "{}: {error}", path.display());
    }
    assert!(names(&plain).is_empty() && names(outside.path()) == ["mount"]);

    let plain = world.source.mount_path(POD, "pvc-1");
    make_volume(&plain, MIB, &[(0, MIB)], 18);
    let hostile = world.source.pods.path().join(POD).join("volumes/kubernetes.io~secret/token");
    for (path, reason) in [(plain, "SourceMissing"), (hostile, "SourceRefused")] {
        let order = world.order_between("t1", &path, &world.target.path("pvc-1"));
        assert_eq!(world.pull(order).await.expect_err("refused").reason(), reason);
    }
    assert!(!world.target.path("pvc-1").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bind_mount_is_one_and_is_never_removed() {
    let world = World::new();
    make_rich_volume(&world.source.path("pvc-1"), 19);
    let behind = tempfile::tempdir().expect("a folder");
    let at = world.target.pods.path().join(POD).join("volumes/kubernetes.io~local-volume/pv-1");
    let Some(mount) = Mount::new(Command::new("mount").arg("--bind").arg(behind.path()), &at) else { return };
    let order = world.order_between("t1", &world.source.path("pvc-1"), mount.path());
    world.pull(order).await.expect("copied");
    world.target.transfers.cancel("t1", true, Some(&text(mount.path()))).await.expect("removed");
    assert_same(&world.source.path("pvc-1"), behind.path());
    let error = world.target.transfers.remove(&text(mount.path())).await.expect_err("refused");
    assert_eq!(error.reason(), "PathNotAllowed", "{error}");
    assert_same(&world.source.path("pvc-1"), behind.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_beside_every_mounted_volume_is_not_copied_into_one() {
    let Some(mounted) = Mounted::target(32) else { return };
    make_volume(&mounted.source(), MIB, &[(0, MIB)], 20);
    let lost = mounted.source().join("lost+found");
    std::fs::create_dir(&lost).expect("made");
    std::fs::write(lost.join("#12"), "rescued").expect("written");
    let error = mounted.world.pull(mounted.order("t1")).await.expect_err("refused");
    assert_eq!(error.reason(), "SourceUnsupported", "{error}");
    assert_eq!(mounted.names(), ["lost+found"]);
    // Where it has the final name to itself, it is part of the volume as it ever was.
    mounted.world.pull(mounted.world.order("t2", "pvc-1")).await.expect("copied");
    assert_same(&mounted.source(), &mounted.world.target.path("pvc-1"));

    // One with nothing in it is that of the source's filesystem, and is left out.
    std::fs::remove_file(lost.join("#12")).expect("removed");
    let before = std::fs::metadata(mounted.mount.path().join("lost+found")).expect("there");
    let done = mounted.world.pull(mounted.order("t1")).await.expect("copied");
    assert_same_mounted(&mounted.source(), mounted.mount.path());
    assert_eq!(names(&mounted.partial("t1")), ["journal"]);
    let after = std::fs::metadata(mounted.mount.path().join("lost+found")).expect("there");
    assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));
    for transfer in ["t1", "t3"] {
        let again = mounted.world.pull(mounted.order(transfer)).await.expect("done");
        assert_eq!((again.root_hash, again.sent_bytes), (done.root_hash, 0));
    }
    scribble(&mounted.source().join("disk.img"), 1, 24);
    mounted.world.pull(mounted.order("t1")).await.expect("copied");
    assert_same_mounted(&mounted.source(), mounted.mount.path());
}

/// As on a filesystem whose inodes are others after each mount.
#[tokio::test(flavor = "multi_thread")]
async fn a_published_copy_whose_inodes_have_changed_is_known_by_its_content() {
    let Some(mounted) = Mounted::target(96) else { return };
    make_rich_volume(&mounted.source(), 25);
    let done = mounted.world.pull(mounted.order("t1")).await.expect("copied");
    let (image, again) = (mounted.mount.path().join("disk.img"), mounted.mount.path().join("again"));
    let inode = || std::fs::metadata(&image).expect("there").ino();
    let before = inode();
    let copied = Command::new("cp").arg("--archive").args([&image, &again]).status();
    assert!(copied.expect("run").success());
    std::fs::rename(&again, &image).expect("renamed");
    assert_ne!(inode(), before);
    let times = std::fs::FileTimes::new()
        .set_modified(std::fs::metadata(mounted.source()).expect("there").modified().expect("known"));
    std::fs::File::open(mounted.mount.path()).expect("open").set_times(times).expect("set");
    let again = mounted.world.pull(mounted.order("t1")).await.expect("done");
    assert_eq!((again.root_hash, again.sent_bytes), (done.root_hash, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_cancelled_leaves_the_mount_as_it_was() {
    let Some(mounted) = Mounted::target(96) else { return };
    make_volume(&mounted.source(), 48 * MIB, &[(0, 48 * MIB)], 21);
    let before = std::fs::metadata(mounted.mount.path()).expect("there").modified().expect("known");
    for running in [true, false] {
        let (told, mut progress) = watch::channel(PullProgress::default());
        let copy = tokio::spawn(mounted.world.target.transfers.pull(slow(mounted.order("t1")), told));
        progress.wait_for(|seen| seen.done_bytes >= 2 * MIB).await.expect("goes on");
        mounted
            .world
            .target
            .transfers
            .cancel("t1", running, Some(&text(mounted.mount.path())))
            .await
            .expect("told");
        assert_eq!(copy.await.expect("ended").expect_err("cancelled").reason(), "Cancelled");
        if !running {
            assert!(mounted.partial("t1").exists());
            mounted.drop_partial("t1").await;
        }
        assert_eq!(mounted.names(), ["lost+found"]);
        let now = std::fs::metadata(mounted.mount.path()).expect("there").modified().expect("known");
        assert_eq!(now, before);
    }
    // Nothing keeps the volume busy.
    tokio::task::block_in_place(|| mounted.mount.unmount());
    drop(mounted.image);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_or_read_only_mount_fails_clearly_and_can_be_helped() {
    let Some(mounted) = Mounted::target(96) else { return };
    make_volume(&mounted.source(), 64 * MIB, &[(0, 64 * MIB)], 22);
    // Another copy's folder, which is no content of the volume.
    let filler = mounted.partial("filler");
    std::fs::create_dir(&filler).expect("made");
    let file = std::fs::File::create(filler.join("f")).expect("made");
    let (told, mut progress) = watch::channel(PullProgress::default());
    let order = PullRequest { rate_limit_bytes_per_s: Some(32 * MIB), ..mounted.order("t1") };
    let copy = tokio::spawn(mounted.world.target.transfers.pull(order, told));
    progress.wait_for(|seen| seen.done_bytes >= 4 * MIB).await.expect("goes on");
    let mut end = 0;
    while rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), end, MIB).is_ok() {
        end += MIB;
    }
    let error = copy.await.expect("ended").expect_err("full");
    assert_eq!(error.reason(), "TargetFull", "{}", error.message());
    let error = mounted.world.pull(mounted.order("t1")).await.expect_err("full before it begins");
    assert_eq!(error.reason(), "TargetFull", "{}", error.message());
    assert!(!mounted.mount.path().join("disk.img").exists());
    drop(file);
    std::fs::remove_dir_all(&filler).expect("removed");
    mounted.world.pull(mounted.order("t1")).await.expect("copied");
    assert_same_mounted(&mounted.source(), mounted.mount.path());

    let Some(image) = Image::new(32) else { return };
    let at = mounted.world.target.mount_path(POD, "pvc-2");
    let Some(mount) = image.mount(&at, "loop,ro") else { return };
    let order = mounted.world.order_between("t2", &mounted.source(), mount.path());
    let error = mounted.world.pull(order).await.expect_err("read-only");
    assert_eq!(error.reason(), "TargetWriteFailed", "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_copies_from_itself() {
    let world = World::new();
    let Some(image) = Image::new(96) else { return };
    let Some(mount) = image.mount(&world.source.mount_path(POD, "pvc-1"), "loop") else { return };
    make_rich_volume(mount.path(), 23);
    let order = |transfer: &str, from: &Path, to: &Path| {
        let claims = somersault_proto::token::Claims {
            target_node: world.source.name.clone(),
            source_path: text(from).parse().expect("a path"),
            ..world.claims(transfer, "any")
        };
        let token = world.signer.sign(&claims).expect("signed");
        PullRequest { token, ..world.order_between(transfer, from, to) }
    };
    let pull = |order| world.source.transfers.pull(order, watch::channel(PullProgress::default()).0);
    let folder = world.source.path("pvc-1");
    pull(pre_copy(order("t1", mount.path(), &folder))).await.expect("copied");
    let done = pull(order("t1", mount.path(), &folder)).await.expect("copied");
    assert_same_mounted(mount.path(), &folder);

    let Some(image) = Image::new(96) else { return };
    let Some(other) = image.mount(&world.source.mount_path(NEXT_POD, "pvc-2"), "loop") else { return };
    let back = pull(order("t2", &folder, other.path())).await.expect("copied");
    assert_same_mounted(mount.path(), other.path());
    assert_eq!(back.root_hash, done.root_hash);
}
