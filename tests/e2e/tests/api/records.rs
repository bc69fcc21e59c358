//! Records in the status of our objects: stored once, come back as they were, and never written over somebody else's.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use somersault_coordinator::cluster::ClusterError;
use somersault_coordinator_core::evacuation::{EvacuationRecord, PlanState, Planned};
use somersault_coordinator_core::fencing::{FenceRecord, FenceStage, ProofKind};
use somersault_coordinator_core::fleet::{Owner, SavedStart};
use somersault_coordinator_core::io::Record;
use somersault_coordinator_core::migration::{
    Check, Copied, DiskMove, Guest, MigrationRecord, OldVolume, Phase,
};
use somersault_coordinator_core::rebuild::{RebuildRecord, RebuildStage};

use crate::bed::{Bed, NODE};
use crate::claims::{new_volume, shop, template};

/// The epoch in which these steps lead.
pub const EPOCH: u64 = 7;
/// The migration of these steps.
pub const MOVE: &str = "move-web";
/// The evacuation of these steps.
pub const EMPTY: &str = "empty-n1";

pub fn fence(epoch: u64, stage: FenceStage) -> Record {
    Record::Fence(FenceRecord {
        node: NODE.into(),
        boot_id: Some("b1".into()),
        epoch,
        stage,
        agent_distrusted: false,
    })
}

pub fn migration(uid: &str, epoch: u64, phase: Phase) -> MigrationRecord {
    let disk = DiskMove {
        claim: shop("web-root"),
        claim_uid: "c-web-root".into(),
        template: template("local-path"),
        old: "pv-web".into(),
        source_node: "n2".into(),
        source_path: "/var/lib/volumes/pv-web".into(),
        reading: Some("smst-web-source".into()),
        new: new_volume("pv-new", "web-root"),
        target_node: "n3".into(),
        staging: None,
        old_volume: OldVolume::Kept,
        copied: Some(Copied {
            root_hash: "ab".into(),
            total_bytes: 3,
            sent_bytes: 2,
            elapsed_ms: 1,
            unreadable: Some("8 bytes".into()),
        }),
    };
    MigrationRecord {
        key: shop(MOVE),
        uid: uid.into(),
        downtime_ms: Some(4_301),
        epoch,
        phase,
        reason: Some("Cancelled".into()),
        message: "for people".into(),
        stopped: Some((
            Owner::Wukong { name: "wk1".into() },
            SavedStart::WukongStartStrategy(Some("{\"autoStart\":true}".into())),
        )),
        guest: Some(Guest {
            agent_connected: true,
            has_address: true,
            claims: BTreeSet::from(["web-root".to_owned()]),
        }),
        disks: vec![disk],
        checks: vec![Check { name: "Fits".into(), passed: true, message: "it does".into() }],
    }
}

pub fn evacuation(uid: &str, epoch: u64, complete: bool) -> EvacuationRecord {
    let planned = Planned {
        migration: shop("evac-web"),
        subject: shop("web"),
        is_vm: true,
        live: false,
        bytes: 7,
        state: PlanState::PreCopied,
        message: "waits for a word".into(),
    };
    EvacuationRecord {
        name: EMPTY.into(),
        uid: uid.into(),
        epoch,
        plan: vec![planned],
        complete,
        message: "one to go".into(),
    }
}

fn moved(uid: &str, phase: Phase) -> Record {
    Record::Migration(Box::new(migration(uid, EPOCH, phase)))
}

/// The uid of the migration that is there now.
pub async fn uid_of_the_move(bed: &Bed) -> Result<String> {
    let object = bed.get("VolumeMigration", MOVE).await?;
    object["metadata"]["uid"].as_str().map(str::to_owned).context("the migration has no uid")
}

pub async fn uid_of_the_evacuation(bed: &Bed) -> Result<String> {
    let object = bed.get("Evacuation", EMPTY).await?;
    object["metadata"]["uid"].as_str().map(str::to_owned).context("the evacuation has no uid")
}

async fn commit(bed: &Bed, record: &Record) -> Result<(), ClusterError> {
    bed.writer.commit(record, EPOCH, EPOCH).await
}

async fn ask(bed: &Bed) -> Result<()> {
    let destination = json!({ "storageClass": "nfs" });
    let version = "somersault.novasphere.dev/v1alpha1";
    bed.create(json!({
        "apiVersion": version, "kind": "VolumeMigration", "metadata": { "name": MOVE },
        "spec": { "vm": "web", "destination": destination },
    }))
    .await?;
    bed.create(json!({
        "apiVersion": version, "kind": "Evacuation", "metadata": { "name": EMPTY },
        "spec": { "node": NODE, "destination": destination },
    }))
    .await
    .map(drop)
}

pub async fn come_back_as_stored(bed: &Bed) -> Result<()> {
    ask(bed).await?;
    ensure!(bed.writer.records().await?.is_empty(), "records of nobody");
    for wrong in [EPOCH - 1, EPOCH + 1] {
        let refused = bed.writer.commit(&fence(wrong, FenceStage::Declared), wrong, EPOCH).await;
        ensure!(matches!(refused, Err(ClusterError::Conflict { .. })), "epoch {wrong}: {refused:?}");
    }
    ensure!(bed.get("NodeHealth", NODE).await?.is_null(), "a refused record has left an object");
    let stages = [
        FenceStage::Declared,
        FenceStage::PowerOrdered,
        FenceStage::Fenced { proof: ProofKind::PowerOffConfirmed },
        FenceStage::Quarantine { boot_id: "b2".into() },
        FenceStage::Closed,
    ];
    for stage in stages {
        let record = fence(EPOCH, stage);
        commit(bed, &record).await?;
        let once = bed.get("NodeHealth", NODE).await?["metadata"]["resourceVersion"].clone();
        commit(bed, &record).await?;
        let again = bed.get("NodeHealth", NODE).await?["metadata"]["resourceVersion"].clone();
        ensure!(once == again, "what is stored was written again");
        ensure!(bed.writer.records().await? == [record], "it came back otherwise");
    }
    let starts = [
        SavedStart::WukongStartStrategy(None),
        SavedStart::WukongStartStrategy(Some("null".into())),
        SavedStart::WukongStartStrategy(Some("{\"autoStart\":true}".into())),
    ];
    let uid = uid_of_the_move(bed).await?;
    for (start, phase) in starts.into_iter().zip([Phase::Stopping, Phase::Swapping, Phase::RolledBack]) {
        let owner = Owner::Wukong { name: "wk1".into() };
        let record =
            MigrationRecord { stopped: Some((owner, start)), reason: None, ..migration(&uid, EPOCH, phase) };
        let record = Record::Migration(Box::new(record));
        commit(bed, &record).await?;
        ensure!(bed.writer.records().await?.contains(&record), "{record:?} came back otherwise");
    }
    let plan = Record::Evacuation(evacuation(&uid_of_the_evacuation(bed).await?, EPOCH, false));
    commit(bed, &plan).await?;
    // A restarted coordinator finds the same.
    let found = bed.another_writer().records().await?;
    ensure!(found.len() == 3 && found.contains(&plan), "{found:?}");
    Ok(())
}

/// A conflict, for this reason.
fn conflict(result: Result<(), ClusterError>, reason: &str) -> Result<()> {
    match result {
        Err(ClusterError::Conflict { why, .. }) if why.contains(reason) => Ok(()),
        other => bail!("expected a conflict ({reason}), and it was {other:?}"),
    }
}

pub async fn are_not_overwritten(bed: &Bed) -> Result<()> {
    bed.writer.records().await?;
    let uid = &uid_of_the_move(bed).await?;
    // A person's word and a display of somebody's are no change of the record.
    commit(bed, &moved(uid, Phase::Checking)).await?;
    bed.patch("VolumeMigration", MOVE, json!({ "spec": { "preCopyOnly": true } })).await?;
    bed.patch_status(
        "VolumeMigration",
        MOVE,
        json!({ "progress": { "doneBytes": 1, "totalBytes": 2, "rateBytesPerSecond": 3 } }),
    )
    .await?;
    commit(bed, &moved(uid, Phase::Provisioning)).await?;
    let stored = bed.get("VolumeMigration", MOVE).await?;
    ensure!(stored["status"]["progress"]["doneBytes"] == 1, "the display was lost: {stored}");

    bed.patch_status("VolumeMigration", MOVE, json!({ "phase": "Succeeded" })).await?;
    conflict(commit(bed, &moved(uid, Phase::Swapping)).await, "changed by somebody else")?;
    ensure!(bed.get("VolumeMigration", MOVE).await?["status"]["phase"] == "Succeeded", "it was overwritten");
    // Read again, it may go on.
    bed.writer.records().await?;
    commit(bed, &moved(uid, Phase::Swapping)).await?;
    bed.patch_status("VolumeMigration", MOVE, json!({ "epoch": EPOCH + 5 })).await?;
    bed.writer.records().await?;
    conflict(commit(bed, &moved(uid, Phase::Starting)).await, "newer epoch")?;
    bed.patch_status("VolumeMigration", MOVE, json!({ "epoch": EPOCH })).await?;
    bed.writer.records().await?;

    // Removed, it stays until it was put back, and whoever leads next knows of it.
    bed.cluster.ask(&["delete", "volumemigration", "-n", "shop", MOVE, "--wait=false"])?;
    let held = bed.get("VolumeMigration", MOVE).await?;
    ensure!(held["metadata"]["deletionTimestamp"].is_string(), "deleted in the middle, it is gone: {held}");
    commit(bed, &moved(uid, Phase::RollingBack)).await?;
    let known = bed.another_writer().records().await?;
    ensure!(known.contains(&moved(uid, Phase::RollingBack)), "{known:?}");
    commit(bed, &moved(uid, Phase::Cancelled)).await?;
    ensure!(bed.get("VolumeMigration", MOVE).await?.is_null(), "over, it is still there");
    // Gone, it is not made again; made again by somebody, it starts without a record.
    let gone = commit(bed, &moved(uid, Phase::Starting)).await;
    ensure!(matches!(gone, Err(ClusterError::NotFound { .. })), "{gone:?}");
    bed.delete("Evacuation", EMPTY).await?;
    ask(bed).await?;
    conflict(commit(bed, &moved(uid, Phase::Starting)).await, "of its predecessor")?;
    let uid = &uid_of_the_move(bed).await?;
    commit(bed, &moved(uid, Phase::Checking)).await?;
    while_the_spec_is_edited(bed).await
}

/// Of a rebuild that has stopped its VM: removed, it stays until the VM has its start field back.
pub async fn of_a_rebuild(bed: &Bed) -> Result<()> {
    const VM: &str = "rebuilt";
    bed.writer.records().await?;
    let record = |stage| {
        Record::Rebuild(Box::new(RebuildRecord {
            vm: shop(VM),
            vm_uid: "vm-uid".into(),
            node: "n1".into(),
            epoch: EPOCH,
            proof: Some(ProofKind::HumanAttested),
            stage,
            stopped: Some((Owner::Itself, SavedStart::RunStrategy("Always".into()))),
            pods: Vec::new(),
            disks: Vec::new(),
        }))
    };
    for stage in [RebuildStage::Retaining, RebuildStage::Stopping] {
        commit(bed, &record(stage)).await?;
    }
    bed.cluster.ask(&["delete", "recovery", "-n", "shop", VM, "--wait=false"])?;
    let held = bed.get("Recovery", VM).await?;
    ensure!(held["metadata"]["deletionTimestamp"].is_string(), "deleted in the middle, it is gone: {held}");
    let known = bed.another_writer().records().await?;
    ensure!(known.contains(&record(RebuildStage::Stopping)), "{known:?}");
    commit(bed, &record(RebuildStage::Starting)).await?;
    ensure!(!bed.get("Recovery", VM).await?.is_null(), "gone before the start field was given back");
    commit(bed, &record(RebuildStage::Importing)).await?;
    ensure!(bed.get("Recovery", VM).await?.is_null(), "over, it is still there");
    Ok(())
}

/// A conflict that does not touch the record is none.
async fn while_the_spec_is_edited(bed: &Bed) -> Result<()> {
    const EDITS: u32 = 60;
    let uid = &uid_of_the_move(bed).await?;
    let edits = async {
        for number in 0..EDITS {
            let note = json!({ "metadata": { "annotations": { "example.org/number": number.to_string() } } });
            bed.patch("VolumeMigration", MOVE, note).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let commits = async {
        let phases = [Phase::Provisioning, Phase::PreCopying, Phase::Stopping, Phase::FinalCopying];
        for phase in phases.into_iter().cycle().take(20) {
            commit(bed, &moved(uid, phase)).await.with_context(|| format!("{phase:?}"))?;
        }
        Ok(())
    };
    tokio::try_join!(edits, commits)?;
    let stored = bed.get("VolumeMigration", MOVE).await?;
    let (phase, note) =
        (&stored["status"]["phase"], &stored["metadata"]["annotations"]["example.org/number"]);
    ensure!(phase == "FinalCopying" && *note == json!((EDITS - 1).to_string()), "{phase} {note}");
    Ok(())
}

/// Of two that know the same, one wins each time, and the other one is told.
pub async fn of_two_writers(bed: &Bed) -> Result<()> {
    let other = bed.another_writer();
    for round in 0..10 {
        bed.writer.records().await?;
        other.records().await?;
        let (ours, theirs) = if round % 2 == 0 {
            (FenceStage::Declared, FenceStage::PowerOrdered)
        } else {
            (FenceStage::Closed, FenceStage::Fenced { proof: ProofKind::HumanAttested })
        };
        let (ours, theirs) = (fence(EPOCH, ours), fence(EPOCH, theirs));
        let answers = tokio::join!(commit(bed, &ours), other.commit(&theirs, EPOCH, EPOCH));
        let winner = match answers {
            (Ok(()), refused @ Err(_)) => conflict(refused, "changed by somebody else").map(|()| ours)?,
            (refused @ Err(_), Ok(())) => conflict(refused, "changed by somebody else").map(|()| theirs)?,
            other => bail!("round {round}: {other:?}"),
        };
        let stored = bed.writer.records().await?;
        ensure!(stored.contains(&winner), "round {round}: {winner:?} won, and this is stored: {stored:?}");
    }
    // One of a newer epoch wins whatever the older one does.
    other.records().await?;
    bed.writer.records().await?;
    other.commit(&fence(EPOCH + 1, FenceStage::Declared), EPOCH + 1, EPOCH + 1).await?;
    conflict(commit(bed, &fence(EPOCH, FenceStage::Closed)).await, "newer epoch")?;
    bed.writer.records().await?;
    conflict(commit(bed, &fence(EPOCH, FenceStage::Closed)).await, "newer epoch")
}

/// To act as if they were not there may run a VM twice.
pub async fn that_make_no_sense(bed: &Bed) -> Result<()> {
    let good = bed.get("NodeHealth", NODE).await?["status"]["fence"].clone();
    bed.patch_status("NodeHealth", NODE, json!({ "fence": { "stage": "Fenced", "proof": null } })).await?;
    let error = bed.writer.records().await.err().context("a record without its proof was read")?.to_string();
    ensure!(error.contains("NodeHealth n1") && error.contains("status.fence.proof: missing"), "{error}");
    bed.patch_status("NodeHealth", NODE, json!({ "fence": null })).await?;
    ensure!(good.is_object(), "{good}");
    let rest: BTreeMap<String, Value> = BTreeMap::from([("fence".to_owned(), good)]);
    bed.patch_status("NodeHealth", NODE, json!(rest)).await?;
    bed.writer.records().await.map(drop).context("mended, it is read again")
}
