//! A node's power cord, pulled and plugged in again: by the cluster's owner from outside, or from within the world by
//! the management controller.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::layout::Layout;
use crate::processes::kill_namespace;
use crate::{cgroups, world};

/// Whether the node has power.
pub fn is_on(layout: &Layout, node: &str) -> Result<bool> {
    Ok(world::node_init(layout, node)?.is_some())
}

/// Kills every process of the node at once, and whatever of its kernel would still answer on the network; returns when
/// nothing is left.
pub fn off(layout: &Layout, node: &str) -> Result<()> {
    world::node_init(layout, node)?.map_or(Ok(()), kill_namespace)?;
    let world = world::init(layout)?.context("the cluster is not up any more")?;
    world::enter(world, layout, &["darken", node])
}

/// What a new boot needs besides its disks.
pub fn prepare(layout: &Layout, node: &str) -> Result<()> {
    cgroups::remove_node(layout.name(), node)?;
    cgroups::create_node(layout.name(), node)
}

/// Boots the node from within the world; returns at once. Nothing happens when it is on.
pub fn on_from_inside(layout: &Layout, node: &str) -> Result<()> {
    if is_on(layout, node)? {
        return Ok(());
    }
    prepare(layout, node)?;
    // By a process that ends at once, so that the node belongs to the world and not to us.
    let boot = Command::new(layout.program()).args(["inside", "power-on", layout.name(), node]).output();
    let boot = boot.context("starting this program")?;
    ensure!(boot.status.success(), "{}", String::from_utf8_lossy(&boot.stderr).trim());
    Ok(())
}
