//! A node from the inside: what its first process does before anything else runs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const NEW_UUID: &str = "/proc/sys/kernel/random/uuid";

/// How a node is built. Written once; every boot reads it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Name, of the Node object and in the agent's certificate.
    pub name: String,
    /// Number, counted from 1.
    pub number: u8,
    /// Where the node's own folders appear; the same on every node, as in a real cluster.
    pub mount_point: PathBuf,
    /// Folders of the machine, and the names under which they appear below the mount point.
    pub folders: Vec<(PathBuf, String)>,
    /// Folders of the machine that the node must not see: other nodes' disks, the cluster's manifests.
    pub hidden: Vec<PathBuf>,
    /// Where this boot's id is kept.
    pub boot_id: PathBuf,
    /// Where the node's processes log to.
    pub log: PathBuf,
    /// What its first process executes, program first; it must call [`settle_in`] with this specification,
    /// whose file is appended as last argument.
    pub init: Vec<String>,
}

impl NodeSpec {
    /// Where the folder of this name appears on the node.
    pub fn path(&self, folder: &str) -> PathBuf {
        self.mount_point.join(folder)
    }

    /// Reads a specification.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no node", file.display()))
    }

    /// Writes it.
    pub fn write(&self, file: &Path) -> Result<()> {
        std::fs::write(file, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("writing {}", file.display()))
    }
}

/// A folder of the machine that can serve as mount point, one that hides nothing below `keep` from the nodes.
pub fn free_mount_point(keep: &[&Path]) -> Result<PathBuf> {
    ["/srv", "/mnt", "/media", "/opt"]
        .into_iter()
        .map(PathBuf::from)
        .find(|candidate| candidate.is_dir() && !keep.iter().any(|path| path.starts_with(candidate)))
        .context("none of /srv, /mnt, /media, /opt can be used as the nodes' mount point")
}

/// Called by the node's first process: a new boot id, the node's own folders, and nobody else's.
pub fn settle_in(spec: &NodeSpec) -> Result<()> {
    let boot_id = std::fs::read_to_string(NEW_UUID).context("asking the kernel for a boot id")?;
    std::fs::write(&spec.boot_id, &boot_id).with_context(|| format!("writing {}", spec.boot_id.display()))?;
    bind(&spec.boot_id, Path::new(BOOT_ID))?;
    cover(&spec.mount_point)?;
    for (folder, name) in &spec.folders {
        let place = spec.path(name);
        std::fs::create_dir(&place).with_context(|| format!("creating {}", place.display()))?;
        bind(folder, &place)?;
    }
    spec.hidden.iter().try_for_each(|folder| cover(folder))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("mounting {} on {}", from.display(), to.display()))
}

fn cover(place: &Path) -> Result<()> {
    mount(Some("node"), place, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, None::<&str>)
        .with_context(|| format!("covering {}", place.display()))
}
