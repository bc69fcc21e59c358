//! `/sys/fs/btrfs/<uuid>`: the devices of a mounted btrfs, and the errors that it has counted of them.

use std::fs;
use std::path::Path;

use super::read_bounded;

/// The folder of the btrfs that this block device belongs to.
pub fn folder_of(sys_root: &Path, device: &str) -> Option<String> {
    let folders = fs::read_dir(sys_root.join("fs/btrfs")).ok()?;
    let folders = folders.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut found = folders.filter(|folder| devices(sys_root, folder).iter().any(|name| name == device));
    found.next()
}

/// Names of its block devices, in order.
pub fn devices(sys_root: &Path, folder: &str) -> Vec<String> {
    let listed = fs::read_dir(sys_root.join("fs/btrfs").join(folder).join("devices"));
    let mut names: Vec<String> =
        listed.into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Errors of all kinds that it has counted of all its devices: of writes, reads, flushes, checksums and generations. `None`
/// where the kernel does not tell (before Linux 5.14).
pub fn errors(sys_root: &Path, folder: &str) -> Option<u64> {
    let devices = fs::read_dir(sys_root.join("fs/btrfs").join(folder).join("devinfo")).ok()?;
    let of_device = |entry: fs::DirEntry| {
        let stats = read_bounded(&entry.path().join("error_stats")).ok()?;
        // A line for each kind: its name, a space, its count.
        let counts = stats.lines().filter_map(|line| line.split_once(' ')?.1.trim().parse::<u64>().ok());
        Some(counts.fold(0, u64::saturating_add))
    };
    devices.filter_map(|entry| of_device(entry.ok()?)).reduce(u64::saturating_add)
}
