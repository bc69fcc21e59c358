//! Local disks that move from one living node to another: nothing written is lost, and the claim keeps its name.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use somersault_test_cluster::until;
use somersault_test_e2e::api::Kind;
use somersault_test_e2e::bed::{Bed, VMS};
use somersault_test_e2e::stage::{DB, Stage, Storage, Vm};

/// Copies of 16 MiB, a stop and a start: about ten seconds on an idle machine.
const MIGRATE_DEADLINE: Duration = Duration::from_mins(4);
const WRITE_DEADLINE: Duration = Duration::from_mins(1);

/// A VM whose one disk was imported by CDI.
const IMPORTED: Vm = Vm::always("imported", Storage::LocalFromImage);

/// A VM with a claim of its own, and one whose claim belongs to a `DataVolume`, which would import its image again.
pub fn to_another_node(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let target = bed.nodes().into_iter().find(|other| *other != node).context("a cluster of one node")?;
    let mut stage = Stage::set(bed, &node, &[DB, IMPORTED])?;
    for vm in [DB, IMPORTED] {
        let claim = format!("{}-disk", vm.name);
        let before = bed.api().get(Kind::CLAIM, VMS, &claim)?;
        let start = bed.api().get(Kind::VM, VMS, vm.name)?["spec"]["runStrategy"].clone();
        bed.plugin(&["migrate", vm.name, "-n", VMS, "--to-node", &target])?;
        let migration = succeeded(bed, vm.name)?;
        let downtime = &migration["status"]["downtimeMs"];
        eprintln!("   {} moved from {node} to {target}, down for {downtime} ms", vm.name);

        let after = bed.api().get(Kind::CLAIM, VMS, &claim)?;
        ensure!(
            after["metadata"]["uid"] != before["metadata"]["uid"],
            "the claim of {} is the old one",
            vm.name
        );
        let old = before["spec"]["volumeName"].as_str().context("it was not bound")?;
        let policy = bed.api().get(Kind::VOLUME, "", old)?["spec"]["persistentVolumeReclaimPolicy"].clone();
        ensure!(policy == "Retain", "the old volume of {} is on {policy}", vm.name);
        let now = bed.api().get(Kind::VM, VMS, vm.name)?["spec"]["runStrategy"].clone();
        ensure!(now == start, "{} has run strategy {now}, and had {start}", vm.name);
        ensure!(stage.node_of(vm.name)?.as_deref() == Some(&target), "{} does not run on {target}", vm.name);
        // What its disk said before is what its new one must go on from.
        stage.moved(&vm, &target)?;
        stage.wait_writes(&vm, WRITE_DEADLINE)?;
        ensure!(stage.instances(&vm)? == 2, "{} instances have written", stage.instances(&vm)?);
        bed.api().delete(Kind::VOLUME, "", old)?;
    }
    stage.judge()
}

/// The migration of this VM, once it has succeeded.
fn succeeded(bed: &Bed, vm: &str) -> Result<Value> {
    until(&format!("the migration of {vm} succeeds"), MIGRATE_DEADLINE, &[bed.standin_log()], || {
        let migrations = bed.api().list(Kind::MIGRATION, VMS, "")?;
        let found = migrations.into_iter().find(|migration| migration["spec"]["vm"] == *vm);
        let found = found.with_context(|| format!("no migration of {vm}"))?;
        let status = &found["status"];
        ensure!(
            status["phase"] == "Succeeded",
            "{} {} {}",
            status["phase"],
            status["reason"],
            status["message"]
        );
        Ok(Some(found))
    })
}
