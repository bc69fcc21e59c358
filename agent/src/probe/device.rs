//! From a mounted filesystem to the disks below it.
//!
//! ```text
//!   mount --major:minor--> /sys/dev/block --partition--> its disk
//!                                |--slaves (dm, md)--> each of them
//!                                |--loop--> backing file --> its mount --> …
//!                                '--none of these--> a disk
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::mountinfo::{Mount, containing};
use super::read_bounded;

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
    let mut stack = Stack { device: name_of(&block), disks: BTreeSet::new() };
    descend(sys_root, mounts, &block, LAYERS_MAX, &mut stack.disks)?;
    Ok(stack)
}

/// The mounted device's folder in `/sys`.
fn block_device(sys_root: &Path, mount: &Mount) -> Result<PathBuf, StackError> {
    if !mount.device.starts_with("0:") {
        return canonical(&sys_root.join("dev/block").join(&mount.device), &mount.device);
    }
    // btrfs has a device number of its own; what was mounted names one of its disks.
    match mount.source.strip_prefix("/dev/") {
        Some(name) if mount.fs_type == "btrfs" => class_block(sys_root, &name.replace('/', "!")),
        _ => Err(StackError::NoDevice(mount.mount_point.display().to_string())),
    }
}

fn descend(
    sys_root: &Path,
    mounts: &[Mount],
    block: &Path,
    layers: usize,
    disks: &mut BTreeSet<String>,
) -> Result<(), StackError> {
    let below =
        if layers == 0 || disks.len() >= DISKS_MAX { Vec::new() } else { below(sys_root, mounts, block)? };
    if below.is_empty() {
        disks.insert(name_of(block));
    }
    for next in below {
        descend(sys_root, mounts, &next, layers - 1, disks)?;
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
