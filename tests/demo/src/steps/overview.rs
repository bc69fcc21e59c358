//! Step 1: the coordinator starts, learns of nodes, disks and VMs, and tells who would survive what.

use anyhow::{Result, ensure};
use somersault_crd::node_health::{DiskGrade, NodeState};
use somersault_test_support::world::programs::Process;

use super::stage::{PATIENCE, Stage};
use crate::watch::until;
use crate::world::nodes::{self, NODES};
use crate::world::programs::{ask, show, start_coordinator};

/// What becomes of each VM if its node dies.
const EXPECTED: [(&str, &str); 5] = [
    ("web", "Recreate"),
    ("queue", "Recreate"),
    ("ledger", "ManualRecovery"),
    ("wk1-vm", "ManualRecovery"),
    ("desk", "ManualRecovery"),
];

/// Shows it.
pub fn run(stage: &Stage) -> Result<()> {
    for node in NODES {
        ensure!(
            nodes::press(&stage.layout, "status", node)? == 0,
            "the power switch says that {node} is off"
        );
    }
    show(&stage.layout, &["status"])?;
    show(&stage.layout, &["report"])?;
    let report = ask(&stage.layout, &["report"])?;
    for (vm, decision) in EXPECTED {
        let found = decision_of(&report, vm);
        ensure!(found == Some(decision), "the report says {found:?} of {vm}, expected {decision}");
    }
    Ok(())
}

/// Starts a coordinator, and waits until it knows every node.
pub fn start(stage: &Stage) -> Result<Process> {
    let mut coordinator = start_coordinator(&stage.layout, &stage.authority)?;
    until("all nodes are healthy and have told of their disks and volumes", PATIENCE, || {
        coordinator.check()?;
        let look = stage.look()?;
        for node in NODES {
            let Some(health) = look.health(node)? else { return Ok(None) };
            let graded = health.disks.iter().any(|disk| disk.grade == DiskGrade::Ok);
            if health.state != NodeState::Healthy || !graded || health.roots.is_empty() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })?;
    Ok(coordinator)
}

fn decision_of<'a>(report: &'a serde_json::Value, vm: &str) -> Option<&'a str> {
    let vms = report["vms"].as_array()?;
    vms.iter().find(|row| row["name"] == vm)?["decision"].as_str()
}
