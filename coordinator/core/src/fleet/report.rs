//! What the agents tell of their nodes: storage roots and the folders in them, physical disks, the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What an agent last told of its node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeReport {
    /// `host:port` of the agent's own server.
    pub address: String,
    /// Its version.
    pub agent_version: String,
    /// When the certificate that it reported with ends, in seconds since 1970; absent in an offline report.
    pub certificate_until_s: Option<u64>,
    /// Where its kubelet mounts the volumes of pods, if its agent may copy from and to there.
    pub pods: Option<String>,
    /// Folders that hold volumes.
    pub roots: Vec<StorageRoot>,
    /// Folders below the roots, by path.
    pub usage: BTreeMap<String, Usage>,
    /// Folders that an earlier listing told of, and no later one. Noted by the coordinator.
    pub gone: BTreeSet<String>,
    /// Physical disks, by name.
    pub disks: BTreeMap<String, DiskHealth>,
    /// The machine itself.
    pub host: Host,
}

impl NodeReport {
    /// The storage root that a path is below: the longest that fits.
    pub fn root_of(&self, path: &str) -> Option<&StorageRoot> {
        self.roots.iter().filter(|root| root.holds(path)).max_by_key(|root| root.path.len())
    }
}

/// A folder that holds volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageRoot {
    /// Absolute path on the node.
    pub path: String,
    /// Storage class whose volumes live there.
    pub class: String,
    /// How many folders deep its volumes lie: 1, or 2 where a provisioner makes `CLAIM/VOLUME`.
    pub depth: u8,
    /// Every node with this root sees the same content.
    pub shared: bool,
    /// Size of the filesystem.
    pub size_bytes: u64,
    /// Room left on it.
    pub available_bytes: u64,
    /// It cannot be written.
    pub read_only: bool,
    /// The physical disk below, where it could be resolved.
    pub disk: Option<String>,
    /// Age of its last complete listing when the report was made: only with one does it say something that a folder is
    /// not in `usage`. `None` from older agents, and where some folder could not be told.
    pub listed_age: Option<Duration>,
}

impl StorageRoot {
    /// Whether its agent has looked into it since it started: before, its size and room say nothing.
    pub fn is_seen(&self) -> bool {
        self.size_bytes > 0
    }

    /// Whether copies are put there: where volumes lie deeper, each has a folder of its own around it, which its
    /// provisioner makes and owns.
    pub fn takes_copies(&self) -> bool {
        self.depth == 1
    }

    /// Whether a path is below it.
    pub fn holds(&self, path: &str) -> bool {
        path.strip_prefix(self.path.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Whether its listing would tell of this folder: agents list what is as deep below a root as its volumes are, and
    /// leave out hidden folders and what a filesystem check left.
    pub fn lists(&self, path: &str) -> bool {
        let below =
            path.strip_prefix(self.path.trim_end_matches('/')).and_then(|rest| rest.strip_prefix('/'));
        below.is_some_and(|below| {
            let plain = |name: &str| !name.is_empty() && !name.starts_with('.') && name != "lost+found";
            below.split('/').count() == usize::from(self.depth) && below.split('/').all(plain)
        })
    }
}

/// A path as agents report it: without a slash at its end.
pub fn folder(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() { path } else { trimmed }
}

/// Size of one volume folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Blocks really taken.
    pub allocated_bytes: u64,
    /// Sum of file sizes.
    pub apparent_bytes: u64,
    /// Files and folders.
    pub inodes: u64,
    /// Whether `disk.img` is in it.
    pub disk_image: DiskImage,
}

/// Whether a volume's folder holds the file in which `KubeVirt` keeps a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DiskImage {
    /// Nobody could look, or the agent is an older one that does not.
    #[default]
    Untold,
    /// It is there.
    Present,
    /// It is not there. A volume that no VM was ever started with has none.
    Absent,
    /// It is not there, and this coordinator has seen it there, under the same claim.
    Vanished,
}

/// Health of a disk, as graded by its agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskHealth {
    /// Grade.
    pub grade: Grade,
    /// `CamelCase` reasons.
    pub reasons: Vec<String>,
    /// Model, or empty.
    pub model: String,
    /// Serial number, or empty.
    pub serial: String,
}

/// Grade of a disk, worst last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Grade {
    /// No signal.
    #[default]
    Unknown,
    /// No complaint.
    Ok,
    /// Worth a look.
    Warning,
    /// Readable; evacuate.
    Failing,
    /// Do not trust what it reads.
    Failed,
}

/// The machine itself, at the time of the report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Host {
    /// Share of CPU in use, 0..=1.
    pub cpu_ratio: f64,
    /// Installed memory.
    pub memory_total_bytes: u64,
    /// Memory to be had.
    pub memory_available_bytes: u64,
    /// Load average of one minute.
    pub load1: f64,
    /// Share of time in which some task waited for IO.
    pub io_pressure_ratio: Option<f64>,
}

#[cfg(test)]
mod tests {
    use crate::decision::testkit::data_root;

    #[test]
    fn a_listing_tells_of_what_is_as_deep_as_the_volumes_are() {
        let mut root = data_root(None);
        let lists = |root: &super::StorageRoot, below: &str| root.lists(&format!("{}{below}", root.path));
        for (below, expected) in [
            ("/pvc-1", true),
            ("/claim/pvc-1", false),
            ("/.hidden", false),
            ("/lost+found", false),
            ("/", false),
            ("", false),
            ("x/pvc-1", false),
        ] {
            assert_eq!(lists(&root, below), expected, "{below}");
        }
        root.depth = 2;
        for (below, expected) in [
            ("/pvc-1", false),
            ("/claim/pvc-1", true),
            ("/claim/pvc-1/data", false),
            ("/claim/", false),
            ("//pvc-1", false),
            ("/.hidden/pvc-1", false),
            ("/claim/.hidden", false),
        ] {
            assert_eq!(lists(&root, below), expected, "{below}");
        }
    }
}
