//! `PersistentVolume`s, with what the binder and the volume's controller would make of their phases.

use serde_json::{Value, json};
use somersault_coordinator_core::io::{ClaimTemplate, NewVolume};
use somersault_coordinator_core::names::{Key, Uid, VolumeName};

use crate::cluster::ClusterError;
use crate::cluster::change::{claim, volume};
use crate::cluster::directory::store::Transaction;
use crate::cluster::error::{conflict, not_found};
use crate::cluster::manifest::ObjectId;

/// Sets reclaim policy Retain.
pub(super) fn retain(tx: &Transaction<'_>, volume: &VolumeName) -> Result<(), ClusterError> {
    tx.patch(&volume::id(volume), |object| {
        volume::retain(object);
        Ok(())
    })?;
    Ok(())
}

/// Creates a static volume, kept for the claim that it names.
pub(super) fn create(tx: &Transaction<'_>, new: &NewVolume) -> Result<(), ClusterError> {
    let by = volume::reached_by(new);
    let by = tx.get(&by)?.ok_or_else(|| not_found(&by))?;
    create_once(tx, &volume::id(&new.name), volume::new_volume(new, &by)?)
}

/// Creates the volume that locks a claim.
pub(super) fn create_lock(
    tx: &Transaction<'_>,
    name: &VolumeName,
    claim: &Key,
    template: &ClaimTemplate,
) -> Result<(), ClusterError> {
    create_once(tx, &volume::id(name), volume::new_lock(name, claim, template))
}

fn create_once(tx: &Transaction<'_>, id: &ObjectId, mut object: Value) -> Result<(), ClusterError> {
    object["status"] = json!({ "phase": "Available" });
    match tx.get(id)? {
        Some(stored) if volume::is_same(&stored, &object) => Ok(()),
        Some(_) => Err(conflict(id, "another volume has this name")),
        None => tx.create(object).map(drop),
    }
}

/// Removes the object of a volume that we created and that no claim is bound to.
pub(super) fn forget(tx: &Transaction<'_>, volume: &VolumeName) -> Result<(), ClusterError> {
    let id = volume::id(volume);
    let Some(object) = tx.get(&id)? else { return Ok(()) };
    volume::check_forgettable(&id, &object, bound_claim(tx, &id, &object)?.as_ref())?;
    tx.delete(&id, None)
}

/// Removes the object of a volume that was Released by the claim of this uid.
pub(super) fn delete_released(
    tx: &Transaction<'_>,
    volume: &VolumeName,
    claim_uid: &Uid,
) -> Result<(), ClusterError> {
    let id = volume::id(volume);
    let Some(object) = tx.get(&id)? else { return Ok(()) };
    volume::check_released(&id, &object, bound_claim(tx, &id, &object)?.as_ref(), claim_uid)?;
    tx.delete(&id, None)
}

/// The claim that a volume is bound to, from either side.
fn bound_claim(
    tx: &Transaction<'_>,
    id: &ObjectId,
    object: &Value,
) -> Result<Option<ObjectId>, ClusterError> {
    let claims = tx.list("PersistentVolumeClaim")?;
    let bound = claims.iter().find(|claim| volume::is_bound(id, object, claim));
    Ok(bound.and_then(|claim| ObjectId::of(claim).ok()))
}

/// Points a volume to a claim by namespace and name.
pub(super) fn prebind(tx: &Transaction<'_>, volume: &VolumeName, claim: &Key) -> Result<(), ClusterError> {
    let id = volume::id(volume);
    let object = tx.get(&id)?.ok_or_else(|| not_found(&id))?;
    let bound = bound_claim(tx, &id, &object)?;
    tx.patch(&id, |object| {
        volume::prebind(&id, object, &claim::id(claim), bound.as_ref())?;
        if object["spec"]["claimRef"]["uid"].is_null() {
            object["status"]["phase"] = json!("Available");
        }
        Ok(())
    })?;
    Ok(())
}

/// Binds a volume to the claim that it was pre-bound to.
pub(super) fn bind(
    tx: &Transaction<'_>,
    volume: &VolumeName,
    claim: &Key,
    uid: &str,
) -> Result<Value, ClusterError> {
    tx.patch(&volume::id(volume), |object| {
        object["spec"]["claimRef"] = volume::claim_ref(claim, Some(uid));
        object["status"]["phase"] = json!("Bound");
        Ok(())
    })
}

/// What happens to a volume whose claim goes: it keeps its `claimRef`, and nobody else gets it.
pub(super) fn release(tx: &Transaction<'_>, volume: &VolumeName) -> Result<(), ClusterError> {
    tx.patch(&volume::id(volume), |object| {
        object["status"]["phase"] = json!("Released");
        Ok(())
    })?;
    Ok(())
}
