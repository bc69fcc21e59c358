//! Stand-in for `smartctl`: a script on the agent's PATH that prints a stored report, with the exit status that
//! belongs to it. The nodes share this machine's disk, and nobody should have to break one for a demo.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};

use super::layout::Layout;
use super::write;

const HEALTHY: &str = include_str!("../../recorded/healthy.json");
const FAILING: &str = include_str!("../../recorded/failing.json");
/// Bits 3 and 4 of smartctl's exit status: the disk is failing, an attribute is below its threshold.
const FAILING_EXIT: u8 = 0b11000;

/// Puts the script on the node's PATH, with a healthy report.
pub fn install(layout: &Layout, node: &str) -> Result<()> {
    let etc = layout.mount_point.join("etc");
    let script = layout.node(node).join("etc/bin/smartctl");
    let text = format!("#!/bin/sh\ncat {0}/smart.json\nexit \"$(cat {0}/smart.exit)\"\n", etc.display());
    write(&script, &text)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))
        .context("making the smartctl stand-in executable")?;
    set(layout, node, HEALTHY, 0)
}

/// From now on the node's disk reports that it is failing.
pub fn begin_to_fail(layout: &Layout, node: &str) -> Result<()> {
    set(layout, node, FAILING, FAILING_EXIT)
}

fn set(layout: &Layout, node: &str, report: &str, exit_status: u8) -> Result<()> {
    let etc = layout.node(node).join("etc");
    write(&etc.join("smart.exit"), &format!("{exit_status}\n"))?;
    write(&etc.join("smart.json"), &report.replace("SERIAL", &format!("DEMO-{node}")))
}
