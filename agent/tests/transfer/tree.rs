//! Volumes that are not one image: links, pipes, attributes, odd names; and a guest that swaps them while they are copied.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, Mode, Timespec, Timestamps, UTIME_OMIT, XattrFlags, mknodat};

use somersault_agent::transfer::PullRequest;

use super::disk::Image;
use super::world::*;

const POD: &str = "0a1b2c3d-0000-4000-8000-0000000000c1";
/// An ACL as the kernel keeps it: version 2; owner rw, user 1000 r, group r, mask r, others none.
const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, 2, 0, 4, 0, 0xe8, 3, 0, 0, 4, 0, 4, 0, 0xff, 0xff, 0xff,
    0xff, 0x10, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, 0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
];
/// `cap_net_bind_service=ep`, as the kernel keeps it: revision 2, effective.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A tree with one of everything; returns whether the filesystem takes attributes.
fn make_tree(volume: &Path) -> bool {
    std::fs::create_dir_all(volume.join("bin")).expect("made");
    std::fs::create_dir_all(volume.join("etc/deep")).expect("made");
    std::fs::write(volume.join("bin/tool"), vec![7; 300_000]).expect("written");
    std::fs::hard_link(volume.join("bin/tool"), volume.join("bin/alias")).expect("linked");
    std::fs::hard_link(volume.join("bin/tool"), volume.join("etc/deep/other")).expect("linked");
    symlink("bin/tool", volume.join("relative")).expect("linked");
    symlink("/etc/passwd", volume.join("etc/absolute")).expect("linked");
    symlink("../../../nowhere", volume.join("etc/dangling")).expect("linked");
    symlink(OsStr::from_bytes(b"\xff\xfe"), volume.join("etc/odd")).expect("linked");
    std::fs::write(volume.join(OsStr::from_bytes(b"not\xffutf8 \n")), "named").expect("written");
    mknodat(rustix::fs::CWD, volume.join("pipe"), FileType::Fifo, Mode::RUSR, 0).expect("made");
    std::fs::set_permissions(volume.join("pipe"), PermissionsExt::from_mode(0o620)).expect("set");
    std::fs::write(volume.join("empty"), "").expect("written");
    std::os::unix::fs::lchown(volume.join("relative"), Some(1000), Some(1001)).expect("changed");
    let old = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: 1_000_000_000, tv_nsec: 7 },
    };
    for name in ["relative", "pipe"] {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, volume.join(name), &old, flags).expect("set");
    }
    let set = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::setxattr(volume.join(name), attribute, value, XattrFlags::empty())
    };
    if set("bin/tool", "user.note", b"a\0b").is_err() {
        return false;
    }
    set("bin/tool", "security.capability", CAPABILITY).expect("set");
    set("etc", "system.posix_acl_access", ACL).expect("set");
    set("etc", "system.posix_acl_default", ACL).expect("set");
    set("empty", "user.large", &[5; 500]).expect("set");
    true
}

/// Beside what [`assert_same`] compares.
fn assert_same_tree(a: &Path, b: &Path, with_attributes: bool) {
    assert_same_mounted(a, b);
    for name in ["relative", "etc/absolute", "etc/dangling", "etc/odd"] {
        assert_eq!(
            std::fs::read_link(b.join(name)).expect("a link"),
            std::fs::read_link(a.join(name)).expect("a link")
        );
    }
    let inode = |name: &str| std::fs::metadata(b.join(name)).expect("there").ino();
    assert_eq!((inode("bin/tool"), inode("bin/tool")), (inode("bin/alias"), inode("etc/deep/other")));
    assert_eq!(std::fs::metadata(b.join("bin/tool")).expect("there").nlink(), 3);
    assert!(std::fs::symlink_metadata(b.join("pipe")).expect("there").file_type().is_fifo());
    if with_attributes {
        for (name, attribute) in [
            ("bin/tool", "user.note"),
            ("bin/tool", "security.capability"),
            ("etc", "system.posix_acl_access"),
            ("etc", "system.posix_acl_default"),
            ("empty", "user.large"),
        ] {
            let value = |root: &Path| {
                let mut value = vec![0; 4096];
                let length = rustix::fs::getxattr(root.join(name), attribute, value.as_mut_slice());
                value.truncate(length.unwrap_or_else(|error| panic!("{attribute} of {name}: {error}")));
                value
            };
            assert_eq!(value(a), value(b), "{attribute} of {name}");
        }
        let mut list = vec![0_u8; 4096];
        let length = rustix::fs::listxattr(b.join("etc/deep"), list.as_mut_slice()).expect("listed");
        assert!(!list[..length].windows(9).any(|part| part == b"posix_acl"), "no ACL was inherited");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_arrives_as_it_was() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root gives files to others");
        return;
    }
    for base in bases() {
        let world = World::on(&base, &quick());
        let (volume, copy) = (world.source.path("pvc-1"), world.target.path("pvc-1"));
        let attributes = make_tree(&volume);
        world.pull(world.pre_copy("t1", "pvc-1")).await.expect("copied");
        // Between the two copies a link, a name and an attribute change.
        std::fs::remove_file(volume.join("etc/dangling")).expect("removed");
        symlink("elsewhere", volume.join("etc/dangling")).expect("linked");
        std::fs::remove_file(volume.join("bin/alias")).expect("removed");
        std::fs::hard_link(volume.join("empty"), volume.join("bin/void")).expect("linked");
        std::fs::hard_link(volume.join("bin/tool"), volume.join("bin/alias")).expect("linked");
        if attributes {
            rustix::fs::setxattr(volume.join("bin/tool"), "user.note", b"new", XattrFlags::empty())
                .expect("set");
        }
        let done = world.pull(world.order("t1", "pvc-1")).await.expect("copied");
        assert_same_tree(&volume, &copy, attributes);
        let again = world.pull(world.order("t1", "pvc-1")).await.expect("done");
        assert_eq!((again.root_hash, again.sent_bytes), (done.root_hash, 0));
        // By content alone: the journal is of another transfer.
        let other = world.pull(world.order("t2", "pvc-1")).await.expect("done");
        assert_eq!((other.root_hash, other.sent_bytes), (done.root_hash, 0));
        // Whoever changes no more than a link changes the volume.
        std::fs::remove_file(copy.join("relative")).expect("removed");
        symlink("etc/odd", copy.join("relative")).expect("linked");
        let error = world.pull(world.order("t1", "pvc-1")).await.expect_err("changed");
        assert_eq!(error.reason(), "TargetExists", "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_arrives_in_a_mount() {
    let world = World::new();
    let Some(image) = Image::new(64) else { return };
    let Some(mount) = image.mount(&world.target.mount_path(POD, "pvc-1"), "loop") else { return };
    let volume = world.source.path("pvc-1");
    let attributes = make_tree(&volume);
    let order = world.order_between("t1", &volume, mount.path());
    let done = world.pull(order.clone()).await.expect("copied");
    assert_same_tree(&volume, mount.path(), attributes);
    let again = world.pull(order).await.expect("done");
    assert_eq!((again.root_hash, again.sent_bytes), (done.root_hash, 0));
}

/// A guest, or whoever has the volume, swaps files, folders and links for each other as fast as it can.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_swapped_while_it_is_copied_nothing_outside_is_read() {
    const SECRET: &str = "the secret of somebody else";
    let world = World::new();
    let volume = world.source.path("pvc-1");
    let outside = tempfile::tempdir().expect("a folder");
    std::fs::write(outside.path().join("f"), SECRET).expect("written");
    std::fs::create_dir_all(volume.join("folder")).expect("made");
    std::fs::write(volume.join("folder/f"), "inside").expect("written");
    std::fs::write(volume.join("file"), "inside").expect("written");
    let stop = Arc::new(AtomicBool::new(false));
    let racer = std::thread::spawn({
        let (volume, outside, stop) = (volume.clone(), outside.path().to_owned(), stop.clone());
        move || {
            let mut rounds = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                swap(&volume, &outside);
                rounds += 1;
            }
            rounds
        }
    });
    let mut ended = [0, 0];
    for number in 0..60 {
        let transfer = format!("t{number}");
        let order = world.order_between(&transfer, &volume, &world.target.path(&format!("copy-{number}")));
        let copied = world.pull(order).await;
        ended[usize::from(copied.is_ok())] += 1;
        if let Err(error) = copied {
            assert!(
                matches!(error.reason(), "SourceChanged" | "SourceUnsupported" | "SourceReadFailed"),
                "{error}"
            );
        }
    }
    stop.store(true, Ordering::Relaxed);
    let rounds = racer.join().expect("no panic");
    eprintln!("{rounds} swaps; {ended:?} copies failed and ended");
    assert!(rounds > 100);
    for path in files(world.target.root.path()) {
        let content = std::fs::read(&path).expect("read");
        assert!(!content.windows(6).any(|part| part == &SECRET.as_bytes()[..6]), "{}", path.display());
    }
    assert_eq!(std::fs::read_to_string(outside.path().join("f")).expect("kept"), SECRET);
    assert_eq!(std::fs::read_dir(outside.path()).expect("listed").count(), 1);
}

/// One round of what a hostile guest does.
fn swap(volume: &Path, outside: &Path) {
    let at = |name: &str| volume.join(name);
    let _ = std::fs::rename(at("folder"), at("away"));
    let _ = symlink(outside, at("folder"));
    let _ = std::fs::remove_file(at("file"));
    let _ = symlink(outside.join("f"), at("file"));
    std::thread::yield_now();
    let _ = std::fs::remove_file(at("folder"));
    let _ = std::fs::rename(at("away"), at("folder"));
    let _ = std::fs::remove_file(at("file"));
    let _ = std::fs::write(at("file"), "inside");
    let _ = std::fs::File::options().write(true).open(at("folder/f")).and_then(|file| file.set_len(3));
    let _ = std::fs::write(at("folder/f"), "inside, and longer");
}

/// All regular files below a folder.
fn files(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for item in std::fs::read_dir(&folder).expect("listed") {
            let item = item.expect("listed");
            let kind = item.file_type().expect("known");
            if kind.is_dir() {
                folders.push(item.path());
            } else if kind.is_file() {
                found.push(item.path());
            }
        }
    }
    found
}

/// More than one request, one checkpoint and one sync have room for, and some among them that are no small ones.
#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_arrive_together() {
    let world = World::new();
    let volume = world.source.path("pvc-1");
    let write = |number: usize, round: u8| {
        let folder = volume.join(format!("d{}", number % 7));
        std::fs::create_dir_all(&folder).expect("made");
        let size = if number.is_multiple_of(150) { 3 << 20 } else { number * 37 % 9000 };
        let content: Vec<u8> =
            (0..size).map(|at| round + u8::try_from((at ^ number) % 200).expect("a byte")).collect();
        std::fs::write(folder.join(format!("f{number}")), content).expect("made");
    };
    for number in 0..1000 {
        write(number, 1);
    }
    let order = world.order("t1", "pvc-1");
    world.pull(PullRequest { final_copy: false, ..order.clone() }).await.expect("copied");
    for number in [3, 150, 999] {
        write(number, 2);
    }
    std::fs::remove_file(volume.join("d1/f1")).expect("removed");
    std::fs::write(volume.join("d1/new"), "new").expect("made");
    let done = world.pull(order).await.expect("copied");
    assert!(done.sent_bytes < 4 << 20, "only what has changed: {done:?}");
    assert_same(&volume, &world.target.path("pvc-1"));
}
