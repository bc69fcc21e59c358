//! From a mounted filesystem to the disks below it.
//!
//! ```text
//!   mount --major:minor--> /sys/dev/block --partition--> its disk
//!                                |--slaves (dm, md)--> each of them
//!                                |--loop--> backing file --> its mount --> …
//!                                '--none of these--> a disk
//!   btrfs --source--> /sys/fs/btrfs/UUID/devices --> each of them, as above
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::mountinfo::{Mount, containing};
use super::{btrfs, read_bounded};

/// Layers followed: loop on a filesystem on LVM on md on a partition has five.
const LAYERS_MAX: usize = 8;
/// Disks below one filesystem; the largest arrays have a few dozen.
const DISKS_MAX: usize = 64;

/// What a filesystem lies on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    /// Name of the block device that is mounted, as in `/sys/fs/ext4`.
    pub device: String,
    /// Names of the disks at the bottom, in order.
    pub disks: BTreeSet<String>,
    /// Names of the arrays (md) in between.
    pub arrays: BTreeSet<String>,
    /// Of a btrfs: its folder's name below `/sys/fs/btrfs`.
    pub btrfs: Option<String>,
}

/// Why a filesystem has no stack.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// NFS, tmpfs, overlay, …: no disk of this host.
    #[error("{0} lies on no block device")]
    NoDevice(String),
    /// The device was there when it was mounted, and is not any more.
    #[error("block device {0} is gone")]
    Gone(String),
    /// The kernel's tree cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// Which part.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Resolves what a mount lies on.
pub fn stack(sys_root: &Path, mounts: &[Mount], mount: &Mount) -> Result<Stack, StackError> {
    let block = block_device(sys_root, mount)?;
    let mut stack = Stack { device: name_of(&block), ..Stack::default() };
    stack.btrfs = (mount.fs_type == "btrfs").then(|| btrfs::folder_of(sys_root, &stack.device)).flatten();
    let mut devices = vec![block];
    if let Some(folder) = &stack.btrfs {
        let others = btrfs::devices(sys_root, folder).into_iter().filter(|name| *name != stack.device);
        for name in others.take(DISKS_MAX).collect::<Vec<_>>() {
            devices.push(class_block(sys_root, &name)?);
        }
    }
    for device in devices {
        descend(sys_root, mounts, &device, LAYERS_MAX, &mut stack)?;
    }
    Ok(stack)
}

/// The mounted device's folder in `/sys`.
fn block_device(sys_root: &Path, mount: &Mount) -> Result<PathBuf, StackError> {
    if !mount.device.starts_with("0:") {
        return canonical(&sys_root.join("dev/block").join(&mount.device), &mount.device);
    }
    let no_device = || StackError::NoDevice(mount.mount_point.display().to_string());
    // btrfs has a device number of its own; what was mounted names one of its disks.
    match mount.source.strip_prefix("/dev/") {
        // A name that the kernel gives by no rule (`/dev/root`) says nothing of a loss.
        Some("root") | None => Err(no_device()),
        Some(_) if mount.fs_type != "btrfs" => Err(no_device()),
        Some(name) => match name.strip_prefix("mapper/") {
            Some(mapped) => dm_of(sys_root, mapped).ok_or_else(no_device),
            None => class_block(sys_root, &name.replace('/', "!")),
        },
    }
}

/// The device that device-mapper made under this name.
fn dm_of(sys_root: &Path, name: &str) -> Option<PathBuf> {
    let devices = fs::read_dir(sys_root.join("class/block")).ok()?;
    let is_it = |path: &PathBuf| read_bounded(&path.join("dm/name")).is_ok_and(|found| found.trim() == name);
    let found = devices.filter_map(|entry| Some(entry.ok()?.path())).find(is_it)?;
    fs::canonicalize(found).ok()
}

fn descend(
    sys_root: &Path,
    mounts: &[Mount],
    block: &Path,
    layers: usize,
    stack: &mut Stack,
) -> Result<(), StackError> {
    let is_full = layers == 0 || stack.disks.len() >= DISKS_MAX;
    let below = if is_full { Vec::new() } else { below(sys_root, mounts, block)? };
    if below.is_empty() {
        stack.disks.insert(name_of(block));
    }
    if block.join("md").exists() {
        stack.arrays.insert(name_of(block));
    }
    for next in below {
        descend(sys_root, mounts, &next, layers - 1, stack)?;
    }
    Ok(())
}

/// The devices that this one is made of; none for a disk.
fn below(sys_root: &Path, mounts: &[Mount], block: &Path) -> Result<Vec<PathBuf>, StackError> {
    if block.join("partition").exists() {
        return Ok(block.parent().map(Path::to_owned).into_iter().collect());
    }
    if let Ok(file) = read_bounded(&block.join("loop/backing_file")) {
        // A loop device over a file that lies on no device (tmpfs, FUSE) is the last thing there is to know.
        let mount = containing(mounts, Path::new(file.trim_end_matches('\n')));
        return Ok(mount.and_then(|mount| block_device(sys_root, mount).ok()).into_iter().collect());
    }
    let slaves = match fs::read_dir(block.join("slaves")) {
        Ok(slaves) => slaves,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(StackError::Unreadable { path: block.join("slaves"), source }),
    };
    let mut names: Vec<_> = slaves.filter_map(|slave| slave.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names.iter().map(|name| class_block(sys_root, name)).collect()
}

fn class_block(sys_root: &Path, name: &str) -> Result<PathBuf, StackError> {
    canonical(&sys_root.join("class/block").join(name), name)
}

fn canonical(path: &Path, device: &str) -> Result<PathBuf, StackError> {
    match fs::canonicalize(path) {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StackError::Gone(device.to_owned())),
        Err(source) => Err(StackError::Unreadable { path: path.to_owned(), source }),
    }
}

fn name_of(block: &Path) -> String {
    block.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
