//! Storage that breaks under VMs whose node lives: told, with a runbook, and touched by nobody.
//!
//! ```text
//!   VM            what breaks                                   reason
//!   misbound      the volume's claimRef names another claim     ClaimLost          bound again: Recovered
//!   unbound       the PersistentVolume is deleted               ClaimLost
//!   imageless     disk.img is deleted, the guest has it open    DiskImageMissing   linked again: Recovered
//!   folderless    the volume's folder is deleted                VolumePathMissing
//! ```

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use somersault_test_cluster::until;
use somersault_test_e2e::api::Kind;
use somersault_test_e2e::bed::{Bed, VMS};
use somersault_test_e2e::stage::{Stage, Storage, Vm};

/// Two listings of the node's folders, a minute apart, and the report of the second, half a minute later.
const TOLD_DEADLINE: Duration = Duration::from_mins(5);
/// One listing, its report, and the time that it must hold.
const SOUND_DEADLINE: Duration = Duration::from_mins(3);
const BOUND_DEADLINE: Duration = Duration::from_secs(30);
const WRITE_DEADLINE: Duration = Duration::from_secs(15);

const MISBOUND: Vm = Vm::always("misbound", Storage::Local);
const UNBOUND: Vm = Vm::always("unbound", Storage::Local);
const IMAGELESS: Vm = Vm::always("imageless", Storage::Local);
const FOLDERLESS: Vm = Vm::always("folderless", Storage::Local);
/// The uid of no claim.
const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

/// All of it at once, on one node.
pub fn breaks(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let vms = [MISBOUND, UNBOUND, IMAGELESS, FOLDERLESS];
    let stage = Stage::set(bed, &node, &vms)?;
    let launchers: Vec<_> = vms.iter().map(|vm| stage.launcher_on(vm.name, &node)).collect::<Result<_>>()?;
    let kept = break_all(bed, &stage)?;

    for (vm, reason, advice) in [
        (&MISBOUND, "ClaimLost", "kubectl patch pv"),
        (&UNBOUND, "ClaimLost", "no node of it died"),
        (&IMAGELESS, "DiskImageMissing", "Do not stop, restart or migrate it"),
        (&FOLDERLESS, "VolumePathMissing", "Do not stop, restart or migrate it"),
    ] {
        let recovery = wait_told(bed, vm, reason)?;
        let runbook = recovery["status"]["runbook"].as_str().unwrap_or_default();
        ensure!(runbook.contains(advice), "the runbook of {} is {runbook}", vm.name);
        ensure!(recovery["status"]["node"] == *node, "{}", recovery["status"]);
        wait_event(bed, vm, "StorageFailed")?;
    }
    let said = bed.plugin(&["recoveries", "-n", VMS])?;
    ensure!(said.contains("StorageFailed") && said.contains("DiskImageMissing"), "{said}");
    let explained = bed.plugin(&["explain", "vm/misbound", "-n", VMS])?;
    ensure!(explained.contains("its storage is broken now"), "{explained}");

    bed.check_undeclared()?;
    for (vm, launcher) in vms.iter().zip(&launchers) {
        ensure!(launcher.is_some(), "{} had no launcher", vm.name);
        ensure!(stage.launcher_on(vm.name, &node)? == *launcher, "the launcher of {} was touched", vm.name);
    }

    bind_again(bed)?;
    wait_sound(bed, &MISBOUND)?;
    fs::hard_link(&kept, kept.with_file_name("disk.img")).context("linking the image again")?;
    fs::remove_file(&kept).context("removing the link that kept it")?;
    wait_sound(bed, &IMAGELESS)?;
    for vm in [&UNBOUND, &FOLDERLESS] {
        let progress = bed.recovery(vm.name)?["status"]["progress"].clone();
        ensure!(progress == "NeedsPerson", "nobody has brought {} back, and it is {progress}", vm.name);
    }
    // The guests never noticed.
    for vm in [&MISBOUND, &UNBOUND, &IMAGELESS] {
        stage.wait_writes(vm, WRITE_DEADLINE)?;
        let disk = stage.disk(vm)?;
        ensure!(disk.faults.is_empty() && disk.instances().len() == 1, "the disk of {}: {disk:?}", vm.name);
    }
    Ok(())
}

/// Returns the second name of the image that is deleted, by which the test brings it back.
fn break_all(bed: &Bed, stage: &Stage<'_>) -> Result<PathBuf> {
    let api = bed.api();
    // With reclaim policy Delete, a volume that belongs to nobody any more goes with its data.
    let misbind = json!({"spec": {"persistentVolumeReclaimPolicy": "Retain", "claimRef": {"uid": NOBODY}}});
    api.merge(Kind::VOLUME, "", &volume_of(bed, &MISBOUND)?, &misbind)?;

    let unbound = volume_of(bed, &UNBOUND)?;
    let release =
        json!({"metadata": {"finalizers": null}, "spec": {"persistentVolumeReclaimPolicy": "Retain"}});
    api.delete(Kind::VOLUME, "", &unbound)?;
    until("the volume is gone", BOUND_DEADLINE, &[], || {
        let Some(_) = api.find(Kind::VOLUME, "", &unbound)? else { return Ok(Some(())) };
        // Its protection holds it while the claim is bound to it; a person who insists takes that away.
        api.merge(Kind::VOLUME, "", &unbound, &release)?;
        Ok(None)
    })?;

    let image = stage.image(&IMAGELESS)?;
    let kept = image.with_file_name("kept.img");
    fs::hard_link(&image, &kept).context("keeping a second name of the image")?;
    fs::remove_file(&image).context("deleting the image")?;

    let image = stage.image(&FOLDERLESS)?;
    let folder = image.parent().context("an image in no folder")?;
    fs::remove_dir_all(folder).with_context(|| format!("deleting {}", folder.display()))?;
    Ok(kept)
}

fn claim_of(bed: &Bed, vm: &Vm) -> Result<Value> {
    bed.api().get(Kind::CLAIM, VMS, &format!("{}-disk", vm.name))
}

fn volume_of(bed: &Bed, vm: &Vm) -> Result<String> {
    let claim = claim_of(bed, vm)?;
    Ok(claim["spec"]["volumeName"].as_str().context("the claim is not bound")?.to_owned())
}

/// What the runbook says: the volume's `claimRef` gets the claim's uid.
fn bind_again(bed: &Bed) -> Result<()> {
    let (volume, uid) = (volume_of(bed, &MISBOUND)?, claim_of(bed, &MISBOUND)?["metadata"]["uid"].clone());
    let bind = json!({"spec": {"claimRef": {"uid": uid, "resourceVersion": null}}});
    bed.api().merge(Kind::VOLUME, "", &volume, &bind)?;
    until("the claim is Bound again", BOUND_DEADLINE, &[], || {
        let phase = claim_of(bed, &MISBOUND)?["status"]["phase"].clone();
        ensure!(phase == "Bound", "it is {phase}");
        Ok(Some(()))
    })?;
    // As it was: the volume goes with its claim when the scenario is cleared away.
    let delete = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}});
    bed.api().merge(Kind::VOLUME, "", &volume, &delete)
}

fn wait_told(bed: &Bed, vm: &Vm, reason: &str) -> Result<Value> {
    until(&format!("the storage of {} is told to be broken", vm.name), TOLD_DEADLINE, &[], || {
        let recovery = bed.recovery(vm.name)?;
        let status = &recovery["status"];
        ensure!(status["cause"] == "StorageFailed", "its cause is {}", status["cause"]);
        ensure!(status["progress"] == "NeedsPerson", "it is {}", status["progress"]);
        ensure!(status["reasons"][0] == reason, "its reasons are {}", status["reasons"]);
        Ok(Some(recovery))
    })
}

fn wait_sound(bed: &Bed, vm: &Vm) -> Result<()> {
    until(&format!("the storage of {} is sound again", vm.name), SOUND_DEADLINE, &[], || {
        let progress = bed.recovery(vm.name)?["status"]["progress"].clone();
        ensure!(progress == "Recovered", "it is {progress}");
        Ok(Some(()))
    })?;
    wait_event(bed, vm, "StorageSound")
}

fn wait_event(bed: &Bed, vm: &Vm, reason: &str) -> Result<()> {
    until(&format!("the Event {reason} of {}", vm.name), BOUND_DEADLINE, &[], || {
        let events = bed.api().list(Kind::EVENT, VMS, "")?;
        let is_it = |event: &&Value| event["reason"] == reason && event["regarding"]["name"] == vm.name;
        ensure!(events.iter().find(is_it).is_some(), "there is none among {} Events", events.len());
        Ok(Some(()))
    })
}
