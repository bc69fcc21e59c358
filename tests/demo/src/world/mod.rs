//! What the demo stands on: folders, nodes, disks, manifests.

pub mod disks;
pub mod layout;
pub mod nodes;
pub mod programs;
pub mod smart;
pub mod stored_disk;

use std::path::Path;

use anyhow::{Context, Result};

use self::layout::Layout;

const MANIFESTS: [(&str, &str); 6] = [
    ("recovery-policy.yaml", include_str!("../../manifests/recovery-policy.yaml")),
    ("nodes.yaml", include_str!("../../manifests/nodes.yaml")),
    ("storage/classes.yaml", include_str!("../../manifests/classes.yaml")),
    ("storage/volumes.yaml", include_str!("../../manifests/volumes.yaml")),
    ("machines.yaml", include_str!("../../manifests/machines.yaml")),
    ("wukong.yaml", include_str!("../../manifests/wukong.yaml")),
];

/// Writes the cluster's manifests.
pub fn write_manifests(layout: &Layout) -> Result<()> {
    let mount_point = layout.mount_point.display().to_string();
    for (name, text) in MANIFESTS {
        write(&layout.cluster.join(name), &text.replace("MOUNT", &mount_point))?;
    }
    Ok(())
}

/// Writes a file, and the folders above it.
pub fn write(file: &Path, text: &str) -> Result<()> {
    file.parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(file, text))
        .with_context(|| format!("writing {}", file.display()))
}
