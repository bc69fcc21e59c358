//! A disk for machines that have none to show: in a container the work folder lies on an overlay, and no agent
//! can tell which disk is below it. There, each node's agent reads a stored /proc and /sys with one disk in them.

use std::os::unix::fs::{MetadataExt, symlink};

use anyhow::{Context, Result};
use nix::sys::stat::major;
use somersault_test_support::world::node::NodeSpec;

use super::layout::Layout;
use super::write;

/// Nothing in flight, so that it never looks stalled.
const DISKSTATS: &str = "   8       0 sda 1200 0 9600 310 800 0 6400 120 0 400 430\n";

/// Whether the work folder lies on no block device.
pub fn is_needed(layout: &Layout) -> Result<bool> {
    let folder = std::fs::metadata(&layout.work).context("looking at the work folder")?;
    Ok(major(folder.dev()) == 0)
}

/// Gives a node its stored disk.
pub fn install(layout: &Layout, spec: &NodeSpec) -> Result<()> {
    let etc = layout.node(&spec.name).join("etc");
    let place = spec.mount_point.display();
    let mounts = format!(
        "30 1 8:0 / {place} rw,relatime - ext4 /dev/sda rw\n\
         31 30 0:40 / {place}/nfs rw,relatime - nfs4 10.77.0.1:{place}/nfs rw\n"
    );
    write(&etc.join("proc/self/mountinfo"), &mounts)?;
    write(&etc.join("proc/diskstats"), DISKSTATS)?;
    write(&etc.join("sys/block/sda/size"), "7814037168\n")?;
    let devices = etc.join("sys/dev/block");
    std::fs::create_dir_all(&devices).context("making a stored /sys")?;
    symlink("../../block/sda", devices.join("8:0")).context("making a stored /sys")
}

/// What the agent is told to read it.
pub fn flags(spec: &NodeSpec) -> [String; 3] {
    let root = |name: &str| format!("--{name}-root={}", spec.path("etc").join(name).display());
    [root("proc"), root("sys"), "--boot-id-file=/proc/sys/kernel/random/boot_id".to_owned()]
}
