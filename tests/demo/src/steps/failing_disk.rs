//! Step 4: n3's disk reports that it is failing. By policy, with no command given, its data leaves.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use somersault_crd::node_health::DiskGrade;
use somersault_crd::volume_migration::{Phase, VolumeMigrationStatus};

use super::migrate::{Before, CLAIMS, VM, mebibytes, migrations, state_of};
use super::stage::{PATIENCE, Stage};
use super::summary::{Summary, seconds};
use crate::progress::Progress;
use crate::watch::until;
use crate::world::programs::show;
use crate::world::smart;

const NODE: &str = "n3";
const CLASS: &str = "nfs";
/// 350 MiB in two copies, with every chunk hashed on both sides.
const COPY: Duration = Duration::from_mins(1);

/// Lets it fail.
pub fn run(stage: &Stage, summary: &mut Summary) -> Result<()> {
    let before = state_of(stage)?;
    let known = migrations(stage)?.len();
    let graded = grade(stage)?;
    let began = Instant::now();
    let migration = evacuated(stage, known)?;
    let took = began.elapsed();
    let gap = assert_safe(stage, &before)?;

    let copies = migration.disks.iter().filter_map(|disk| disk.copied.as_ref());
    let total = mebibytes(copies.map(|copy| copy.total_bytes).sum());
    println!("{total} on {CLASS}, all files equal; {VM} was silent for {}.", seconds(gap));
    println!("From now on it would survive its node:");
    show(&stage.layout, &["explain", VM])?;
    summary.time("disk reports failing → graded Failing", graded, "");
    summary.time("disk graded → its data on network storage", took, "by policy, no command given");
    summary.time("  the VM was silent on its disks for", gap, "files in the images compared: all equal");
    Ok(())
}

/// The disk begins to fail; returns how long it takes to be graded so.
fn grade(stage: &Stage) -> Result<Duration> {
    smart::begin_to_fail(&stage.layout, NODE)?;
    let began = Instant::now();
    println!(
        "\n{NODE}'s smartctl (a stand-in, with a stored report) tells of 1873 reallocated sectors, 24 pending."
    );
    let disk = until("the disk is graded Failing", PATIENCE, || {
        let health = stage.look()?.health(NODE)?;
        Ok(health.and_then(|health| health.disks.into_iter().find(|disk| disk.grade == DiskGrade::Failing)))
    })?;
    let graded = began.elapsed();
    let (name, reasons) = (disk.name, disk.reasons.join(", "));
    println!("{NODE}: disk {name} is Failing ({reasons}), {} after its report.", seconds(graded));
    Ok(graded)
}

/// Waits for the Evacuation that nobody ordered, and for its end.
fn evacuated(stage: &Stage, known: usize) -> Result<VolumeMigrationStatus> {
    let evacuation = until("an Evacuation is made by policy", PATIENCE, || {
        let look = stage.look()?;
        let found = look.all("Evacuation").find(|object| object["spec"]["node"] == NODE);
        Ok(found.and_then(|object| object["metadata"]["name"].as_str()).map(str::to_owned))
    })?;
    println!(
        "Nobody gave a command. Evacuation {evacuation}: everything local on that disk leaves for {CLASS}."
    );
    let (name, _) =
        until("its VolumeMigration is made", PATIENCE, || Ok(migrations(stage)?.into_iter().nth(known)))?;
    let progress = Progress::new(&format!("{VM} → {CLASS}"));
    let migration = until("the evacuation has ended", COPY, || {
        let look = stage.look()?;
        let migration = look.migration(&name)?.unwrap_or_default();
        if let Some(copy) = &migration.progress {
            progress.show(copy.done_bytes, copy.total_bytes, &format!("{:?}", migration.phase));
        }
        let object = look.cluster("Evacuation", &evacuation).context("the Evacuation is gone")?;
        Ok((object["status"]["complete"] == true).then_some(migration))
    })?;
    progress.finish();
    ensure!(migration.phase == Phase::Succeeded, "{name} is {:?}: {}", migration.phase, migration.message);
    Ok(migration)
}

/// The VM runs from network storage, with the files that it had; returns how long it was silent.
fn assert_safe(stage: &Stage, before: &Before) -> Result<Duration> {
    let node = stage.wait_for_restart(VM, &before.instance)?;
    println!("{VM} runs on {node}.");
    let look = stage.look()?;
    for claim in CLAIMS {
        let volume = look.volume_of(claim).with_context(|| format!("{claim} is not bound"))?;
        let class = &volume["spec"]["storageClassName"];
        ensure!(class == CLASS, "{claim} is in {class}");
    }
    ensure!(stage.files(VM)? == before.files, "the files in the images differ");
    stage.assert_history(VM, &["n2", NODE, &node])
}
