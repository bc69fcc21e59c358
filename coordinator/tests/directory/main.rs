//! The directory cluster from outside: snapshots, leadership and records; what it shows is in `shown`.

mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use somersault_coordinator::cluster::directory::{Directory, Store};
use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_coordinator::cluster::{Cluster, ClusterError, Snapshot};
use somersault_coordinator_core::evacuation::{EvacuationRecord, PlanState, Planned};
use somersault_coordinator_core::fencing::{FenceRecord, FenceStage, ProofKind};
use somersault_coordinator_core::fleet::{Owner, SavedStart, VolumeMode};
use somersault_coordinator_core::io::{Action, ClaimTemplate, NewVolume, Record};
use somersault_coordinator_core::migration::{
    Check, Copied, DiskMove, Guest, MigrationRecord, OldVolume, Phase,
};
use somersault_coordinator_core::names::Key;
use somersault_coordinator_core::rebuild::{DeadPod, RebuildRecord, RebuildStage, RebuiltDisk};
use somersault_coordinator_core::view::NodeState;
use tempfile::TempDir;

use self::shown::view_of;

/// Far more than the folder's slow look needs; reached only when a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    folder: TempDir,
    directory: Directory,
}

impl World {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cluster"), folder.path());
        let directory = Directory::open(folder.path()).unwrap();
        Self { folder, directory }
    }

    async fn leading() -> (Self, u64) {
        let world = Self::new();
        let leadership = world.directory.lead("one").await.unwrap();
        (world, leadership.epoch)
    }

    fn get(&self, id: &ObjectId) -> Value {
        self.directory.store().get(id).unwrap().unwrap_or(Value::Null)
    }

    /// Waits until the cluster looks like this.
    async fn until(&self, what: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut snapshots = self.directory.snapshots();
        let found = tokio::time::timeout(PATIENCE, snapshots.wait_for(|snapshot| what(snapshot))).await;
        Arc::clone(&found.expect("the change was not seen").unwrap())
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn shop(name: &str) -> Key {
    Key::new("shop", name)
}

fn node_health(name: &str) -> ObjectId {
    ObjectId::cluster("NodeHealth", name)
}

fn migration_id() -> ObjectId {
    ObjectId::namespaced("VolumeMigration", &shop("move-web"))
}

fn fence(epoch: u64, stage: FenceStage) -> Record {
    let (node, boot_id) = ("n1".into(), Some("b1".into()));
    Record::Fence(FenceRecord { node, boot_id, epoch, stage, agent_distrusted: true })
}

fn migration(epoch: u64, phase: Phase) -> MigrationRecord {
    let template = ClaimTemplate {
        class: "local-path".into(),
        requested_bytes: 10 << 30,
        access_modes: vec!["ReadWriteOnce".into()],
        mode: VolumeMode::Block,
        labels: BTreeMap::from([("app".into(), "web".into())]),
        annotations: BTreeMap::from([("a".into(), "b".into())]),
    };
    let new = NewVolume {
        name: "pv-new".into(),
        class: "local-path".into(),
        node: Some("n3".into()),
        path: "/srv/pv-new".into(),
        capacity_bytes: 10 << 30,
        access_modes: vec!["ReadWriteOnce".into()],
        mode: VolumeMode::Filesystem,
        claim: shop("web-root"),
    };
    MigrationRecord {
        key: shop("move-web"),
        uid: "".into(),
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
        disks: vec![DiskMove {
            claim: shop("web-root"),
            claim_uid: "c-web-root".into(),
            template,
            old: "pv-web".into(),
            source_node: "n2".into(),
            source_path: "/var/lib/volumes/pv-web".into(),
            reading: Some("smst-web-source".into()),
            new,
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
        }],
        checks: vec![Check { name: "Fits".into(), passed: true, message: "it does".into() }],
    }
}

fn rebuild(epoch: u64, stage: RebuildStage) -> RebuildRecord {
    RebuildRecord {
        vm: shop("web"),
        vm_uid: "v-web".into(),
        node: "n2".into(),
        epoch,
        proof: Some(ProofKind::PowerOffConfirmed),
        stage,
        stopped: Some((Owner::Itself, SavedStart::RunStrategy("Always".into()))),
        pods: vec![DeadPod { name: "virt-launcher-web-abcde".into(), uid: "p-web".into() }],
        disks: vec![RebuiltDisk {
            disk: "root".into(),
            claim: "web-root".into(),
            claim_uid: "c-web-root".into(),
            data_volume: "web-root".into(),
            old_volume: "pv-web".into(),
            class: "local-path".into(),
        }],
    }
}

fn evacuation(epoch: u64) -> Record {
    let planned = Planned {
        migration: shop("evac-web"),
        subject: shop("web"),
        is_vm: true,
        live: false,
        bytes: 7,
        state: PlanState::PreCopied,
        message: "waits for a word".into(),
    };
    let message = "one to go".into();
    Record::Evacuation(EvacuationRecord {
        name: "empty-n2".into(),
        uid: "".into(),
        epoch,
        plan: vec![planned],
        complete: false,
        message,
    })
}

#[tokio::test]
async fn a_change_by_anybody_is_seen() {
    let world = World::new();
    assert!(world.directory.snapshots().borrow().fleet.nodes[&"n1".into()].taints.is_empty());
    let stranger = Store::open(world.folder.path()).unwrap();
    stranger
        .patch(&ObjectId::cluster("Node", "n1"), |node| {
            node["spec"]["unschedulable"] = json!(true);
            Ok(())
        })
        .unwrap();
    world.until(|snapshot| snapshot.fleet.nodes[&"n1".into()].unschedulable).await;
    // An editor that writes in place, in a folder that is new.
    fs::create_dir_all(world.folder.path().join("later/deep")).unwrap();
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n4}\n";
    fs::write(world.folder.path().join("later/deep/n4.yaml"), node).unwrap();
    world.until(|snapshot| snapshot.fleet.nodes.contains_key(&"n4".into())).await;
    fs::write(world.folder.path().join("later/deep/n4.yaml"), "kind: [").unwrap();
    let broken = world.until(|snapshot| !snapshot.fleet.nodes.contains_key(&"n4".into())).await;
    assert_eq!(broken.problems[0].file, "later/deep/n4.yaml");
    fs::remove_dir_all(world.folder.path().join("later")).unwrap();
    world.until(|snapshot| snapshot.problems.is_empty()).await;
}

#[tokio::test]
async fn a_folder_that_goes_away_leaves_the_last_picture_and_says_so() {
    let (world, _) = World::leading().await;
    let gone = world.folder.path().with_extension("moved");
    fs::rename(world.folder.path(), &gone).unwrap();
    let snapshot = world.until(|snapshot| !snapshot.problems.is_empty()).await;
    assert_eq!(snapshot.fleet.nodes.len(), 3);
    assert!(snapshot.problems[0].message.contains("what was read last is shown"));
    let act = world.directory.act(&Action::Taint { node: "n1".into() }).await;
    assert!(act.is_err());
    fs::remove_dir_all(gone).unwrap();
}

#[tokio::test]
async fn actions_are_seen_in_the_next_snapshot() {
    let (world, _) = World::leading().await;
    world.directory.act(&Action::Taint { node: "n1".into() }).await.unwrap();
    world.until(|snapshot| !snapshot.fleet.nodes[&"n1".into()].taints.is_empty()).await;
    world.directory.act(&Action::Untaint { node: "n1".into() }).await.unwrap();
    world.until(|snapshot| snapshot.fleet.nodes[&"n1".into()].taints.is_empty()).await;
}

#[tokio::test]
async fn one_leads_and_each_epoch_is_larger() {
    let (world, first) = World::leading().await;
    let second = Directory::open(world.folder.path()).unwrap();
    let mut waiting = Box::pin(second.lead("two"));
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut waiting).await.is_err());
    let taint = Action::Taint { node: "n1".into() };
    drop(world.directory);
    let leadership = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert!(leadership.epoch > first);
    assert!(!*leadership.lost.borrow());
    second.act(&taint).await.unwrap();
}

#[tokio::test]
async fn only_the_leader_changes_anything() {
    let world = World::new();
    let act = world.directory.act(&Action::Taint { node: "n1".into() }).await;
    assert!(matches!(act, Err(ClusterError::Refused { .. })));
    let commit = world.directory.commit(&fence(1, FenceStage::Declared), 1).await;
    assert!(matches!(commit, Err(ClusterError::Refused { .. })));
    world.directory.publish(&view_of(NodeState::Healthy)).await.unwrap();
    assert!(world.get(&node_health("n1")).is_null(), "a follower showed its view");
}

#[tokio::test]
async fn leadership_is_lost_when_the_lock_is_replaced() {
    let (world, epoch) = World::leading().await;
    let mut lost = world.directory.lead("again").await.unwrap();
    assert!(lost.epoch > epoch);
    fs::remove_file(world.folder.path().join(".leader")).unwrap();
    let usurper = Directory::open(world.folder.path()).unwrap();
    let next = usurper.lead("two").await.unwrap();
    tokio::time::timeout(PATIENCE, lost.lost.wait_for(|lost| *lost)).await.unwrap().unwrap();
    let act = world.directory.act(&Action::Taint { node: "n1".into() }).await;
    assert!(matches!(act, Err(ClusterError::Refused { .. })));
    let commit = world.directory.commit(&fence(lost.epoch, FenceStage::Declared), lost.epoch).await;
    assert!(commit.is_err());
    usurper.commit(&fence(next.epoch, FenceStage::Declared), next.epoch).await.unwrap();
}

#[tokio::test]
async fn epochs_grow_even_without_their_counter() {
    let (world, epoch) = World::leading().await;
    world.directory.commit(&fence(epoch, FenceStage::Declared), epoch).await.unwrap();
    fs::remove_file(world.folder.path().join(".epoch")).unwrap();
    assert_eq!(world.directory.lead("again").await.unwrap().epoch, epoch + 1);
    fs::write(world.folder.path().join(".epoch"), "many").unwrap();
    let error = world.directory.lead("again").await.unwrap_err();
    assert!(error.to_string().contains("must hold one number"), "{error}");
}

#[tokio::test]
async fn records_come_back_as_they_were_stored() {
    let (world, epoch) = World::leading().await;
    let stages = [
        FenceStage::Declared,
        FenceStage::PowerOrdered,
        FenceStage::Fenced { proof: ProofKind::PowerOffConfirmed },
        FenceStage::Quarantine { boot_id: "b2".into() },
        FenceStage::Closed,
    ];
    for stage in stages {
        let record = fence(epoch, stage);
        world.directory.commit(&record, epoch).await.unwrap();
        world.directory.commit(&record, epoch).await.unwrap();
        assert_eq!(world.directory.records().await.unwrap(), vec![record]);
    }
    let records = [
        fence(epoch, FenceStage::Closed),
        Record::Migration(Box::new(migration(epoch, Phase::Swapping))),
        evacuation(epoch),
        Record::Rebuild(Box::new(rebuild(epoch, RebuildStage::Stopping))),
    ];
    for record in &records {
        world.directory.commit(record, epoch).await.unwrap();
    }
    let stored = world.directory.records().await.unwrap();
    assert_eq!(stored.len(), records.len());
    assert!(records.iter().all(|record| stored.contains(record)));
    // A restarted coordinator finds the same.
    let restarted = Directory::open(world.folder.path()).unwrap();
    assert_eq!(restarted.records().await.unwrap().len(), records.len());
}

#[tokio::test]
async fn a_rebuild_is_stored_beside_what_is_shown_of_the_vm() {
    let (world, epoch) = World::leading().await;
    let stages = [
        RebuildStage::Retaining,
        RebuildStage::Stopping,
        RebuildStage::Replacing,
        RebuildStage::Starting,
        RebuildStage::Importing,
        RebuildStage::Rebuilt,
        RebuildStage::GivingBack,
        RebuildStage::GivenBack,
    ];
    for stage in stages {
        let record = Record::Rebuild(Box::new(rebuild(epoch, stage)));
        world.directory.commit(&record, epoch).await.unwrap();
        assert_eq!(world.directory.records().await.unwrap(), vec![record]);
    }
    let id = ObjectId::namespaced("Recovery", &shop("web"));
    let shown = world.get(&id);
    assert_eq!(
        (&shown["spec"]["vm"], &shown["status"]["rebuild"]["stage"]),
        (&json!("web"), &json!("GivenBack"))
    );
    assert_eq!(shown["status"]["rebuild"]["disks"][0]["oldVolume"], "pv-web");
}

#[tokio::test]
async fn every_saved_start_and_phase_survives() {
    let (world, epoch) = World::leading().await;
    let starts = [
        (Owner::Itself, SavedStart::Running(true)),
        (Owner::Itself, SavedStart::RunStrategy("RerunOnFailure".into())),
        (Owner::Wukong { name: "w".into() }, SavedStart::WukongStartStrategy(None)),
        (Owner::Wukong { name: "w".into() }, SavedStart::WukongStartStrategy(Some("null".into()))),
    ];
    let phases = [
        Phase::Pending,
        Phase::Checking,
        Phase::Provisioning,
        Phase::PreCopying,
        Phase::Stopping,
        Phase::FinalCopying,
        Phase::Verifying,
        Phase::Swapping,
        Phase::Starting,
        Phase::Confirming,
        Phase::Succeeded,
        Phase::Failed,
        Phase::RollingBack,
        Phase::RolledBack,
        Phase::Cancelled,
    ];
    let all = phases.into_iter().zip(starts.into_iter().cycle());
    for (phase, stopped) in all {
        let record = MigrationRecord { stopped: Some(stopped), reason: None, ..migration(epoch, phase) };
        let record = Record::Migration(Box::new(record));
        world.directory.commit(&record, epoch).await.unwrap();
        assert_eq!(world.directory.records().await.unwrap(), vec![record]);
    }
}

#[tokio::test]
async fn a_record_that_somebody_changed_is_not_overwritten() {
    let (world, epoch) = World::leading().await;
    let commit = |phase| {
        let record = Record::Migration(Box::new(migration(epoch, phase)));
        let directory = &world.directory;
        async move { directory.commit(&record, epoch).await }
    };
    commit(Phase::Checking).await.unwrap();
    // A person's spec and our own display are no change of the record.
    let patch = |field: &'static [&'static str], value: Value| {
        let patched = world.directory.store().patch(&migration_id(), |object| {
            *field.iter().fold(object, |at, part| &mut at[*part]) = value;
            Ok(())
        });
        patched.unwrap();
    };
    patch(&["spec", "cancelled"], json!(true));
    patch(&["status", "progress"], json!({ "doneBytes": 1, "totalBytes": 2, "rateBytesPerSecond": 3 }));
    commit(Phase::Provisioning).await.unwrap();
    assert_eq!(world.get(&migration_id())["status"]["progress"]["doneBytes"], 1);
    patch(&["status", "phase"], json!("Succeeded"));
    assert!(matches!(commit(Phase::Swapping).await, Err(ClusterError::Conflict { .. })));
    assert_eq!(world.get(&migration_id())["status"]["phase"], "Succeeded");
    // Read again, it may go on.
    world.directory.records().await.unwrap();
    commit(Phase::Swapping).await.unwrap();
    patch(&["status", "epoch"], json!(epoch + 5));
    world.directory.records().await.unwrap();
    let Err(ClusterError::Conflict { why, .. }) = commit(Phase::Starting).await else { panic!("overwrote") };
    assert!(why.contains("newer epoch"), "{why}");
}

#[tokio::test]
async fn a_migration_made_again_under_its_name_starts_without_a_record() {
    let (world, epoch) = World::leading().await;
    let record = Record::Migration(Box::new(migration(epoch, Phase::Failed)));
    let store = world.directory.store();
    world.directory.commit(&record, epoch).await.unwrap();
    let old = world.get(&migration_id());
    store.delete(&migration_id(), None).unwrap();
    assert!(matches!(world.directory.commit(&record, epoch).await, Err(ClusterError::NotFound { .. })));
    let mut again = old.clone();
    again["status"] = Value::Null;
    let made = store.create(again).unwrap();
    let refused = world.directory.commit(&record, epoch).await;
    let Err(ClusterError::Conflict { why, .. }) = refused else { panic!("{refused:?}") };
    assert!(why.contains("of its predecessor"), "{why}");
    let uid = made["metadata"]["uid"].as_str().unwrap().into();
    let record = MigrationRecord { uid, ..migration(epoch, Phase::Checking) };
    world.directory.commit(&Record::Migration(Box::new(record)), epoch).await.unwrap();
}

#[tokio::test]
async fn a_record_of_another_epoch_than_ours_is_refused() {
    let (world, epoch) = World::leading().await;
    for wrong in [epoch - 1, epoch + 1] {
        let commit = world.directory.commit(&fence(wrong, FenceStage::Declared), wrong).await;
        assert!(matches!(commit, Err(ClusterError::Conflict { .. })), "{wrong}");
    }
    assert!(world.get(&node_health("n1")).is_null());
}

#[tokio::test]
async fn a_record_that_makes_no_sense_stops_the_leader() {
    let (world, epoch) = World::leading().await;
    world.directory.commit(&fence(epoch, FenceStage::Declared), epoch).await.unwrap();
    let break_it = world.directory.store().patch(&node_health("n1"), |object| {
        object["status"]["fence"]["stage"] = json!("Fenced");
        Ok(())
    });
    break_it.unwrap();
    let error = world.directory.records().await.unwrap_err().to_string();
    assert!(error.contains("NodeHealth n1") && error.contains("status.fence.proof: missing"), "{error}");
    assert!(world.directory.lead("again").await.is_err());
}
