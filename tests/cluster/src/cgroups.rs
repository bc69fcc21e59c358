//! Control groups are the one thing that outlives a cluster's processes: they are removed by name.
//!
//! Both versions are handled: one tree (v2), or one for each controller (v1), with or without v2 beside it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const ROOT: &str = "/sys/fs/cgroup";
/// A group is busy until the kernel has let go of its last, already dead, process.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// Parent of the groups of one node's pods, as the kubelet's `cgroupRoot` wants it.
pub fn of_node(cluster: &str, node: &str) -> String {
    format!("/{}/{node}", name(cluster))
}

/// Makes a node's group, empty; the kubelet demands one.
pub fn create_node(cluster: &str, node: &str) -> Result<()> {
    trees().into_iter().map(|tree| tree.join(name(cluster)).join(node)).try_for_each(|folder| {
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("making the control group {}", folder.display()))
    })
}

/// Removes all groups of a node whose processes are dead.
pub fn remove_node(cluster: &str, node: &str) -> Result<()> {
    remove(&format!("{}/{node}", name(cluster)))
}

/// Removes all groups of a cluster whose processes are dead.
pub fn remove_cluster(cluster: &str) -> Result<()> {
    remove(&name(cluster))
}

fn name(cluster: &str) -> String {
    format!("somersault-cluster-{cluster}")
}

fn remove(group: &str) -> Result<()> {
    trees().into_iter().map(|tree| tree.join(group)).try_for_each(|folder| {
        remove_tree(&folder).with_context(|| format!("removing the control group {}", folder.display()))
    })
}

fn trees() -> Vec<PathBuf> {
    let root = PathBuf::from(ROOT);
    if root.join("cgroup.procs").exists() {
        return vec![root];
    }
    // On v1 the controllers' trees are mounted side by side; a machine without any has no groups.
    std::fs::read_dir(&root)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

/// A group's files cannot be removed, and need not be: `rmdir` takes a group without members as it is.
fn remove_tree(folder: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    let started = Instant::now();
    loop {
        match std::fs::remove_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && started.elapsed() < BUSY_MAX => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => return result,
        }
    }
}
