//! `DataVolumes`: import, handshake, and the trap.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use somersault_test_kubevirt::builders::{Vm, claim, data_volume, shared_volume};
use somersault_test_kubevirt::judge::{Fault, Source};
use somersault_test_kubevirt::{POPULATED_FOR, PRE_POPULATED};

use crate::bed::Bed;

const URL: &str = "http://images.invalid/ubuntu.img";
/// CDI makes a claim again within milliseconds.
const QUIET: Duration = Duration::from_secs(1);

/// Started early: an import takes some seconds.
pub fn begin(bed: &Bed) -> Result<()> {
    let template = Vm::new("template").data_volume_template("root", "local-path", URL);
    let mut objects = template.objects();
    for name in ["kept", "trapped"] {
        objects.push(data_volume("default", &format!("{name}-root"), "local-path", URL));
        objects.extend(Vm::new(name).data_volume("root", &format!("{name}-root")).objects());
    }
    bed.apply(&objects)
}

pub fn handshake_and_trap(bed: &Bed) -> Result<()> {
    bed.say("imports");
    for name in ["template", "kept", "trapped"] {
        bed.wait_vm(name, "Running")?;
        let disk = bed.wait_disk(&format!("{name}-root"), "it writes", |disk| disk.records.len() > 2)?;
        ensure!(disk.origin.as_ref().is_some_and(|origin| origin.origin == Source::Image), "{disk}");
        let phase = bed.get("dv", &format!("{name}-root"))?["status"]["phase"].clone();
        ensure!(phase == "Succeeded", "{phase}");
        ensure!(bed.find("pod", &format!("importer-{name}-root"))?.is_none(), "the importer is left");
    }
    let asked = bed.get("pvc", "template-root")?["spec"]["resources"]["requests"]["storage"].clone();
    ensure!(asked == "17783849", "the storage form asks for more than 16Mi: {asked}");
    bed.delete("vm", "template")?;

    for name in ["kept", "trapped"] {
        bed.patch("vm", name, &json!({"spec": {"runStrategy": "Halted"}}))?;
    }
    for name in ["kept", "trapped"] {
        bed.wait_vm(name, "Stopped")?;
    }
    handshake(bed)?;
    trap(bed)
}

fn handshake(bed: &Bed) -> Result<()> {
    bed.say("the handshake, and a claim swapped under its DataVolume");
    let name = "kept-root";
    let before = bed.disk(name)?;
    bed.patch("pvc", name, &json!({"metadata": {"annotations": {POPULATED_FOR: name}}}))?;
    bed.wait("dv", name, "the handshake is answered", |dv| {
        (dv["metadata"]["annotations"][PRE_POPULATED] == name).then_some(())
    })?;
    let copy = copy_to_shared(bed, name)?;
    bed.delete("pvc", name)?;
    bed.wait_gone("pvc", name)?;
    bed.wait("dv", name, "Pending", |dv| (dv["status"]["phase"] == "Pending").then_some(()))?;
    std::thread::sleep(QUIET);
    ensure!(bed.find("pvc", name)?.is_none(), "the claim was made again");
    let mut new = claim("default", name, "local-path");
    new["spec"]["volumeName"] = json!(copy);
    new["metadata"]["annotations"] = json!({POPULATED_FOR: name});
    bed.apply(&[new])?;
    bed.wait("dv", name, "Succeeded", |dv| (dv["status"]["phase"] == "Succeeded").then_some(()))?;
    bed.patch("vm", "kept", &json!({"spec": {"runStrategy": "Always"}}))?;
    bed.wait_vm("kept", "Running")?;
    let now = bed.wait_disk(name, "it goes on", |disk| disk.runs.len() > 1)?;
    ensure!(now.continues(&before).is_empty(), "{now}");
    bed.delete("vm", "kept")
}

/// Measured on CDI 1.66.0: without the handshake the recovered disk is overwritten.
fn trap(bed: &Bed) -> Result<()> {
    bed.say("the trap: a claim deleted without the handshake");
    let name = "trapped-root";
    let before = bed.disk(name)?;
    let old = bed.get("pvc", name)?["metadata"]["uid"].clone();
    let copy = copy_to_shared(bed, name)?;
    bed.delete("pvc", name)?;
    bed.wait("pvc", name, "made again and bound to the copy", |pvc| {
        let is_new = pvc["metadata"]["uid"] != old;
        (is_new && pvc["spec"]["volumeName"] == copy && pvc["status"]["phase"] == "Bound").then_some(())
    })?;
    let now =
        bed.wait_disk(name, "imported over", |disk| disk.records.is_empty() && disk.origin.is_some())?;
    let faults = now.continues(&before);
    ensure!(faults.iter().any(|fault| matches!(fault, Fault::Replaced { .. })), "{faults:?}");
    bed.delete("vm", "trapped")
}

/// A volume with a copy of the claim's disk, bound to the claim's next namesake: what Somersault prepares. Returns
/// its name.
fn copy_to_shared(bed: &Bed, claim: &str) -> Result<String> {
    let name = format!("copy-of-{claim}");
    let folder = bed.cluster.layout().network_folder().join(&name);
    std::fs::create_dir_all(&folder)?;
    let copy = folder.join("disk.img");
    std::fs::copy(bed.disk_path(claim)?, &copy).context("copying a disk")?;
    std::os::unix::fs::chown(&copy, Some(107), Some(107))?;
    let mut volume: Value = shared_volume(&name, "default", claim, "local-path");
    volume["spec"]["capacity"]["storage"] = json!("1Gi");
    bed.apply(&[volume])?;
    Ok(name)
}
