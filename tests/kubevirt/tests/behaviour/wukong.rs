//! Wukong's habits.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::json;
use somersault_test_kubevirt::builders::wukong;
use somersault_test_kubevirt::judge::Fault;

use crate::bed::Bed;

/// Started early: it waits 10 s for its import.
pub fn begin(bed: &Bed) -> Result<()> {
    bed.apply(&[wukong("default", "wk1", "local-path")])
}

pub fn habits(bed: &Bed) -> Result<()> {
    bed.say("Wukong: a whole spec rewritten");
    bed.wait_vm("wk1-vm", "Running")?;
    bed.wait_disk("wk1-data", "it writes", |disk| disk.records.len() > 5)?;
    let claim = bed.get("pvc", "wk1-data")?;
    ensure!(claim["metadata"]["ownerReferences"].is_null(), "{}", claim["metadata"]);
    bed.wait("wukong", "wk1", "Running", |wukong| (wukong["status"]["phase"] == "Running").then_some(()))?;
    let affinity = json!({"spec": {"template": {"spec": {"affinity": {"nodeAffinity": {}}}}}});
    bed.patch("vm", "wk1-vm", &affinity)?;
    ensure!(bed.get("vm", "wk1-vm")?["spec"]["template"]["spec"]["affinity"].is_object(), "gone by itself");
    let event = |word: &str| bed.patch("wukong", "wk1", &json!({"metadata": {"annotations": {"x": word}}}));
    event("1")?;
    bed.wait("vm", "wk1-vm", "rewritten, with its firmware", |vm| {
        let spec = &vm["spec"]["template"]["spec"];
        (spec["affinity"].is_null() && spec["domain"]["firmware"]["uuid"].is_string()).then_some(())
    })?;

    bed.say("Wukong: stopped, its status stays Running, a missing claim comes back blank");
    bed.patch("wukong", "wk1", &json!({"spec": {"startStrategy": {"autoStart": false}}}))?;
    bed.wait_gone("vmi", "wk1-vm")?;
    bed.wait_vm("wk1-vm", "Stopped")?;
    ensure!(bed.get("wukong", "wk1")?["status"]["phase"] == "Running", "the status was written");
    let before = bed.disk("wk1-data")?;
    let generation = bed.get("vm", "wk1-vm")?["metadata"]["generation"].clone();
    event("2")?;
    bed.delete("pvc", "wk1-data")?;
    let asked = Instant::now();
    bed.wait("pvc", "wk1-data", "made again", |pvc| {
        (pvc["metadata"]["uid"] != claim["metadata"]["uid"]).then_some(())
    })?;
    bed.say(&format!("made again after {:.1} s", asked.elapsed().as_secs_f32()));
    ensure!(bed.get("vm", "wk1-vm")?["metadata"]["generation"] != generation, "the VM was left alone");

    bed.patch("wukong", "wk1", &json!({"spec": {"startStrategy": null}}))?;
    bed.wait_vm("wk1-vm", "Running")?;
    let now = bed.wait_disk("wk1-data", "it writes", |disk| disk.records.len() > 2)?;
    let faults = now.continues(&before);
    ensure!(faults.iter().any(|fault| matches!(fault, Fault::Replaced { .. })), "booted blank: {now}");
    let system = bed.disk("wk1-system")?;
    ensure!(system.faults.is_empty() && system.instances().len() == 2, "{system}");

    bed.delete("wukong", "wk1")?;
    bed.wait_gone("vm", "wk1-vm")?;
    ensure!(bed.find("pvc", "wk1-system")?.is_some(), "its disks are gone");
    Ok(())
}
