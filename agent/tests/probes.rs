//! The readers of `/proc` and `/sys` on the recorded tree of a host with partitions, LVM, RAID, loops and NFS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use somersault_agent::host::HostSampler;
use somersault_agent::probe::device::{StackError, stack};
use somersault_agent::probe::mountinfo::{Mount, containing};
use somersault_agent::probe::{btrfs, diskstats, ext4, mountinfo, state};
use somersault_agent_core::health::{Access, DeviceState, IoSample};

fn host(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/host").join(part)
}

fn mounts() -> Vec<Mount> {
    mountinfo::read(&host("proc")).expect("mountinfo")
}

fn disks_below(path: &str) -> Result<(String, Vec<String>), StackError> {
    let mounts = mounts();
    let mount = containing(&mounts, Path::new(path)).expect("a mount");
    let stack = stack(&host("sys"), &mounts, mount)?;
    Ok((stack.device, stack.disks.into_iter().collect()))
}

#[test]
fn every_kind_of_stack_is_followed_to_its_disks() {
    for (path, device, disks) in [
        ("/srv/local/pvc-1", "sda1", vec!["sda"]),
        ("/home", "sda2", vec!["sda"]),
        ("/srv/lvm", "dm-0", vec!["nvme0n1", "sdb"]),
        ("/srv/raid", "md0", vec!["sdd", "sde"]),
        ("/srv/loop", "loop0", vec!["sda"]),
        ("/srv/btrfs", "sdc", vec!["nvme0n1", "sdb", "sdc"]),
        ("/srv/mapped", "dm-0", vec!["nvme0n1", "sdb", "sdc"]),
        ("/srv/ram", "loop1", vec!["loop1"]),
    ] {
        let (found_device, found) = disks_below(path).expect(path);
        assert_eq!(
            (found_device.as_str(), found),
            (device, disks.into_iter().map(str::to_owned).collect()),
            "{path}"
        );
    }
}

#[test]
fn no_device_and_a_lost_device_are_told_apart() {
    assert!(matches!(disks_below("/srv/nfs"), Err(StackError::NoDevice(_))));
    assert!(matches!(disks_below("/run"), Err(StackError::NoDevice(_))));
    // Of names that the kernel does not know, nobody can say that their device is lost.
    assert!(matches!(disks_below("/srv/unmapped"), Err(StackError::NoDevice(_))));
    assert!(matches!(disks_below("/srv/rooted"), Err(StackError::NoDevice(_))));
    assert!(matches!(disks_below("/srv/gone"), Err(StackError::Gone(device)) if device == "8:99"));
}

#[test]
fn counters_and_options_are_read() {
    let io = diskstats::read(&host("proc")).expect("diskstats");
    assert_eq!(io["sda"], IoSample { in_flight: 0, completed: 1000 + 2000 + 30 + 40 });
    assert_eq!(io["sdb"].in_flight, 7);
    let access = |path: &str| containing(&mounts(), Path::new(path)).expect("a mount").access;
    assert_eq!(access("/srv/local"), Access::ReadWrite);
    assert_eq!(access("/srv/loop"), Access::EmergencyReadOnly);
    assert_eq!(access("/srv/raid"), Access::ReadOnly);
}

#[test]
fn ext4_errors_are_read_with_their_age() {
    let errors = ext4::errors(&host("sys"), "sda1").expect("an ext4");
    assert_eq!(errors.count, 4);
    assert!(errors.last_age.expect("a time") > Duration::from_hours(24));
    let clean = ext4::errors(&host("sys"), "loop1").expect("an ext4");
    assert_eq!((clean.count, clean.last_age), (0, None));
    assert_eq!(ext4::errors(&host("sys"), "dm-0"), None);
}

#[test]
fn a_btrfs_counts_the_errors_of_all_its_devices() {
    let folder = btrfs::folder_of(&host("sys"), "dm-0").expect("of two devices");
    assert_eq!(btrfs::devices(&host("sys"), &folder), ["dm-0", "sdc"]);
    assert_eq!(btrfs::errors(&host("sys"), &folder), Some(5));
    assert_eq!(btrfs::folder_of(&host("sys"), "sda"), None);
    assert_eq!(btrfs::errors(&host("sys"), "no-such-folder"), None);
}

#[test]
fn what_the_kernel_thinks_of_disks_and_arrays_is_read() {
    let device = |disk: &str| state::device(&host("sys"), disk);
    assert_eq!(device("sda"), DeviceState::Usable);
    assert_eq!(device("sdb"), DeviceState::Offline);
    assert_eq!(device("nvme0n1"), DeviceState::Dead);
    assert_eq!(device("sdd"), DeviceState::Usable, "it says nothing of its state");
    assert_eq!(state::io_errors(&host("sys"), "sdb"), Some(31));
    assert_eq!(state::io_errors(&host("sys"), "sdd"), None);
    assert!(state::is_degraded(&host("sys"), "md0") && !state::is_degraded(&host("sys"), "dm-0"));
    let mounts = mounts();
    let raid = containing(&mounts, Path::new("/srv/raid")).expect("a mount");
    let arrays = stack(&host("sys"), &mounts, raid).expect("a stack").arrays;
    assert_eq!(arrays.into_iter().collect::<Vec<_>>(), ["md0"]);
}

#[test]
fn pressure_comes_from_the_given_proc() {
    assert_eq!(HostSampler::new(&host("proc")).sample().io_pressure_ratio, Some(0.125));
    assert_eq!(HostSampler::new(Path::new("/nonexistent")).sample().io_pressure_ratio, None);
}
