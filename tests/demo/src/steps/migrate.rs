//! Step 3: a VM with two local disks, owned by a Wukong, moves from n2 to n3.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use somersault_crd::volume_migration::{Phase, VolumeMigrationStatus};

use super::stage::{Files, Stage, node_of};
use super::summary::{Summary, seconds};
use crate::world::programs::show;

/// The VM.
pub const VM: &str = "wk1-vm";
const WUKONG: &str = "wk1";
const CLAIMS: [&str; 2] = ["wk1-system", "wk1-data"];
/// Where it goes.
pub const TARGET: &str = "n3";

/// The VM before it moves.
pub struct Before {
    instance: String,
    start_strategy: String,
    /// Hashes of the files in its images, by claim.
    pub files: BTreeMap<String, Files>,
    volumes: Vec<Value>,
}

/// What was found after it had moved.
pub struct Moved {
    /// Files in its images, all equal.
    pub files: usize,
    /// Silence on its disks.
    pub gap: Duration,
    /// The migration's status.
    pub migration: VolumeMigrationStatus,
}

/// Moves it.
pub fn run(stage: &Stage, summary: &mut Summary) -> Result<()> {
    let before = state_of(stage)?;
    let known = migrations(stage)?.len();
    println!(
        "\n{VM} belongs to a Wukong, which starts it again whenever it finds it stopped: so it is the Wukong that is \
         asked to stop it (startStrategy {}).",
        before.start_strategy
    );
    let began = Instant::now();
    show(&stage.layout, &["migrate", VM, "--to-node", TARGET, "--wait"])?;
    let took = began.elapsed();
    let (name, _) = migrations(stage)?.into_iter().nth(known).context("no VolumeMigration was made")?;
    let moved = assert_moved(stage, &before, &name)?;

    let copies = moved.migration.disks.iter().filter_map(|disk| disk.copied.as_ref());
    let (total, sent) =
        copies.fold((0, 0), |(total, sent), copy| (total + copy.total_bytes, sent + copy.sent_bytes));
    let (total, sent) = (mebibytes(total), mebibytes(sent));
    println!("\n{VM} runs on {TARGET}. Both claims kept their names; the old volumes are kept, on Retain.");
    println!("{} files inside the two images compared one by one (BLAKE3): all equal.", moved.files);
    println!("startStrategy is {} again.", before.start_strategy);
    println!(
        "{total} of data were copied while it ran, {sent} again after it had stopped; it was silent for {}.",
        seconds(moved.gap)
    );
    summary.time("two local disks moved to another node", took, &format!("{total} of data, verified"));
    summary.time(
        "  the VM was silent on its disks for",
        moved.gap,
        "files in the images compared: all equal",
    );
    Ok(())
}

/// The VM as it is now.
pub fn state_of(stage: &Stage) -> Result<Before> {
    let look = stage.look()?;
    let (_, instance) = look.running(VM).with_context(|| format!("{VM} does not run"))?;
    Ok(Before {
        instance: instance.to_owned(),
        start_strategy: start_strategy(stage)?,
        files: stage.files(VM)?,
        volumes: CLAIMS.iter().filter_map(|claim| look.volume_of(claim).cloned()).collect(),
    })
}

/// The migration has succeeded, and everything is as it should be.
pub fn assert_moved(stage: &Stage, before: &Before, migration: &str) -> Result<Moved> {
    let status = stage.look()?.migration(migration)?.context("the VolumeMigration is gone")?;
    ensure!(status.phase == Phase::Succeeded, "{migration} is {:?}: {}", status.phase, status.message);
    let node = stage.wait_for_restart(VM, &before.instance)?;
    ensure!(node == TARGET, "{VM} runs on {node}");
    let look = stage.look()?;
    for (claim, old) in CLAIMS.iter().zip(&before.volumes) {
        let volume = look.volume_of(claim).with_context(|| format!("{claim} is not bound"))?;
        ensure!(node_of(volume) == Some(TARGET), "{claim} is on {:?}", node_of(volume));
        let old_name = old["metadata"]["name"].as_str().unwrap_or_default();
        let kept = look.cluster("PersistentVolume", old_name).context("the old volume is gone")?;
        ensure!(kept["spec"]["persistentVolumeReclaimPolicy"] == "Retain", "{old_name} is not retained");
        ensure!(stage.image_of(kept)?.is_file(), "the old image of {claim} is gone");
    }
    let (was, is) = (&before.start_strategy, start_strategy(stage)?);
    ensure!(is == *was, "startStrategy was {was} and is {is}");
    let gap = stage.assert_history(VM, &["n2", TARGET])?;
    let files = stage.files(VM)?;
    ensure!(files == before.files, "the files in the images differ");
    Ok(Moved { files: files.values().map(BTreeMap::len).sum(), gap, migration: status })
}

/// `spec.startStrategy` of the Wukong, as JSON.
fn start_strategy(stage: &Stage) -> Result<String> {
    let look = stage.look()?;
    let wukong = look.object("Wukong", WUKONG).context("the Wukong is gone")?;
    Ok(wukong["spec"].get("startStrategy").map_or_else(|| "absent".to_owned(), Value::to_string))
}

/// Every migration of the VM, oldest first.
pub fn migrations(stage: &Stage) -> Result<Vec<(String, VolumeMigrationStatus)>> {
    let look = stage.look()?;
    let mut found = Vec::new();
    for migration in look.all("VolumeMigration").filter(|migration| migration["spec"]["vm"] == VM) {
        let name = migration["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let created = migration["metadata"]["creationTimestamp"].to_string();
        let status = look.migration(&name)?.unwrap_or_default();
        found.push((created, name, status));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found.into_iter().map(|(_, name, status)| (name, status)).collect())
}

/// Bytes for people.
pub fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
