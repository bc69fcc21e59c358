//! Live migrations (pkg/virt-controller/watch/migration/migration.go), as far as they matter to somebody who must
//! not act during one: they begin, they are in flight for as long as a test says, they fail. None succeeds: there
//! is no guest whose memory could be handed over.
//!
//! ```text
//!   Pending ──target launcher made──► Scheduling ──its process there──► Running ──no longer held, or deleted──► Failed
//!                                                                          └──VMI gone or ended──────────────────┘
//! ```

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::change::Change;
use crate::condition;
use crate::launcher;
use crate::names::{HOLD, MIGRATION_LABEL};
use crate::objects::{
    Kind, Objects, add_finalizer, annotation, is_deleting, label, name, namespace, phase, remove_finalizer,
    uid,
};
use crate::vmi::is_final;

/// api/core/v1/types.go, `VirtualMachineInstanceMigrationFinalizer`: a deletion aborts the migration first.
const FINALIZER: &str = "kubevirt.io/migrationJobFinalize";

pub(crate) fn reconcile(objects: &Objects, now: Timestamp) -> Vec<Change> {
    let migrations = objects.all(Kind::VirtualMachineInstanceMigration);
    migrations.flat_map(|migration| one(objects, migration, now)).collect()
}

fn one(objects: &Objects, migration: &Value, now: Timestamp) -> Vec<Change> {
    let is_over = matches!(phase(migration), "Failed" | "Succeeded");
    let mut next = migration.clone();
    if is_deleting(migration) && is_over {
        remove_finalizer(&mut next, FINALIZER);
    } else if !is_deleting(migration) {
        add_finalizer(&mut next, FINALIZER);
    }
    if next != *migration {
        return vec![Change::Update(next)];
    }
    let vmi_name = migration["spec"]["vmiName"].as_str().unwrap_or_default();
    let vmi = objects.get(Kind::VirtualMachineInstance, namespace(migration), vmi_name);
    let launchers = vmi.map(|vmi| launcher::all(objects, vmi)).unwrap_or_default();
    let target = launchers.iter().find(|pod| label(pod, MIGRATION_LABEL) == Some(uid(migration)));
    let mut changes = Vec::new();
    if is_over {
        changes.extend(target.filter(|pod| !is_deleting(pod)).map(|pod| Change::delete(pod)));
        changes.extend(vmi.and_then(|vmi| end_in_vmi(vmi, migration, now)));
        return changes;
    }
    let runs = vmi.filter(|vmi| phase(vmi) == "Running" && !is_deleting(vmi));
    let to = match (phase(migration), runs, target) {
        (_, None, _) if vmi.is_none_or(is_final) => "Failed",
        _ if is_deleting(migration) => "Failed",
        ("", ..) => "Pending",
        ("Pending", Some(vmi), None) => {
            changes.push(Change::Create(launcher::migration_target(objects, vmi, migration)));
            "Pending"
        }
        ("Pending", Some(_), Some(_)) => "Scheduling",
        ("Scheduling", Some(vmi), Some(pod)) if launcher::is_up(pod) => {
            changes.extend(begin_in_vmi(vmi, migration, pod, now));
            "Running"
        }
        ("Running", ..) if annotation(migration, HOLD) != Some("true") => "Failed",
        ("Running", _, None) => "Failed",
        (unchanged, ..) => unchanged,
    };
    let mut next = migration.clone();
    next["status"]["phase"] = json!(to);
    if let Some(state) = vmi.map(|vmi| &vmi["status"]["migrationState"])
        && state["migrationUid"] == *uid(migration)
    {
        next["status"]["migrationState"] = state.clone();
    }
    if next != *migration {
        changes.push(Change::UpdateStatus(next));
    }
    changes
}

fn begin_in_vmi(vmi: &Value, migration: &Value, target: &Value, now: Timestamp) -> Option<Change> {
    if vmi["status"]["migrationState"]["migrationUid"] == *uid(migration) {
        return None;
    }
    let mut next = vmi.clone();
    next["status"]["migrationState"] = json!({
        "migrationUid": uid(migration),
        "sourceNode": vmi["status"]["nodeName"],
        "targetNode": target["spec"]["nodeName"],
        "targetPod": name(target),
        "startTimestamp": condition::time(now),
    });
    Some(Change::Update(next))
}

fn end_in_vmi(vmi: &Value, migration: &Value, now: Timestamp) -> Option<Change> {
    let state = &vmi["status"]["migrationState"];
    if state["migrationUid"] != *uid(migration) || state["completed"] == true {
        return None;
    }
    let mut next = vmi.clone();
    next["status"]["migrationState"]["completed"] = json!(true);
    next["status"]["migrationState"]["failed"] = json!(true);
    next["status"]["migrationState"]["endTimestamp"] = json!(condition::time(now));
    Some(Change::Update(next))
}
