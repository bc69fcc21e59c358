//! Step 4: n3's disk reports that it is failing. By policy, with no command given, its data leaves.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use somersault_crd::common::Locality;
use somersault_crd::node_health::DiskGrade;
use somersault_crd::volume_migration::Phase;

use super::migrate::{VM, mebibytes, migrations};
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
    let files = stage.files(VM)?;
    let instance = stage
        .look()?
        .running(VM)
        .map(|(_, uid)| uid.to_owned())
        .with_context(|| format!("{VM} does not run"))?;
    let known = migrations(stage)?.len();
    smart::begin_to_fail(&stage.layout, NODE)?;
    let began = Instant::now();
    println!(
        "\n{NODE}'s smartctl (a stand-in, with a stored report) now tells of 1873 reallocated and 24 pending sectors."
    );
    let disk = until("the disk is graded Failing", PATIENCE, || {
        let health = stage.look()?.health(NODE)?;
        Ok(health.and_then(|health| health.disks.into_iter().find(|disk| disk.grade == DiskGrade::Failing)))
    })?;
    let graded = began.elapsed();
    println!(
        "{NODE}: disk {} is Failing ({}), {} after its report.",
        disk.name,
        disk.reasons.join(", "),
        seconds(graded)
    );

    let evacuation = until("an Evacuation is made by policy", PATIENCE, || {
        let look = stage.look()?;
        let found = look.all("Evacuation").find(|object| object["spec"]["node"] == NODE);
        Ok(found.and_then(|object| object["metadata"]["name"].as_str()).map(str::to_owned))
    })?;
    println!(
        "Nobody gave a command. The coordinator made Evacuation {evacuation}: everything local leaves for {CLASS}."
    );
    let (name, _) =
        until("its VolumeMigration is made", PATIENCE, || Ok(migrations(stage)?.into_iter().nth(known)))?;
    let progress = Progress::new(&format!("{VM} → {CLASS}"));
    let migration = until("the evacuation has ended", COPY, || {
        let migration = stage.look()?.migration(&name)?.unwrap_or_default();
        if let Some(copy) = migration.progress {
            progress.show(copy.done_bytes, copy.total_bytes, &format!("{:?}", migration.phase));
        }
        let ended = !matches!(migration.phase, Phase::RollingBack) && migration.phase >= Phase::Succeeded;
        let look = stage.look()?;
        let complete = look
            .cluster("Evacuation", &evacuation)
            .is_some_and(|object| object["status"]["complete"] == true);
        Ok((ended && complete).then_some(migration))
    })?;
    progress.finish();
    ensure!(migration.phase == Phase::Succeeded, "{name} is {:?}: {}", migration.phase, migration.message);

    let node = stage.wait_for_restart(VM, &instance)?;
    let look = stage.look()?;
    for claim in ["wk1-system", "wk1-data"] {
        let volume = look.volume_of(claim).with_context(|| format!("{claim} is not bound"))?;
        ensure!(
            volume["spec"]["storageClassName"] == CLASS,
            "{claim} is in {}",
            volume["spec"]["storageClassName"]
        );
    }
    let gap = stage.assert_history(VM, &["n2", NODE, &node])?;
    ensure!(stage.files(VM)? == files, "the files in the images differ");
    let sent: u64 =
        migration.disks.iter().filter_map(|disk| disk.copied.as_ref()).map(|disk| disk.sent_bytes).sum();
    println!(
        "{VM} runs on {node}, from {CLASS}; {} sent, files equal, silent for {}.",
        mebibytes(sent),
        seconds(gap)
    );
    println!("From now on it would survive its node ({:?} disks only):", Locality::Network);
    show(&stage.layout, &["explain", VM])?;
    summary.time("disk reports failing → graded Failing", graded, "");
    summary.time(
        "disk graded → its data on network storage",
        began.elapsed().saturating_sub(graded),
        "by policy, no command given",
    );
    summary.time("  the VM was silent on its disks for", gap, "files in the images compared: all equal");
    Ok(())
}
