//! Step 5: n1's plug goes in again and its power on. It is trusted only after a while in its new boot.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use somersault_crd::node_health::NodeState;
use somersault_test_support::world::network;

use super::stage::{PATIENCE, Stage, VMS};
use super::summary::{Summary, seconds};
use crate::watch::until;
use crate::world::nodes;
use crate::world::programs::show;

const NODE: &str = "n1";
const VM: &str = "ledger";

/// Brings it back.
pub fn run(stage: &Stage, summary: &mut Summary) -> Result<()> {
    let health = stage.look()?.health(NODE)?.context("n1 has no NodeHealth")?;
    let dead_boot = health.boot_id.context("n1 has no boot id")?;
    let instance = stage.look()?.running(VM).map(|(_, uid)| uid.to_owned());
    network::push_plug(NODE)?;
    nodes::power_on(&stage.layout, NODE)?;
    let began = Instant::now();
    let new_boot = until("n1 is in quarantine in a new boot", PATIENCE, || {
        let health = stage.look()?.health(NODE)?.context("n1 has no NodeHealth")?;
        let boot = health.boot_id.filter(|boot| *boot != dead_boot);
        Ok(boot.filter(|_| health.state == NodeState::Quarantine))
    })?;
    let quarantined = began.elapsed();
    println!(
        "\n{NODE} boots: {dead_boot} is over, {new_boot} has begun. Quarantine after {}.",
        seconds(quarantined)
    );
    ensure!(!stage.look()?.taints(NODE).is_empty(), "n1 lost its taint in quarantine");

    until("n1 is healthy and its taint gone", PATIENCE, || {
        let look = stage.look()?;
        let healthy = look.health(NODE)?.is_some_and(|health| health.state == NodeState::Healthy);
        Ok((healthy && look.taints(NODE).is_empty()).then_some(()))
    })?;
    let healthy = began.elapsed();
    println!("Healthy, and the taint is gone, after {}.", seconds(healthy));
    let node = stage.wait_for_restart(VM, instance.as_deref().unwrap_or_default())?;
    ensure!(node == NODE, "{VM} runs on {node}");
    stage.assert_history(VM, &[NODE, NODE])?;
    println!("{VM} runs again on {NODE}, from its own disk, which nobody touched.");
    for vm in VMS {
        stage.journals(vm).with_context(|| format!("{vm} ran twice at once, or lost a write"))?;
    }
    println!(
        "The disks of all {} VMs were read once more: no VM ever ran twice at once, no write is missing.",
        VMS.len()
    );
    show(&stage.layout, &["status"])?;
    summary.time("power on → quarantine", quarantined, "a new boot id");
    summary.time(
        "power on → healthy, taint gone",
        healthy,
        "3 s of quarantine in this demo, 60 s by default",
    );
    summary.note("VMs that ran twice at once", "0", &format!("of {}, as their disks tell", VMS.len()));
    Ok(())
}
