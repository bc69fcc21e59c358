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

use serde_json::json;
use somersault_coordinator_core::io::Action;
use somersault_coordinator_core::names::{Key, NodeName, Uid};

use super::store::Transaction;
use crate::cluster::ClusterError;
use crate::cluster::change::request::Request;
use crate::cluster::change::taint::{OUT_OF_SERVICE, OurTaint, UNREACHABLE};
use crate::cluster::change::{check_attached_to, live, volume};
use crate::cluster::error::{not_found, refused};
use crate::cluster::manifest::ObjectId;

/// Performs an action.
pub(super) fn perform(tx: &Transaction<'_>, action: &Action) -> Result<(), ClusterError> {
    match action {
        Action::Taint { node } => set_taint(tx, node, UNREACHABLE),
        Action::Untaint { node } => remove_taint(tx, node, UNREACHABLE),
        Action::DeletePod { pod, uid, proof } => delete_pod(tx, pod, uid, proof.node()),
        Action::DeleteAttachment { attachment, uid, proof } => {
            delete_attachment(tx, attachment, uid, proof.node())
        }
        Action::OutOfService { proof } => set_taint(tx, proof.node(), OUT_OF_SERVICE),
        Action::InService { node } => remove_taint(tx, node, OUT_OF_SERVICE),
        Action::CreateMigration { key, spec } => {
            create_once(tx, &Request::migration(ObjectId::namespaced("VolumeMigration", key), spec)?)
        }
        Action::LiveMigrate { key, vm, node } => live_migrate(tx, key, vm, node.as_ref()),
        Action::CancelMigration { key } => set_spec(tx, key, "cancelled", true),
        Action::ProceedMigration { key } => set_spec(tx, key, "preCopyOnly", false),
        Action::CreateEvacuation { name, spec } => {
            create_once(tx, &Request::evacuation(ObjectId::cluster("Evacuation", name), spec)?)
        }
        Action::RetainVolume { volume } => volumes::retain(tx, volume),
        Action::CreateVolume(new) => volumes::create(tx, new),
        Action::Stage(staging) => Err(refused(
            staging.name.as_str(),
            "a folder of manifests has no provisioner that would make a volume, and no kubelet that would mount it",
        )),
        // What was never made is gone.
        Action::Unstage { .. } | Action::DiscardVolume { .. } => Ok(()),
        Action::CreateLock { volume, claim, template } => volumes::create_lock(tx, volume, claim, template),
        Action::ForgetVolume { volume } => volumes::forget(tx, volume),
        Action::DeleteReleased { volume, claim_uid } => volumes::delete_released(tx, volume, claim_uid),
        Action::PrebindVolume { volume, claim } => volumes::prebind(tx, volume, claim),
        Action::DeleteClaim { claim, uid } => claims::delete(tx, claim, uid),
        Action::ReimportClaim { claim, uid, data_volume, volume } => {
            claims::reimport(tx, claim, uid, data_volume, volume)
        }
        Action::CreateClaim { claim, template, volume } => claims::create(tx, claim, template, volume),
        Action::StopVm { vm, owner } => start::stop(tx, vm, owner),
        Action::RestoreStart { vm, owner, start } => start::restore(tx, vm, owner, start),
    }
}

fn set_taint(tx: &Transaction<'_>, node: &NodeName, taint: OurTaint) -> Result<(), ClusterError> {
    let id = ObjectId::cluster("Node", node.as_str());
    tx.patch(&id, |object| taint.set(&id, object)).map(drop)
}

fn remove_taint(tx: &Transaction<'_>, node: &NodeName, taint: OurTaint) -> Result<(), ClusterError> {
    let removed = tx.patch(&ObjectId::cluster("Node", node.as_str()), |object| {
        taint.remove(object);
        Ok(())
    });
    match removed {
        // The Node object is gone, and its taint with it.
        Ok(_) | Err(ClusterError::NotFound { .. }) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Deletes a pod of the node that the proof is about, and of no other.
fn delete_pod(tx: &Transaction<'_>, pod: &Key, uid: &Uid, proven: &NodeName) -> Result<(), ClusterError> {
    let id = ObjectId::namespaced("Pod", pod);
    let Some(object) = tx.get(&id)? else { return Ok(()) };
    let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
    if node != proven.as_str() {
        let why = format!("it is on node {node:?}, and the proof is about {proven}");
        return Err(refused(&id, why));
    }
    tx.delete(&id, Some(uid.as_str()))
}

/// Deletes an attachment to the node that the proof is about, and to no other.
fn delete_attachment(
    tx: &Transaction<'_>,
    attachment: &str,
    uid: &Uid,
    proven: &NodeName,
) -> Result<(), ClusterError> {
    let id = ObjectId::cluster("VolumeAttachment", attachment);
    let Some(object) = tx.get(&id)? else { return Ok(()) };
    check_attached_to(&id, &object, proven)?;
    tx.delete(&id, Some(uid.as_str()))
}

/// Creates one of our own objects; one of its name that asks the same is it already.
fn create_once(tx: &Transaction<'_>, request: &Request) -> Result<(), ClusterError> {
    match tx.get(&request.id)? {
        Some(stored) => request.check_same(&stored),
        None => tx.create(request.object.clone()).map(drop),
    }
}

/// Nobody moves a VM in a folder: whoever plays `KubeVirt` there does.
fn live_migrate(
    tx: &Transaction<'_>,
    key: &Key,
    vm: &str,
    node: Option<&NodeName>,
) -> Result<(), ClusterError> {
    let id = live::id(key);
    if let Some(stored) = tx.get(&id)? {
        return live::check_same(&id, &stored, vm);
    }
    let Some(node) = node else { return tx.create(live::migration(&id, vm, None)).map(drop) };
    let at = ObjectId::cluster("Node", node.as_str());
    let object = tx.get(&at)?.ok_or_else(|| not_found(&at))?;
    tx.create(live::migration(&id, vm, Some(volume::hostname(&at, &object)?))).map(drop)
}

/// Sets a field of a migration's `spec`.
fn set_spec(tx: &Transaction<'_>, key: &Key, field: &str, value: bool) -> Result<(), ClusterError> {
    let id = ObjectId::namespaced("VolumeMigration", key);
    tx.patch(&id, |object| {
        object["spec"][field] = json!(value);
        Ok(())
    })?;
    Ok(())
}
