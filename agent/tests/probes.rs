//! The readers of `/proc` and `/sys` on the recorded tree of a host with partitions, LVM, RAID, loops and NFS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use somersault_agent::host::HostSampler;
use somersault_agent::probe::device::{StackError, stack};
use somersault_agent::probe::mountinfo::{Mount, containing};
use somersault_agent::probe::{diskstats, ext4, mountinfo};
use somersault_agent_core::health::{Access, IoSample};

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
        ("/srv/btrfs", "sdc", vec!["sdc"]),
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
fn pressure_comes_from_the_given_proc() {
    assert_eq!(HostSampler::new(&host("proc")).sample().io_pressure_ratio, Some(0.125));
    assert_eq!(HostSampler::new(Path::new("/nonexistent")).sample().io_pressure_ratio, None);
}
