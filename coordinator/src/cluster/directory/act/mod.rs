//! The coordinator's actions, done to the folder as an API server and its controllers would do them.
//!
//! Each action looks first: when what it wants is so already, nothing is written; when its precondition does not
//! hold, it is refused with the reason. All of an action happens under one lock, in an order that leaves a state
//! from which the same action, repeated, goes on.

mod claims;
mod start;
#[cfg(test)]
mod tests;
mod volumes;

use serde_json::{Value, json};
use somersault_coordinator_core::evacuation::EvacuationSpec;
use somersault_coordinator_core::fleet::FENCING_TAINT;
use somersault_coordinator_core::io::Action;
use somersault_coordinator_core::migration::MigrationSpec;
use somersault_coordinator_core::names::{Key, NodeName, Uid};
use somersault_crd as crd;

use super::store::{Transaction, conflict, refused};
use super::write::now_seconds;
use crate::cluster::ClusterError;
use crate::cluster::manifest::{self, ObjectId};

/// Label on the objects that we create.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Its value.
const MANAGER: &str = "somersault";
/// Effect of our taint: nothing new is placed there, nothing that runs is evicted.
const TAINT_EFFECT: &str = "NoSchedule";

/// Performs an action.
pub(super) fn perform(tx: &Transaction<'_>, action: &Action) -> Result<(), ClusterError> {
    match action {
        Action::Taint { node } => taint(tx, node),
        Action::Untaint { node } => untaint(tx, node),
        Action::DeletePod { pod, uid, proof } => delete_pod(tx, pod, uid, proof.node()),
        Action::CreateMigration { key, spec } => create_migration(tx, key, spec),
        Action::CancelMigration { key } => cancel_migration(tx, key),
        Action::CreateEvacuation { name, spec } => create_evacuation(tx, name, spec),
        Action::RetainVolume { volume } => volumes::retain(tx, volume),
        Action::CreateVolume(new) => volumes::create(tx, new),
        Action::ForgetVolume { volume } => volumes::forget(tx, volume),
        Action::PrebindVolume { volume, claim } => volumes::prebind(tx, volume, claim),
        Action::DeleteClaim { claim, uid } => claims::delete(tx, claim, uid),
        Action::CreateClaim { claim, template, volume } => claims::create(tx, claim, template, volume),
        Action::StopVm { vm, owner } => start::stop(tx, vm, owner),
        Action::RestoreStart { vm, owner, start } => start::restore(tx, vm, owner, start),
    }
}

fn taint(tx: &Transaction<'_>, node: &NodeName) -> Result<(), ClusterError> {
    let id = ObjectId::cluster("Node", node.as_str());
    tx.patch(&id, |object| {
        let taints = &mut object["spec"]["taints"];
        if taints.is_null() {
            *taints = json!([]);
        }
        let list =
            taints.as_array_mut().ok_or_else(|| refused(&id.to_string(), "spec.taints: not a list"))?;
        if !list.iter().any(is_ours) {
            list.push(json!({ "key": FENCING_TAINT, "effect": TAINT_EFFECT, "timeAdded": now_seconds() }));
        }
        Ok(())
    })?;
    Ok(())
}

fn untaint(tx: &Transaction<'_>, node: &NodeName) -> Result<(), ClusterError> {
    let id = ObjectId::cluster("Node", node.as_str());
    let removed = tx.patch(&id, |object| {
        let Some(list) = object.pointer_mut("/spec/taints").and_then(Value::as_array_mut) else {
            return Ok(());
        };
        list.retain(|taint| !is_ours(taint));
        if list.is_empty()
            && let Some(spec) = object["spec"].as_object_mut()
        {
            spec.remove("taints");
        }
        Ok(())
    });
    match removed {
        // The Node object is gone, and its taint with it.
        Ok(_) | Err(ClusterError::NotFound { .. }) => Ok(()),
        Err(e) => Err(e),
    }
}

fn is_ours(taint: &Value) -> bool {
    taint["key"] == FENCING_TAINT && taint["effect"] == TAINT_EFFECT
}

/// Deletes a pod of the node that the proof is about, and of no other.
fn delete_pod(tx: &Transaction<'_>, pod: &Key, uid: &Uid, proven: &NodeName) -> Result<(), ClusterError> {
    let id = ObjectId::namespaced("Pod", pod);
    let Some(object) = tx.get(&id)? else { return Ok(()) };
    let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
    if node != proven.as_str() {
        let why = format!("it is on node {node:?}, and the proof is about {proven}");
        return Err(refused(&id.to_string(), why));
    }
    tx.delete(&id, Some(uid.as_str()))
}

fn create_migration(tx: &Transaction<'_>, key: &Key, spec: &MigrationSpec) -> Result<(), ClusterError> {
    let id = ObjectId::namespaced("VolumeMigration", key);
    let wanted = manifest::migration_spec(spec);
    // People may cancel it or let it go on meanwhile: only what it moves, and whereto, makes it the same.
    let same = |stored: &crd::VolumeMigrationSpec| {
        let same_subject = stored.vm == wanted.vm && stored.claim == wanted.claim;
        same_subject && stored.destination == wanted.destination && stored.evacuation == wanted.evacuation
    };
    create_ours(tx, &id, &wanted, same)
}

fn create_evacuation(tx: &Transaction<'_>, name: &str, spec: &EvacuationSpec) -> Result<(), ClusterError> {
    let id = ObjectId::cluster("Evacuation", name);
    let wanted = manifest::evacuation_spec(spec);
    create_ours(tx, &id, &wanted, |stored: &crd::EvacuationSpec| {
        stored.node == wanted.node && stored.disk == wanted.disk
    })
}

/// Creates one of our own objects; one of its name that asks the same is it already.
fn create_ours<S: serde::Serialize + serde::de::DeserializeOwned>(
    tx: &Transaction<'_>,
    id: &ObjectId,
    wanted: &S,
    same: impl FnOnce(&S) -> bool,
) -> Result<(), ClusterError> {
    if let Some(stored) = tx.get(id)? {
        let spec = serde_json::from_value(stored["spec"].clone());
        let spec = spec.map_err(|e| refused(&id.to_string(), format!("spec: {e}")))?;
        return if same(&spec) {
            Ok(())
        } else {
            Err(conflict(id, "it exists and asks something else".into()))
        };
    }
    let spec = serde_json::to_value(wanted).map_err(|e| refused(&id.to_string(), e.to_string()))?;
    let mut object = json!({
        "apiVersion": crd::API_VERSION,
        "kind": id.kind,
        "metadata": { "name": id.name, "labels": { MANAGED_BY: MANAGER } },
        "spec": spec,
    });
    if !id.namespace.is_empty() {
        object["metadata"]["namespace"] = json!(id.namespace);
    }
    tx.create(object).map(|_| ())
}

fn cancel_migration(tx: &Transaction<'_>, key: &Key) -> Result<(), ClusterError> {
    let id = ObjectId::namespaced("VolumeMigration", key);
    tx.patch(&id, |object| {
        object["spec"]["cancelled"] = json!(true);
        Ok(())
    })?;
    Ok(())
}
