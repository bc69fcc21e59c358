//! What an uninstallation does, in which order, and what it leaves. Pure.
//!
//! ```text
//!   incident or migration under way? ── yes, and not forced ──► refused, with what to do first
//!        │ no, or forced
//!        ▼
//!   stop the coordinator ──► give back start fields, let migrations go ──► take our taints away ──► delete what is ours
//!                                                                                               ──► definitions
//! ```
//!
//! The coordinator stops first: it would set again what is taken away here. A VM whose claims are locked or just being
//! swapped stays stopped: it is said what each claim needs.

use std::collections::BTreeMap;

use kube::core::ObjectMeta;
use somersault_coordinator::cluster::manifest::records::{migration_record, rebuild_record};
use somersault_coordinator_core::fleet::FENCING_TAINT;
use somersault_coordinator_core::io::{Action, RecordKey};
use somersault_coordinator_core::migration::{DiskMove, MigrationRecord};
use somersault_coordinator_core::names::{Key, VolumeName};
use somersault_coordinator_core::policy::LEADER_LEASE_MAX;
use somersault_coordinator_core::rebuild::{RebuildRecord, RebuildStage};
use somersault_crd::node_health::{FenceStage, NodeState};
use somersault_crd::recovery::{self, RebuildStage as Stage};
use somersault_crd::{Recovery, VolumeMigration, volume_migration};

use super::owned::Owned;
use crate::commands::migrate::has_ended;
use crate::source::install;
use crate::world::World;

/// What is done and what is left.
#[derive(Debug, Default)]
pub struct Plan {
    /// What is under way: a reason not to begin, unless forced.
    pub under_way: Vec<String>,
    /// What is done, in this order.
    pub steps: Vec<Step>,
    /// What stays, and how to remove it.
    pub stays: Vec<String>,
}

/// One step. Each may be done twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// No coordinator may undo the rest.
    StopCoordinator,
    /// What the coordinator itself would do to a node or a VM.
    GiveBack(Action),
    /// Take the coordinator's finalizer off the object of a record, which nobody could delete otherwise.
    LetGo(RecordKey),
    /// Delete an object.
    Delete(Owned),
}

impl Step {
    /// What it does, in words.
    pub fn words(&self) -> String {
        match self {
            Self::StopCoordinator => "stop the coordinator (no replicas)".to_owned(),
            Self::GiveBack(Action::Untaint { node }) => format!("take our taint off node {node}"),
            Self::GiveBack(Action::InService { node }) => {
                format!("take our out-of-service taint off node {node}")
            }
            Self::GiveBack(Action::RestoreStart { vm, .. }) => {
                format!("give VM {vm} its start field back: it may start")
            }
            Self::GiveBack(action) => format!("{action:?}"),
            Self::LetGo(record) => format!("let {} be deleted", named(record)),
            Self::Delete(owned) => format!("delete {}", owned.words()),
        }
    }
}

/// The plan. `owned` and `definitions` are in the order in which they go; `coordinator` is whether there is one to
/// stop.
pub fn plan(world: &World, coordinator: bool, owned: Vec<Owned>, definitions: Option<Vec<Owned>>) -> Plan {
    let mut plan = Plan { under_way: under_way(world), ..Plan::default() };
    if coordinator {
        plan.steps.push(Step::StopCoordinator);
    }
    for (key, migration) in &world.migrations {
        give_back_start(key, migration, world, &mut plan);
        if is_held(&migration.metadata, volume_migration::FINALIZER) {
            plan.steps.push(Step::LetGo(RecordKey::Migration(key.clone())));
        }
    }
    for (vm, recovery) in &world.recoveries {
        give_back_rebuilt(vm, recovery, &mut plan);
        if is_held(&recovery.metadata, recovery::FINALIZER) {
            plan.steps.push(Step::LetGo(RecordKey::Rebuild(vm.clone())));
        }
    }
    for (name, node) in &world.fleet.nodes {
        if node.has_taint(FENCING_TAINT) {
            plan.steps.push(Step::GiveBack(Action::Untaint { node: name.clone() }));
        }
        if node.is_out_of_service_by_us() {
            plan.steps.push(Step::GiveBack(Action::InService { node: name.clone() }));
        }
    }
    // Records tell that there was a leader: where they stay and the Lease is gone, the next one waits for whoever may not
    // have noticed. The last coordinator has given it back when it stopped; nothing has to be written.
    let (leases, owned): (Vec<_>, Vec<_>) =
        owned.into_iter().partition(|owned| definitions.is_none() && owned.is_leaders_lease());
    plan.steps.extend(owned.into_iter().map(Step::Delete));
    match definitions {
        Some(definitions) => plan.steps.extend(definitions.into_iter().map(Step::Delete)),
        None => plan.stays.push(
            "the definitions, and with them every NodeHealth, Recovery, RecoveryPolicy, VolumeMigration and Evacuation: \
             kubectl somersault uninstall --delete-crds"
                .to_owned(),
        ),
    }
    plan.stays.extend(leases.iter().map(|lease| {
        format!(
            "{}: by it the coordinator of a later installation leads at once; without it, while the definitions are there, \
             it waits {} s for a leader that may not know yet",
            lease.words(),
            LEADER_LEASE_MAX.as_secs()
        )
    }));
    plan.stays.extend(old_volumes(world));
    plan.stays.push(format!(
        "the namespaces {0} and {0}-volumes with what you have put there (such as Secret {1}): kubectl delete namespace {0} \
         {0}-volumes",
        install::NAMESPACE,
        install::FENCE_SECRET
    ));
    plan
}

/// Incidents and moves that only the coordinator can bring to an end.
fn under_way(world: &World) -> Vec<String> {
    // Nothing is declared while too many nodes are silent at once: no fence tells of them yet.
    let held = world.healths.iter().filter_map(|(node, health)| {
        let held = health.status.as_ref()?.state == NodeState::StormHold;
        held.then(|| {
            format!("the incident of node {node} (StormHold): too many nodes are silent to declare it dead; kubectl somersault status")
        })
    });
    let incidents = world.healths.iter().filter_map(|(node, health)| {
        let fence = health.status.as_ref()?.fence.as_ref()?;
        let goes_on = match fence.stage {
            FenceStage::Declared | FenceStage::PowerOrdered => "its VMs wait for a proof that it is dead",
            FenceStage::Fenced => "its VMs are being recovered",
            FenceStage::Quarantine => "it is back, and is watched before it is trusted",
            FenceStage::Closed => return None,
        };
        // Not every incident needs our taint, and it is left to Kubernetes where it would do harm.
        let tainted = world.fleet.nodes.get(node).is_some_and(|node| node.has_taint(FENCING_TAINT));
        let taint = if tainted { ", and our taint keeps VMs from it, which would go too" } else { "" };
        Some(format!(
            "the incident of node {node} ({:?}): {goes_on}{taint}; kubectl somersault recoveries",
            fence.stage
        ))
    });
    let migrations = world.migrations.iter().filter_map(|(key, migration)| {
        let phase = migration.status.as_ref().map(|status| status.phase).unwrap_or_default();
        (!has_ended(phase)).then(|| {
            format!(
                "VolumeMigration {key} ({phase:?}): kubectl somersault cancel migration/{} -n {}, or wait",
                key.name, key.namespace
            )
        })
    });
    let evacuations = world.evacuations.iter().filter_map(|(name, evacuation)| {
        let complete = evacuation.status.as_ref().is_some_and(|status| status.complete);
        (!complete && !evacuation.spec.dry_run)
            .then(|| format!("Evacuation {name}: kubectl somersault cancel evacuation/{name}, or wait"))
    });
    let rebuilds = world.recoveries.iter().filter_map(|(vm, recovery)| {
        let stage = recovery.status.as_ref()?.rebuild.as_ref()?.stage;
        (!matches!(stage, Stage::Rebuilt | Stage::GivenBack))
            .then(|| format!("the rebuild of VM {vm} ({stage:?}): kubectl somersault recoveries, and wait"))
    });
    held.chain(incidents).chain(rebuilds).chain(migrations).chain(evacuations).collect()
}

/// A VM that a migration has stopped gets its start field back, where its disks are whole.
fn give_back_start(key: &Key, migration: &VolumeMigration, world: &World, plan: &mut Plan) {
    let record = match migration_record(
        key,
        migration.metadata.uid.as_deref().unwrap_or_default(),
        migration.status.as_ref(),
    ) {
        Ok(Some(record)) => record,
        Ok(None) => return,
        Err(error) => {
            plan.stays.push(format!(
                "VolumeMigration {key} cannot be read ({error}): see whether its VM is stopped"
            ));
            return;
        }
    };
    let Some(vm) = &migration.spec.vm else { return };
    if record.phase.is_before_stop() || record.phase.is_final() {
        return;
    }
    let MigrationRecord { phase, disks, stopped: Some((owner, start)), .. } = record else { return };
    let vm = Key::new(key.namespace.clone(), vm.clone());
    let on = |disk: &DiskMove| world.fleet.claims.get(&disk.claim).and_then(|claim| claim.volume.clone());
    let all_old = disks.iter().all(|disk| on(disk).as_ref() == Some(&disk.old));
    let all_new = disks.iter().all(|disk| on(disk).as_ref() == Some(&disk.new.name));
    // The new ones were verified before the first claim got its own.
    if all_old || all_new {
        plan.steps.push(Step::GiveBack(Action::RestoreStart { vm, owner, start }));
        return;
    }
    plan.stays.push(format!(
        "VM {vm} stays stopped: VolumeMigration {key} has its disks between two nodes ({phase:?}). Install Somersault again, \
         and it is brought to an end; or, by hand, {}, then give back its start field",
        disks.iter().map(by_hand).collect::<Vec<_>>().join(", ")
    ));
}

/// A VM that a rebuild has stopped gets its start field back, but while its claims are made anew: started then, it would boot
/// a disk that is being filled.
fn give_back_rebuilt(vm: &Key, recovery: &Recovery, plan: &mut Plan) {
    let Some(stored) = recovery.status.as_ref().and_then(|status| status.rebuild.as_ref()) else { return };
    match rebuild_record(vm, stored) {
        Ok(RebuildRecord { stage: RebuildStage::Replacing, stopped: Some(_), disks, .. }) => {
            let claims: Vec<&str> = disks.iter().map(|disk| disk.claim.as_str()).collect();
            plan.stays.push(format!(
                "VM {vm} stays stopped: its claims ({}) are being made anew from their images. Install Somersault again, and it is \
                 brought to an end; or start the VM yourself once each DataVolume has imported anew, and not before",
                claims.join(", ")
            ));
        }
        Ok(RebuildRecord { stage, stopped: Some((owner, start)), .. }) if stage.has_vm_stopped() => {
            plan.steps.push(Step::GiveBack(Action::RestoreStart { vm: vm.clone(), owner, start }));
        }
        Ok(_) => {}
        Err(error) => {
            plan.stays.push(format!("Recovery {vm} cannot be read ({error}): see whether its VM is stopped"));
        }
    }
}

fn is_held(object: &ObjectMeta, finalizer: &str) -> bool {
    object.finalizers.iter().flatten().any(|name| name == finalizer)
}

/// The object of a record, in words.
fn named(record: &RecordKey) -> String {
    match record {
        RecordKey::Migration(key) => format!("VolumeMigration {key}"),
        RecordKey::Rebuild(vm) => format!("Recovery {vm}"),
        RecordKey::Evacuation(name) => format!("Evacuation {name}"),
        RecordKey::Fence(node) => format!("NodeHealth {node}"),
    }
}

/// What binds a claim to its old volume again.
fn by_hand(disk: &DiskMove) -> String {
    format!(
        "delete claim {0}, set claimRef of volume {1} to its namespace and name (without uid), and create {0} again with \
         volumeName {1}",
        disk.claim, disk.old
    )
}

/// Volumes on Retain that no claim has any more, each with why it is there.
fn old_volumes(world: &World) -> Vec<String> {
    let migrated = world.migrations.iter().flat_map(|(key, migration)| {
        let disks = migration.status.iter().flat_map(|status| &status.disks);
        disks.flat_map(move |disk| {
            let claim = Key::new(disk.claim.namespace.clone(), disk.claim.name.clone());
            let moved = format!("kept when VolumeMigration {key} moved claim {claim} off it");
            let made = format!("made by VolumeMigration {key} for claim {claim}, which has another one");
            [(disk.old_volume.as_str(), claim.clone(), moved), (disk.new_volume.name.as_str(), claim, made)]
        })
    });
    let rebuilt = world.recoveries.iter().flat_map(|(vm, recovery)| {
        let rebuilds = recovery.status.iter().filter_map(|status| status.rebuild.as_ref());
        rebuilds.flat_map(|rebuild| &rebuild.disks).map(move |disk| {
            let claim = Key::new(vm.namespace.clone(), disk.claim.clone());
            let why = format!("kept when VM {vm} was rebuilt and its claim {claim} made anew");
            (disk.old_volume.as_str(), claim, why)
        })
    });
    let mut kept = BTreeMap::new();
    // What was kept longer ago than anything of ours tells.
    let noted = world.retained.iter().filter_map(|name| {
        let claim = world.fleet.volumes.get(name).filter(|volume| volume.retained)?.claim.as_ref()?;
        Some((
            name.as_str(),
            claim.key.clone(),
            format!("put on Retain when it was the one of claim {}", claim.key),
        ))
    });
    for (name, claim, why) in migrated.chain(rebuilt).chain(noted) {
        let Some(volume) = world.fleet.volumes.get(&VolumeName::from(name)) else { continue };
        let has = world.fleet.claims.get(&claim).and_then(|claim| claim.volume.as_ref());
        if has.is_none_or(|volume| volume.as_str() != name) {
            kept.entry(name).or_insert((volume.phase.as_str(), why));
        }
    }
    let line = |(name, (phase, why)): (&str, (&str, String))| {
        let phase = if phase.is_empty() { "phase unknown" } else { phase };
        format!(
            "volume {name} ({phase}), {why}: delete it by hand when you are sure that nobody needs its data"
        )
    };
    kept.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use somersault_coordinator::cluster::directory::Objects;
    use somersault_coordinator::cluster::directory::files;
    use somersault_coordinator::cluster::manifest::RETAINED_ANNOTATION;

    use super::*;

    fn world(objects: &[Value]) -> World {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        let contents = files::parse(&list.to_string(), true);
        let objects = Objects::from_files(vec![("test.json".into(), contents.into())]);
        let world = World::of(&objects, None).expect("it can be read");
        assert_eq!(world.problems, vec![]);
        world
    }

    fn node(name: &str, taints: &Value) -> Value {
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name }, "spec": { "taints": taints } })
    }

    fn migration(phase: &str) -> Value {
        json!({
            "apiVersion": somersault_crd::API_VERSION,
            "kind": "VolumeMigration",
            "metadata": { "name": "db-to-n2", "namespace": "shop" },
            "spec": { "vm": "db", "destination": { "node": "n2" } },
            "status": {
                "phase": phase,
                "epoch": 3,
                "stopped": {
                    "owner": { "kind": "VirtualMachine", "name": "" },
                    "start": { "running": true },
                },
            },
        })
    }

    fn words(plan: &Plan) -> Vec<String> {
        plan.steps.iter().map(Step::words).collect()
    }

    #[test]
    fn a_storm_is_an_incident_too() {
        let world = world(&[json!({
            "apiVersion": somersault_crd::API_VERSION,
            "kind": "NodeHealth",
            "metadata": { "name": "n1" },
            "spec": {},
            "status": { "state": "StormHold" },
        })]);
        let under_way = plan(&world, true, Vec::new(), None).under_way;
        assert!(matches!(under_way.as_slice(), [held] if held.contains("n1 (StormHold)")), "{under_way:?}");
    }

    #[test]
    fn our_taints_go_and_those_of_others_stay() {
        let world = world(&[
            node(
                "n1",
                &json!([
                    { "key": FENCING_TAINT, "effect": "NoSchedule" },
                    { "key": "node.kubernetes.io/out-of-service", "value": "somersault", "effect": "NoExecute" },
                ]),
            ),
            node(
                "n2",
                &json!([{ "key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute" }]),
            ),
        ]);
        let plan = plan(&world, true, Vec::new(), None);
        let wanted = [
            "stop the coordinator (no replicas)",
            "take our taint off node n1",
            "take our out-of-service taint off node n1",
        ];
        assert_eq!(words(&plan), wanted);
        assert!(plan.under_way.is_empty());
        assert!(plan.stays[0].contains("--delete-crds"), "{:?}", plan.stays);
    }

    #[test]
    fn a_vm_that_was_stopped_is_given_back_unless_its_disks_are_in_between() {
        for (phase, system, data, given_back) in [
            ("Stopping", "pv-system", "pv-data", true),
            ("Stopping", "pv-system", "new-data-lock", false),
            ("FinalCopying", "new-system-lock", "new-data-lock", false),
            ("Swapping", "new-system", "new-data-lock", false),
            ("Swapping", "new-system", "new-data", true),
            ("RollingBack", "new-system-lock", "pv-data", false),
            ("RollingBack", "pv-system", "pv-data", true),
            ("Starting", "new-system", "new-data", true),
        ] {
            let mut moved = migration(phase);
            moved["status"]["disks"] = json!([moved_disk("system"), moved_disk("data")]);
            let objects = [moved, claim("system", system), claim("data", data)];
            let plan = plan(&world(&objects), false, Vec::new(), None);
            let what = format!("{phase} {system} {data}: {plan:#?}");
            assert_eq!(words(&plan).len(), usize::from(given_back), "{what}");
            let stays = plan.stays.iter().find(|text| text.contains("shop/db stays stopped"));
            assert_eq!(stays.is_some(), !given_back, "{what}");
            assert!(stays.is_none_or(|text| text.contains("set claimRef of volume pv-data")), "{what}");
            assert_eq!(plan.under_way.len(), 1, "{what}");
        }
        let ended = plan(&world(&[migration("Succeeded")]), false, Vec::new(), None);
        assert!(ended.steps.is_empty() && ended.under_way.is_empty(), "{ended:?}");
        let mut held = migration("FinalCopying");
        held["metadata"]["finalizers"] = json!(["other.example/x", volume_migration::FINALIZER]);
        let released = plan(&world(&[held]), false, Vec::new(), None);
        assert_eq!(
            words(&released).last().map(String::as_str),
            Some("let VolumeMigration shop/db-to-n2 be deleted")
        );
    }

    #[test]
    fn the_leaders_lease_stays_as_long_as_records_tell_of_a_leader() {
        let owned = || vec![Owned::named("Deployment", "c"), Owned::named("Lease", install::COORDINATOR)];
        let lease = format!("Lease {}/{}", install::NAMESPACE, install::COORDINATOR);
        let kept = plan(&world(&[]), true, owned(), None);
        assert!(!words(&kept).iter().any(|step| step.contains("Lease")), "{:?}", words(&kept));
        assert!(kept.stays.iter().any(|stays| stays.starts_with(&lease)), "{:?}", kept.stays);
        let gone = plan(&world(&[]), true, owned(), Some(Vec::new()));
        assert!(words(&gone).contains(&format!("delete {lease}")), "{:?}", words(&gone));
        assert!(!gone.stays.iter().any(|stays| stays.contains("Lease")), "{:?}", gone.stays);
    }

    fn volume(name: &str, claim: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "1Gi" },
                "claimRef": { "namespace": "shop", "name": claim },
                "persistentVolumeReclaimPolicy": "Retain", "local": { "path": format!("/srv/{name}") },
            },
            "status": { "phase": "Released" },
        })
    }

    fn claim(name: &str, volume: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": { "namespace": "shop", "name": name, "uid": name },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } },
                "volumeName": volume,
            },
            "status": { "phase": "Bound" },
        })
    }

    fn moved_disk(name: &str) -> Value {
        json!({
            "claim": { "namespace": "shop", "name": name }, "claimUID": "u",
            "template": { "class": "c", "requestedBytes": 1 },
            "oldVolume": format!("pv-{name}"), "sourceNode": "n1", "sourcePath": format!("/srv/pv-{name}"),
            "targetNode": "n2",
            "newVolume": {
                "name": format!("new-{name}"), "class": "c", "path": format!("/srv/new-{name}"), "capacityBytes": 1,
                "claim": { "namespace": "shop", "name": format!("new-{name}") },
            },
        })
    }

    #[test]
    fn volumes_that_moves_and_rebuilds_have_left_are_named_with_their_reason() {
        let mut moved = migration("Succeeded");
        moved["status"]["disks"] = json!([{
            "claim": { "namespace": "shop", "name": "data" }, "claimUID": "u", "template": {"class": "c", "requestedBytes": 1},
            "oldVolume": "pv-old", "sourceNode": "n1", "sourcePath": "/srv/pv-old", "targetNode": "n2",
            "newVolume": {
                "name": "pv-new", "class": "c", "path": "/srv/pv-new", "capacityBytes": 1,
                "claim": { "namespace": "shop", "name": "data" },
            },
        }]);
        let rebuilt = |old: &str, claim: &str| {
            json!({
                "apiVersion": somersault_crd::API_VERSION, "kind": "Recovery",
                "metadata": { "name": "web", "namespace": "shop" },
                "spec": { "vm": "web" },
                "status": { "rebuild": {
                    "vmUID": "u", "node": "n1", "epoch": 3, "stage": "Rebuilt",
                    "disks": [{
                        "disk": "root", "claim": claim, "claimUID": "u", "dataVolume": claim, "oldVolume": old, "class": "c",
                    }],
                } },
            })
        };
        let objects = [
            moved,
            rebuilt("pv-image", "root"),
            volume("pv-old", "data"),
            volume("pv-new", "data"),
            volume("pv-image", "root"),
            volume("pv-image-2", "root"),
            claim("data", "pv-new"),
            claim("root", "pv-image-2"),
        ];
        let kept = old_volumes(&world(&objects));
        assert_eq!(kept.len(), 2, "{kept:#?}");
        let of_rebuild = "volume pv-image (Released), kept when VM shop/web was rebuilt and its claim shop/root made anew: ";
        assert!(kept[0].starts_with(of_rebuild), "{kept:#?}");
        let of_move = "volume pv-old (Released), kept when VolumeMigration shop/db-to-n2 moved claim shop/data off it: ";
        assert!(kept[1].starts_with(of_move), "{kept:#?}");
        assert!(plan(&world(&objects), true, Vec::new(), None).stays.contains(&kept[0]));
        // The Recovery was of an incident that is over, and went with it.
        let mut noted = volume("pv-image", "root");
        noted["metadata"]["annotations"] = json!({ RETAINED_ANNOTATION: "Delete" });
        let kept = old_volumes(&world(&[noted, volume("pv-image-2", "root"), claim("root", "pv-image-2")]));
        assert_eq!(kept.len(), 1, "{kept:#?}");
        assert!(kept[0].starts_with(
            "volume pv-image (Released), put on Retain when it was the one of claim shop/root: "
        ));
        let given_back = [rebuilt("pv-image", "root"), volume("pv-image", "root"), claim("root", "pv-image")];
        assert_eq!(old_volumes(&world(&given_back)), [""; 0], "it is in use");
    }

    #[test]
    fn a_vm_that_a_rebuild_has_stopped_is_started_and_its_recovery_let_go() {
        let rebuild = |stage: &str| {
            world(&[json!({
                "apiVersion": somersault_crd::API_VERSION, "kind": "Recovery",
                "metadata": { "name": "web", "namespace": "shop", "finalizers": [recovery::FINALIZER] },
                "spec": { "vm": "web" },
                "status": { "rebuild": {
                    "vmUID": "u", "node": "n1", "epoch": 3, "stage": stage,
                    "stopped": { "owner": { "kind": "VirtualMachine", "name": "web" }, "start": { "runStrategy": "Always" } },
                } },
            })])
        };
        for (stage, begins, starts) in [
            ("Stopping", false, true),
            ("Replacing", false, false),
            ("Importing", false, false),
            ("Rebuilt", true, false),
        ] {
            let plan = plan(&rebuild(stage), true, Vec::new(), None);
            assert_eq!(plan.under_way.is_empty(), begins, "{stage}: {:?}", plan.under_way);
            let words = words(&plan);
            assert_eq!(
                words.iter().any(|step| step.starts_with("give VM shop/web its start field back")),
                starts,
                "{stage}: {words:?}"
            );
            assert_eq!(
                plan.stays.iter().any(|stays| stays.contains("web stays stopped")),
                stage == "Replacing"
            );
            assert!(words.contains(&"let Recovery shop/web be deleted".to_owned()), "{stage}: {words:?}");
        }
    }

    #[test]
    fn an_incident_is_a_reason_not_to_begin() {
        let health = |stage: &str| {
            json!({
                "apiVersion": somersault_crd::API_VERSION,
                "kind": "NodeHealth",
                "metadata": { "name": "n1" },
                "spec": {},
                "status": { "state": "AwaitingProof", "fence": { "epoch": 1, "stage": stage } },
            })
        };
        let blocked = |stage| plan(&world(&[health(stage)]), true, Vec::new(), None).under_way;
        assert!(blocked("Declared")[0].contains("incident of node n1 (Declared)"));
        assert!(blocked("Quarantine")[0].contains("node n1"));
        assert!(blocked("Closed").is_empty());
        let told = |taints: Value| {
            plan(&world(&[health("Fenced"), node("n1", &taints)]), true, Vec::new(), None).under_way
        };
        assert!(!told(json!([]))[0].contains("taint"), "there is none: {:?}", told(json!([])));
        let tainted = told(json!([{ "key": FENCING_TAINT, "effect": "NoSchedule" }]));
        assert!(tainted[0].contains("our taint"), "{tainted:?}");
    }
}
