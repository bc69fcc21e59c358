//! A disk that somebody put into another machine: its folder there becomes the disk of the claim that lost it, and the VM goes
//! on from what it wrote last.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use somersault_test_cluster::until;
use somersault_test_e2e::api::Kind;
use somersault_test_e2e::bed::{Bed, VMS};
use somersault_test_e2e::stage::{DB, Stage, image_of};

use super::migration::another;

/// A listing of the folders, its report, and the coordinator's word of it, each once a minute at the slowest.
const LISTED_DEADLINE: Duration = Duration::from_mins(5);
const STOP_DEADLINE: Duration = Duration::from_mins(2);
const WRITE_DEADLINE: Duration = Duration::from_mins(1);

/// The VM is stopped, its folder is taken from one node to another, by hand.
pub fn in_another_machine(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let target = another(bed, &node)?;
    let mut stage = Stage::set(bed, &node, &[DB])?;
    let claim = format!("{}-disk", DB.name);
    let old = bed.api().get(Kind::CLAIM, VMS, &claim)?["spec"]["volumeName"].clone();
    let old = old.as_str().context("it is not bound")?.to_owned();
    let path = image_of(bed, &old)?;
    let path = path.strip_suffix("/disk.img").context("no image")?;
    let folder = format!("{target}:{path}");
    let refused = bed.plugin(&["adopt", &folder, "--yes"]);
    ensure!(refused.is_err(), "the folder is not there yet: {refused:?}");

    let run = |strategy: &str| {
        bed.api().merge(Kind::VM, VMS, DB.name, &json!({"spec": {"runStrategy": strategy}})).map(drop)
    };
    run("Halted")?;
    until("the VM has stopped", STOP_DEADLINE, &[bed.standin_log()], || {
        let pods = bed.api().list(Kind::POD, VMS, "kubevirt.io=virt-launcher")?;
        Ok((pods.is_empty() && bed.api().find(Kind::VMI, VMS, DB.name)?.is_none()).then_some(()))
    })?;
    take(&bed.cluster().path_on(&node, path)?, &bed.cluster().path_on(&target, path)?)?;

    until("the folder is seen in the one machine, and not in the other", LISTED_DEADLINE, &[], || {
        let listed = bed.plugin(&["adopt", "-n", VMS])?;
        ensure!(listed.contains("can be") && listed.contains(path), "{listed}");
        Ok(Some(()))
    })?;
    let shown = bed.plugin(&["adopt", &folder, "--dry-run"])?;
    ensure!(shown.contains(&format!("Claim {VMS}/{claim} gets folder {path} of node {target}")), "{shown}");
    bed.plugin(&["adopt", &folder, "--yes"])?;
    let kept = bed.api().get(Kind::VOLUME, "", &old)?;
    ensure!(kept["spec"]["persistentVolumeReclaimPolicy"] == "Retain", "{kept}");

    run("Always")?;
    until("the VM runs where its disk is", STOP_DEADLINE, &[bed.standin_log()], || {
        Ok((stage.node_of(DB.name)?.as_deref() == Some(&target)).then_some(()))
    })?;
    stage.moved(&DB, &target)?;
    stage.wait_writes(&DB, WRITE_DEADLINE)?;
    ensure!(stage.instances(&DB)? == 2, "{} instances have written", stage.instances(&DB)?);
    stage.judge()?;
    bed.api().delete(Kind::VOLUME, "", &old)
}

/// As somebody who carries a disk: all of it, and then it is gone where it was.
fn take(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().context("starting cp")?;
    ensure!(copied.success(), "cp: {copied}");
    std::fs::remove_dir_all(from).with_context(|| format!("removing {}", from.display()))
}
