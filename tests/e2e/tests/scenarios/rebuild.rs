//! A VM whose system disk died with its node, and whose owner agreed to a new one from the image.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use somersault_test_cluster::until;
use somersault_test_e2e::api::Kind;
use somersault_test_e2e::bed::{Bed, VMS};
use somersault_test_e2e::stage::{IMAGE, SYSTEM_DISK, Stage, image_of};
use somersault_test_kubevirt::judge;

const DECIDE_DEADLINE: Duration = Duration::from_secs(30);
/// Stop, a claim made anew by its `DataVolume`, the import's pod, the start.
const REBUILD_DEADLINE: Duration = Duration::from_mins(4);
const RETURN_DEADLINE: Duration = Duration::from_mins(3);

/// The system disk is imported anew on another node, the data disk goes on, and the old system disk is kept.
pub fn from_image(bed: &Bed) -> Result<()> {
    let api = bed.api();
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[IMAGE])?;
    let claim = format!("{}-{SYSTEM_DISK}", IMAGE.name);
    let old = api.get(Kind::CLAIM, VMS, &claim)?;
    let old_volume = old["spec"]["volumeName"].as_str().context("the system disk is not bound")?.to_owned();
    let before = start_of(&api.get(Kind::VM, VMS, IMAGE.name)?);
    let old_image = image_of(bed, &old_volume)?;

    bed.cluster().power_off(&node)?;
    bed.wait_decision(IMAGE.name, "Rebuild", DECIDE_DEADLINE)?;
    let disk = stage.wait_new_writer(&IMAGE, REBUILD_DEADLINE)?;
    ensure!(disk.instances().len() == 2, "its data disk was written by {:?}", disk.instances());
    let recovery = until("its Recovery says that it is over", REBUILD_DEADLINE, &[], || {
        let recovery = bed.recovery(IMAGE.name)?;
        let progress = &recovery["status"]["progress"];
        ensure!(progress == "Recovered", "it says {progress}");
        Ok(Some(recovery))
    })?;
    let kept = &recovery["status"]["rebuild"]["disks"][0]["oldVolume"];
    ensure!(*kept == *old_volume, "the old volume in the Recovery is {kept}");
    let new = api.get(Kind::CLAIM, VMS, &claim)?;
    ensure!(new["metadata"]["uid"] != old["metadata"]["uid"], "the claim of its system disk is the old one");
    ensure!(start_of(&api.get(Kind::VM, VMS, IMAGE.name)?) == before, "its start field was not given back");
    let volume = api.get(Kind::VOLUME, "", &old_volume)?;
    let policy = &volume["spec"]["persistentVolumeReclaimPolicy"];
    ensure!(policy == "Retain", "the old volume is on {policy}");

    bed.cluster().power_on(&node)?;
    bed.cluster().wait_ready(&node)?;
    bed.wait_state(&node, "Healthy", RETURN_DEADLINE)?;
    let path = bed.cluster().path_on(&node, &old_image)?;
    ensure!(!judge::read(&path)?.records.is_empty(), "the old system disk has lost what was written on it");
    ensure!(stage.instances(&IMAGE)? == 2, "the VM started once more when its old node came back");
    api.delete(Kind::VOLUME, "", &old_volume)?;
    stage.judge()
}

/// Whether and when it is to run.
fn start_of(vm: &Value) -> (Value, Value) {
    (vm["spec"]["running"].clone(), vm["spec"]["runStrategy"].clone())
}
