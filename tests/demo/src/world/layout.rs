//! Where everything is.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use somersault_test_support::world::node::free_mount_point;

/// The demo's folders.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The demo's work folder, made anew at each run and kept afterwards.
    pub work: PathBuf,
    /// Folder of the built programs.
    pub programs: PathBuf,
    /// The cluster: manifests.
    pub cluster: PathBuf,
    /// Logs of every process.
    pub logs: PathBuf,
    /// What the machines with the network storage hold.
    pub shared: PathBuf,
    /// Where the nodes see their folders.
    pub mount_point: PathBuf,
}

impl Layout {
    /// Makes the folders, below the `target` folder that this program was built in.
    pub fn create() -> Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let programs = program.parent().context("a program without a folder")?.to_owned();
        let work = programs.parent().context("a program without a target folder")?.join("demo");
        if work.exists() {
            std::fs::remove_dir_all(&work).with_context(|| format!("emptying {}", work.display()))?;
        }
        let mount_point = free_mount_point(&[&work, &programs])?;
        let folder = |name: &str| work.join(name);
        let (cluster, logs, shared) = (folder("cluster"), folder("logs"), folder("shared"));
        for path in [&cluster, &logs, &shared.join("nfs"), &shared.join("rbd"), &folder("nodes")] {
            std::fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
        }
        Ok(Self { work, programs, cluster, logs, shared, mount_point })
    }

    /// A node's own folder.
    pub fn node(&self, node: &str) -> PathBuf {
        self.work.join("nodes").join(node)
    }

    /// A log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// A built program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Where a path that `node` sees is on this machine.
    pub fn behind(&self, node: &str, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.mount_point).ok()?;
        if below.starts_with("nfs") || below.starts_with("rbd") {
            Some(self.shared.join(below))
        } else {
            Some(self.node(node).join(below))
        }
    }

    /// Where the nodes see RBD images.
    pub fn network_volumes(&self) -> String {
        self.mount_point.join("rbd").display().to_string()
    }

    /// A path for people: relative to the folder that they stand in, where it is below it.
    pub fn short(path: &Path) -> String {
        let here = std::env::current_dir().unwrap_or_default();
        path.strip_prefix(&here).unwrap_or(path).display().to_string()
    }
}
