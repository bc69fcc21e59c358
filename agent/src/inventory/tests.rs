//! Volumes counted on real files: sparse ones, hard links, links out of the root.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};

use tempfile::TempDir;

use super::*;

fn root() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn sample(root: &TempDir) -> RootSample {
    Sampler::new(root.path(), 1, Duration::from_mins(1)).sample(&|| {}).expect("a sample")
}

fn write(path: &Path, bytes: usize) {
    File::create(path).and_then(|mut file| file.write_all(&vec![7; bytes])).expect("written");
}

fn blocks(paths: &[&Path]) -> u64 {
    paths.iter().map(|path| fs::symlink_metadata(path).expect("metadata").blocks() * 512).sum()
}

#[test]
fn a_sparse_image_is_counted_by_its_blocks_and_by_its_length() {
    let root = root();
    let volume = root.path().join("pvc-1");
    fs::create_dir(&volume).expect("created");
    let image = volume.join("disk.img");
    let file = File::create(&image).expect("created");
    file.set_len(1 << 30).expect("grown");
    file.write_all_at(&[1; 8192], 512 << 20).expect("written");
    file.sync_all().expect("synced");
    let usage = sample(&root).volumes["pvc-1"].usage;
    assert_eq!(usage.apparent_bytes, 1 << 30);
    assert_eq!(usage.allocated_bytes, blocks(&[&volume, &image]));
    assert!(usage.allocated_bytes < 1 << 20, "{}", usage.allocated_bytes);
    assert_eq!((usage.inodes, usage.skipped), (2, 0));
}

#[test]
fn a_file_with_several_names_counts_once() {
    let root = root();
    let volume = root.path().join("v");
    fs::create_dir_all(volume.join("a/b")).expect("created");
    write(&volume.join("one"), 10_000);
    fs::hard_link(volume.join("one"), volume.join("a/b/two")).expect("linked");
    let usage = sample(&root).volumes["v"].usage;
    assert_eq!((usage.apparent_bytes, usage.inodes), (10_000, 4));
}

#[test]
fn links_out_of_the_root_are_not_followed() {
    let (root, outside) = (root(), root());
    write(&outside.path().join("large"), 1_000_000);
    let volume = root.path().join("v");
    fs::create_dir(&volume).expect("created");
    symlink(outside.path(), volume.join("folder")).expect("linked");
    symlink(outside.path().join("large"), volume.join("file")).expect("linked");
    symlink(outside.path(), root.path().join("not-a-volume")).expect("linked");
    let sample = sample(&root);
    assert_eq!(sample.volumes.keys().collect::<Vec<_>>(), ["v"]);
    let usage = sample.volumes["v"].usage;
    assert_eq!((usage.apparent_bytes, usage.inodes, usage.skipped), (0, 3, 0));
}

#[test]
fn only_folders_with_reportable_names_are_volumes() {
    let root = root();
    for name in ["pvc-1", ".partial", "lost+found", "odd\nname"] {
        fs::create_dir(root.path().join(name)).expect("created");
    }
    write(&root.path().join("file"), 1);
    assert_eq!(sample(&root).volumes.keys().collect::<Vec<_>>(), ["pvc-1"]);
}

#[test]
fn a_pipe_in_a_volume_stops_nobody() {
    let root = root();
    let volume = root.path().join("v");
    fs::create_dir(&volume).expect("created");
    let status = std::process::Command::new("mkfifo").arg(volume.join("pipe")).status().expect("mkfifo runs");
    assert!(status.success());
    assert_eq!(sample(&root).volumes["v"].usage.inodes, 2);
}

/// The content is hostile: only a regular file of that very name is a disk.
#[test]
fn only_a_regular_file_named_disk_img_is_a_disk_image() {
    let (root, outside) = (root(), root());
    write(&outside.path().join("disk.img"), 10);
    for name in ["empty", "filled", "linked", "folder", "deeper"] {
        fs::create_dir(root.path().join(name)).expect("created");
    }
    write(&root.path().join("filled/disk.img"), 10);
    symlink(outside.path().join("disk.img"), root.path().join("linked/disk.img")).expect("linked");
    fs::create_dir(root.path().join("folder/disk.img")).expect("created");
    fs::create_dir(root.path().join("deeper/a")).expect("created");
    write(&root.path().join("deeper/a/disk.img"), 10);
    let found = sample(&root).volumes;
    let found: Vec<_> = found.iter().map(|(name, volume)| (name.as_str(), volume.disk_image)).collect();
    let expected = [
        ("deeper", Some(false)),
        ("empty", Some(false)),
        ("filled", Some(true)),
        ("folder", Some(false)),
        ("linked", Some(false)),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_disk_image_is_looked_for_at_each_listing_and_not_at_each_walk() {
    let root = root();
    fs::create_dir(root.path().join("v")).expect("created");
    write(&root.path().join("v/disk.img"), 5000);
    let mut sampler = Sampler::new(root.path(), 1, Duration::from_hours(1));
    let first = sampler.sample(&|| {}).expect("a sample");
    assert_eq!(first.volumes["v"].disk_image, Some(true));
    fs::remove_file(root.path().join("v/disk.img")).expect("removed");
    let second = sampler.sample(&|| {}).expect("a sample");
    assert_eq!(second.volumes["v"].disk_image, Some(false));
    assert_eq!(second.volumes["v"].usage.apparent_bytes, 5000, "its next walk is not due");
    assert!(second.listed_at > first.listed_at);
}

/// What a link leads to may be a volume: a name that is not listed says nothing then.
#[test]
fn a_root_with_a_link_in_it_is_not_listed_completely() {
    let (root, outside) = (root(), root());
    fs::create_dir(root.path().join("v")).expect("created");
    assert!(sample(&root).listed_at.is_some());
    symlink(outside.path(), root.path().join("elsewhere")).expect("linked");
    assert_eq!(sample(&root).listed_at, None);
}

#[test]
fn a_deep_tree_is_counted_as_far_as_paths_reach() {
    let root = root();
    let volume = root.path().join("v");
    fs::create_dir(&volume).expect("created");
    let name = "x".repeat(200);
    let mut folder = open(&volume, OFlags::PATH, Mode::empty()).expect("opened");
    for _ in 0..40 {
        rustix::fs::mkdirat(&folder, name.as_str(), Mode::RWXU).expect("created");
        folder = rustix::fs::openat(&folder, name.as_str(), OFlags::PATH, Mode::empty()).expect("opened");
    }
    let usage = sample(&root).volumes["v"].usage;
    // 20 names of 201 bytes fit a path of 4096; the 21st folder is seen and not entered.
    assert_eq!(usage.inodes, 22, "{usage:?}");
    assert_eq!(usage.skipped, 1);
}

#[test]
fn known_volumes_rest_and_new_ones_are_counted_at_once() {
    let root = root();
    fs::create_dir(root.path().join("old")).expect("created");
    let mut sampler = Sampler::new(root.path(), 1, Duration::from_hours(1));
    sampler.sample(&|| {}).expect("a sample");
    write(&root.path().join("old/file"), 5000);
    fs::create_dir(root.path().join("new")).expect("created");
    write(&root.path().join("new/file"), 3000);
    let second = sampler.sample(&|| {}).expect("a sample");
    assert_eq!(second.volumes["old"].usage.apparent_bytes, 0, "its next walk is not due");
    assert_eq!(second.volumes["new"].usage.apparent_bytes, 3000);
    fs::remove_dir_all(root.path().join("old")).expect("removed");
    assert_eq!(sampler.sample(&|| {}).expect("a sample").volumes.len(), 1);
}

#[test]
fn every_entry_is_a_sign_of_life() {
    let root = root();
    fs::create_dir(root.path().join("v")).expect("created");
    for n in 0..50 {
        write(&root.path().join(format!("v/{n}")), 1);
    }
    let steps = Cell::new(0);
    Sampler::new(root.path(), 1, Duration::from_mins(1))
        .sample(&|| steps.set(steps.get() + 1))
        .expect("a sample");
    assert!(steps.get() > 50, "{}", steps.get());
}

#[test]
fn a_thread_without_a_step_is_stuck_only_while_it_samples() {
    let watch = RootWatch::default();
    assert!(!watch.stuck());
    watch.sampling.store(true, Ordering::Relaxed);
    watch.stepped_ms.store(1, Ordering::Relaxed);
    assert_eq!(watch.stuck(), boottime() > STUCK_AFTER);
    watch.step();
    assert!(!watch.stuck());
}

#[test]
fn a_root_that_is_not_there_is_an_error_and_no_empty_root() {
    let error = Sampler::new(Path::new("/nonexistent-root"), 1, Duration::from_mins(1)).sample(&|| {});
    assert_eq!(error.expect_err("no root").kind(), io::ErrorKind::NotFound);
}

#[test]
fn volumes_may_lie_a_folder_deeper() {
    let (root, outside) = (root(), root());
    fs::create_dir_all(outside.path().join("v")).expect("created");
    for folder in ["claim-a/pvc-1", "claim-a/.hidden", "claim-b/pvc-2/inner", "empty", ".claim/pvc-3"] {
        fs::create_dir_all(root.path().join(folder)).expect("created");
    }
    write(&root.path().join("claim-a/pvc-1/disk.img"), 10);
    write(&root.path().join("claim-b/file"), 10);
    let deep = || Sampler::new(root.path(), 2, Duration::from_mins(1)).sample(&|| {}).expect("a sample");
    let sample = deep();
    let found: Vec<_> =
        sample.volumes.iter().map(|(name, found)| (name.as_str(), found.disk_image)).collect();
    assert_eq!(found, [("claim-a/pvc-1", Some(true)), ("claim-b/pvc-2", Some(false))]);
    assert!(sample.listed_at.is_some());
    assert_eq!(sample.volumes["claim-a/pvc-1"].usage.apparent_bytes, 10);

    symlink(outside.path(), root.path().join("link")).expect("linked");
    let sample = deep();
    assert_eq!((sample.volumes.len(), sample.listed_at), (2, None), "a link may hide one");
}
