//! Step 3: a VM with two local disks, owned by a Wukong, moves from n2 to n3.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use somersault_crd::volume_migration::{Phase, VolumeMigrationStatus};

use super::stage::{Stage, node_of};
use super::summary::{Summary, seconds};
use crate::world::programs::show;

/// The VM.
pub const VM: &str = "wk1-vm";
const WUKONG: &str = "wk1";
const CLAIMS: [&str; 2] = ["wk1-system", "wk1-data"];
const TARGET: &str = "n3";

/// Moves it.
pub fn run(stage: &Stage, summary: &mut Summary) -> Result<()> {
    let look = stage.look()?;
    let (_, instance) = look.running(VM).with_context(|| format!("{VM} does not run"))?;
    let start_strategy = start_strategy(stage)?;
    let files = stage.files(VM)?;
    let sources: Vec<Value> = CLAIMS.iter().filter_map(|claim| look.volume_of(claim).cloned()).collect();
    let known = migrations(stage)?.len();
    println!(
        "\n{VM} belongs to a Wukong, which starts it again whenever it finds it stopped: so it is the Wukong that is \
         asked to stop it (startStrategy {start_strategy})."
    );
    let began = Instant::now();
    show(&stage.layout, &["migrate", VM, "--to-node", TARGET, "--wait"])?;
    let took = began.elapsed();

    let (name, migration) =
        migrations(stage)?.into_iter().nth(known).context("no VolumeMigration was made")?;
    ensure!(migration.phase == Phase::Succeeded, "{name} is {:?}: {}", migration.phase, migration.message);
    let node = stage.wait_for_restart(VM, instance)?;
    ensure!(node == TARGET, "{VM} runs on {node}");
    let look = stage.look()?;
    for (claim, source) in CLAIMS.iter().zip(&sources) {
        let volume = look.volume_of(claim).with_context(|| format!("{claim} is not bound"))?;
        ensure!(node_of(volume) == Some(TARGET), "{claim} is on {:?}", node_of(volume));
        let source_name = source["metadata"]["name"].as_str().unwrap_or_default();
        let kept = look.cluster("PersistentVolume", source_name).context("the old volume is gone")?;
        ensure!(kept["spec"]["persistentVolumeReclaimPolicy"] == "Retain", "{source_name} is not retained");
        ensure!(stage.image_of(kept)?.is_file(), "the old image of {claim} is gone");
    }
    let given_back = self::start_strategy(stage)?;
    ensure!(given_back == start_strategy, "startStrategy was {start_strategy} and is {given_back}");
    let gap = stage.assert_history(VM, &["n2", TARGET])?;
    let copied = stage.files(VM)?;
    ensure!(copied == files, "the files in the images differ");

    let count: usize = copied.values().map(std::collections::BTreeMap::len).sum();
    let bytes = migration.disks.iter().filter_map(|disk| disk.copied.as_ref());
    let (total, sent) =
        bytes.fold((0, 0), |(total, sent), disk| (total + disk.total_bytes, sent + disk.sent_bytes));
    println!(
        "\n{VM} runs on {node}. Both claims kept their names and are bound to volumes on {TARGET}; the old volumes \
         are kept, on Retain.\n{count} files inside the two images compared one by one (BLAKE3): all equal. \
         startStrategy is {given_back} again.\n{} of data were copied while it ran, {} again after it had stopped; it was silent for {}.",
        mebibytes(total),
        mebibytes(sent),
        seconds(gap)
    );
    summary.time(
        "two local disks moved to another node",
        took,
        &format!("{} of data, verified", mebibytes(total)),
    );
    summary.time("  the VM was silent on its disks for", gap, "files in the images compared: all equal");
    Ok(())
}

/// `spec.startStrategy` of the Wukong, byte for byte.
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
