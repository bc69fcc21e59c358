//! Where a cluster keeps its files.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::addresses::NODES_MAX;

/// Folders of this machine that a node has of its own: nothing that its programs need may be below them.
const NOT_ON_NODES: [&str; 4] = ["/var", "/opt", "/mnt", "/run"];
/// A Unix socket's path must fit in `sockaddr_un` (108 bytes with the final zero, unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// The files of one cluster, below `$XDG_CACHE_HOME/somersault-cluster/clusters/<name>`.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
    name: String,
}

impl Layout {
    /// Of the cluster with this name. Nothing is created.
    pub fn of(name: &str) -> Result<Self> {
        if name.is_empty() || name.len() > 40 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            bail!("{name:?} is no name for a cluster: up to 40 letters, digits and hyphens");
        }
        let layout = Self { root: cache()?.join("clusters").join(name), name: name.to_owned() };
        if layout.containerd_socket("n9").as_os_str().len() > SOCKET_PATH_MAX {
            bail!(
                "{} is too long for the path of a socket; choose a shorter XDG_CACHE_HOME",
                layout.root.display()
            );
        }
        Ok(layout)
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Folder of everything below.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the process that uses the cluster holds a lock on. Beside the folder, which comes and goes.
    pub fn held(&self) -> PathBuf {
        self.root.with_extension("held")
    }

    /// The program that started the cluster, kept so that it can be rebuilt meanwhile.
    pub fn program(&self) -> PathBuf {
        self.root.join("bin/somersault-cluster")
    }

    /// Certificates and keys.
    pub fn pki(&self, file: &str) -> PathBuf {
        self.root.join("pki").join(file)
    }

    /// What a client inside the world uses.
    pub fn kubeconfig_inside(&self, user: &str) -> PathBuf {
        self.root.join("pki").join(format!("{user}.kubeconfig"))
    }

    /// What a client on this machine uses.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// Log of a part of the control plane, or of a node's program (`n1-kubelet`).
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// Folder of the logs.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The control plane's own files.
    pub fn control_plane(&self, file: &str) -> PathBuf {
        self.root.join("control-plane").join(file)
    }

    /// How the management controller misbehaves for a node.
    pub fn bmc_fault(&self, node: &str) -> PathBuf {
        self.control_plane("bmc-faults").join(node)
    }

    /// A node's own files: disks, configuration.
    pub fn node(&self, node: &str) -> PathBuf {
        self.root.join("nodes").join(node)
    }

    /// The disk with a node's local volumes: ext4, and XFS on every second node.
    pub fn data_disk(&self, node: &str) -> PathBuf {
        let number = node.trim_start_matches('n').parse::<u8>();
        let name = if number.is_ok_and(|number| number.is_multiple_of(2)) { "data.xfs" } else { "data.ext4" };
        self.node(node).join(name)
    }

    /// Names of the nodes that the cluster was built with, in order.
    pub fn nodes(&self) -> Vec<String> {
        (1..=NODES_MAX).map(crate::addresses::node_name).filter(|node| self.node(node).is_dir()).collect()
    }

    /// Where a node's containerd listens. A socket is reached by its path from every namespace.
    pub fn containerd_socket(&self, node: &str) -> PathBuf {
        self.node(node).join("containerd.sock")
    }

    /// The folder that every node sees as `/mnt/network`.
    pub fn network_folder(&self) -> PathBuf {
        self.root.join("network")
    }

    /// Archives of the images that each node has.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }
}

/// `$XDG_CACHE_HOME/somersault-cluster`.
pub fn cache() -> Result<PathBuf> {
    let absolute = |value: &OsStr| PathBuf::from(value).is_absolute().then(|| PathBuf::from(value));
    let base = std::env::var_os("XDG_CACHE_HOME")
        .as_deref()
        .and_then(absolute)
        .or_else(|| std::env::var_os("HOME").as_deref().and_then(absolute).map(|home| home.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME names a folder for the cluster's files")?;
    if let Some(own) = NOT_ON_NODES.iter().find(|own| base.starts_with(own)) {
        bail!(
            "{} cannot hold the cluster: its nodes have a {own} of their own; set XDG_CACHE_HOME",
            base.display()
        );
    }
    Ok(base.join("somersault-cluster"))
}
