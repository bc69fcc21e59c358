//! What nobody may act during: a live migration in flight, and a pause.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use somersault_test_kubevirt::builders::{Vm, claim, live_migration};
use somersault_test_kubevirt::{HOLD, NETWORK_CLASS, PAUSE};

use crate::bed::Bed;

/// Started early, for others to start beside it.
pub fn begin(bed: &Bed) -> Result<()> {
    bed.apply(&Vm::new("live").claim("root", NETWORK_CLASS).objects())
}

pub fn migrating_and_paused(bed: &Bed) -> Result<()> {
    bed.say("a live migration in flight, a paused VM");
    let vmi = bed.wait_vmi("live", "Running")?;
    bed.apply(&[live_migration("default", "move", "live")])?;
    bed.wait("vmim", "move", "in flight", |vmim| (vmim["status"]["phase"] == "Running").then_some(()))?;
    bed.wait_vm("live", "Migrating")?;
    let state = bed.get("vmi", "live")?["status"]["migrationState"].clone();
    ensure!(state["targetNode"].is_string() && state["targetNode"] != vmi["status"]["nodeName"], "{state}");
    ensure!(state["completed"].is_null(), "{state}");

    bed.patch("vmim", "move", &json!({"metadata": {"annotations": {HOLD: null}}}))?;
    bed.wait("vmim", "move", "over", |vmim| (vmim["status"]["phase"] == "Failed").then_some(()))?;
    bed.wait_vm("live", "Running")?;
    bed.wait_gone("pod", state["targetPod"].as_str().unwrap_or_default())?;
    ensure!(bed.get("vmi", "live")?["metadata"]["uid"] == vmi["metadata"]["uid"], "it was restarted");
    let disk = bed.disk("live-root")?;
    ensure!(disk.faults.is_empty() && disk.runs.len() == 1, "{disk}");

    hotplugged(bed)?;
    bed.patch("vmi", "live", &json!({"metadata": {"annotations": {PAUSE: "true"}}}))?;
    bed.wait_vm("live", "Paused")?;
    bed.delete("vm", "live")
}

fn hotplugged(bed: &Bed) -> Result<()> {
    bed.apply(&[claim("default", "extra", NETWORK_CLASS)])?;
    let mut volumes = bed.get("vmi", "live")?["spec"]["volumes"].clone();
    let extra =
        json!({"name": "extra", "persistentVolumeClaim": {"claimName": "extra", "hotpluggable": true}});
    volumes.as_array_mut().context("volumes")?.push(extra);
    bed.patch("vmi", "live", &json!({"spec": {"volumes": volumes}}))?;
    let pod = bed.wait("vmi", "live", "the hotplug pod is named", |vmi| {
        let mut volumes = vmi["status"]["volumeStatus"].as_array()?.iter();
        volumes.find_map(|volume| volume["hotplugVolume"]["attachPodName"].as_str().map(str::to_owned))
    })?;
    bed.wait("pod", &pod, "Running", |pod| (pod["status"]["phase"] == "Running").then_some(()))
}
